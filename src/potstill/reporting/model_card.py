"""Parts of a model card (README.md), in which names and paths are never markup. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from potstill.runtime.redaction import redact

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


def code_span(text: str) -> str:
    """A text as inline code on one line, in which HTML and markdown are literal."""
    return f"`{_plain(text)}`"


def code_block(text: str) -> str:
    """A line of a fenced code block, which cannot end the block."""
    return _plain(text)


def figure_list(summary: Mapping[str, Any]) -> str:
    """The figures of a summary as a markdown list."""
    figures = {name: value for name, value in summary.items() if isinstance(value, float)}
    return "\n".join(f"- {code_span(name)}: {value:.4g}" for name, value in figures.items())


def _plain(text: str) -> str:
    return redact(_UNPRINTABLE.sub(" ", text).replace("`", "'")).strip() or " "
