"""Where a `_target_` of the configuration becomes an object."""

from __future__ import annotations

from typing import Any

import hydra.utils
from omegaconf import DictConfig

from potstill.errors import ConfigError


def make(key: str, settings: DictConfig, *arguments: Any) -> Any:
    """Call what `settings._target_` names with `arguments` and the other settings.

    Raises:
        ConfigError: there is no such thing, or it does not take these settings.
    """
    try:
        return hydra.utils.instantiate(settings, *arguments, _convert_="all")
    except Exception as fault:  # whatever the target raises, its settings are the user's
        innermost: BaseException = fault
        while innermost.__cause__ is not None:
            innermost = innermost.__cause__
        reason = " ".join(str(innermost).split())
        raise ConfigError(f"{key}._target_={settings.get('_target_')}: {reason}") from fault
