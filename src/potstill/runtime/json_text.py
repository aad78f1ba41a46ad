"""Reading JSON, with a ValueError for any error, and writing it. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.runtime.small_files import read_small


def parse_json(text: str | bytes) -> Any:
    r"""The value of a JSON text.

    Raises:
        ValueError: invalid JSON, nested too deeply, or with half of a surrogate pair (a single \ud83d), which neither
            tokenizers nor files accept.
    """
    try:
        value = json.loads(text)
        escape = b"\\ud" if isinstance(text, bytes) else "\\ud"
        if escape in text.lower():  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, such as a single \\ud83d") from None
    return value


def read_json(path: Path) -> Any:
    """The value of a small JSON file; raises as `read_small` and `parse_json`."""
    return parse_json(read_small(path))


def json_text(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """A value as JSON, with `null` for NaN and infinities."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
