"""Names of a package that are imported when they are first used, as its `__init__.pyi` lists them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach_stub(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that re-exports what its type stub imports.

    The stub beside `__init__.py` is the only list of the names: type checkers and editors read it, and so does this
    function, as `lazy_loader.attach_stub` does.

    Args:
        package: `__name__` of the package.
        file: `__file__` of the package.

    Example:
        >>> import potstill.models
        >>> "backbone_of" in dir(potstill.models)
        True
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes = {
        name.asname or name.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    }
    names = sorted(homes)

    def getattribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return getattribute, lambda: names, names
