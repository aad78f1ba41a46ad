"""JSON: reading what users give, with a ValueError for any fault, and writing. For any room, as `errors`. No torch."""

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
        ValueError: it is no JSON, nested too deeply, or a text in it has half of a surrogate pair (an escape such as
            \ud83d alone), which is no character: no tokenizer takes it, and no file can hold it.
    """
    try:
        value = json.loads(text)
        escape = b"\\ud" if isinstance(text, bytes) else "\\ud"
        if escape in text.lower():  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a text has half of a surrogate pair, an escape such as \\ud83d alone") from None
    return value


def read_json(path: Path) -> Any:
    """The value of a small JSON file, as `read_small` and `parse_json`.

    Raises:
        OSError: there is none, or it is not a regular file.
        ValueError: it is too long, not UTF-8, or no JSON.
    """
    return parse_json(read_small(path))


def json_text(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """JSON of a value, for a file: `null` in place of NaN and infinities, which JSON has no numbers for."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
