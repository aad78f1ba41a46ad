"""Optional packages."""

from __future__ import annotations

import importlib.util

from potstill.errors import PackageError


def require_packages(key: str, extra: str, *modules: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        key: the setting that needs them, for messages: `hydra/sweeper=optuna`.
        extra: of this package, which installs them.
        modules: that are imported.

    Raises:
        PackageError: one is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise PackageError(f"{key}: {module} is not installed; pip install 'potstill[{extra}]'")
