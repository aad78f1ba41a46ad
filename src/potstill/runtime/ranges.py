"""Values that a field of the schema takes: ranges of numbers, and choices of text."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

KEY = "range"  # of a field's metadata
CHOICES = "choices"
PATHS = "a dotted path"  # among choices: or a function of the user's own
HELP = "help"
WHEN = "when"


@dataclass(frozen=True)
class Range:
    """Finite numbers between two bounds; NaN, infinities and booleans are in none.

    Attributes:
        low: smallest value.
        high: largest value.
        above: `low` itself is out of the range.
        below: `high` itself is out of the range.
        apart: a value outside that has a meaning of its own.
        whole: integers only; the schema's own types say so where there are any.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    apart: float | None = None
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        if not is_number(value) or (self.whole and isinstance(value, float)):
            return False
        if self.apart is not None and value == self.apart:
            return True
        number: float = value
        return (self.low < number if self.above else self.low <= number) and (
            number < self.high if self.below else number <= self.high
        )

    def __str__(self) -> str:
        low = f"above {_plain(self.low)}" if self.above else f"from {_plain(self.low)}"
        high = f"below {_plain(self.high)}" if self.below else _plain(self.high)
        apart = "" if self.apart is None else f", or {_plain(self.apart)}"
        return f"{'an integer' if self.whole else 'a number'} {low} to {high}{apart}"


SHARE = Range(0, 1)
SOME = Range(0, 1, above=True)  # a share that is not nothing
INNER = Range(0, 1, above=True, below=True)
PART = Range(0, 1, below=True)  # a share that is not all
WEIGHT = Range(0, 1e6)
POSITIVE = Range(0, 1e6, above=True)
LEARNING_RATE = Range(0, 100)
EPSILON = Range(0, 1, above=True)
# At 1,000 the soft targets of float32 are hardly more than rounding; far below 0.01 logits overflow.
TEMPERATURE = Range(0.01, 1000)
COUNT = Range(1, 10**12)
SIZE = Range(1, 10**6)
WHOLE = Range(0, 10**6, whole=True)
LENGTH = Range(8, 10**6)  # tokens
STEPS = Range(1, 10**9)
STEPS_OR_NONE = Range(0, 10**9)
DAY = 86_400
SECONDS = Range(0, DAY)
SEED = Range(0, 2**32 - 1)  # what numpy takes
THRESHOLD = Range(-1e10, 1e10)
# A process that reads or trains has torch in its memory: many more of them than cores only exhaust the machine.
MOST_PROCESSES = max(16, 4 * (os.cpu_count() or 1))
WORKERS = Range(0, MOST_PROCESSES)
NODES = Range(1, 10**4)
REQUESTS = Range(1, 1024)  # at a time
FINITE = Range(-1e300, 1e300)


@dataclass
class Section:
    """Base of the schema's dataclasses: a value is also read by its key, `section["name"]`."""

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)


@dataclass(frozen=True)
class When:
    """A key that is read only where another key of its section has one of some values.

    Attributes:
        key: the other key.
        values: of it.
    """

    key: str
    values: tuple[Any, ...]

    def __init__(self, key: str, *values: Any) -> None:
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "values", values)

    def holds(self, section: Any) -> bool:
        """Whether a section reads the key."""
        return getattr(section, self.key) in self.values

    def __str__(self) -> str:
        return f"{self.key}={' or '.join(map(_text, self.values))}"


class Unless(When):
    """A key that is read only where another key of its section has none of some values."""

    def holds(self, section: Any) -> bool:
        """Whether a section reads the key."""
        return not super().holds(section)

    def __str__(self) -> str:
        return self.key if self.values in ((None,), (0,), (False,)) else f"{self.key} other than {self.values[0]}"


def within(default: Any, allowed: Range, help: str, when: When | None = None) -> Any:
    """A field for a number, a list of numbers, or null, with its default, range and help text."""
    return option(default, help, when, **{KEY: allowed})


def option(default: Any, help: str, when: When | None = None, **metadata: Any) -> Any:
    """A field with its default, its help text, and what it depends on; the default of a section is its dataclass.

    `help` is Markdown without a period at its end; the reference of keys is generated from it. `choices` are the
    values that a field of text takes.
    """
    metadata |= {HELP: help} if when is None else {HELP: help, WHEN: when}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
