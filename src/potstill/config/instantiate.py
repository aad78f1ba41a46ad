"""Where a `_target_` of the configuration becomes an object."""

from __future__ import annotations

from typing import Any

import hydra.utils

from potstill.errors import ConfigError
from potstill.runtime.dotted import find_in_working_directory, reason


def make(key: str, settings: dict[str, Any], *arguments: Any, kind: type = object) -> Any:
    """Call what `settings._target_` names, also in the working directory, with `arguments` and the other settings.

    Raises:
        ConfigError: the target does not exist, does not take these settings, or returns something else than a `kind`.
    """
    find_in_working_directory()
    try:
        made = hydra.utils.instantiate(settings, *arguments, _convert_="all")
    except Exception as error:  # whatever the target raises, its settings are the user's
        raise ConfigError(f"{key}._target_={settings.get('_target_')}: {reason(error)}") from error
    if not isinstance(made, kind):
        raise ConfigError(
            f"{key}._target_={settings.get('_target_')}: gives a {type(made).__name__}, no {kind.__name__}"
        )
    return made
