"""Variable mappings: which slices of the teacher's and the student's residual streams are the same variable.

A variable is written `$L:6$H:[0:12]$[0:64]`: block 6, heads 0 to 11, dimensions 0 to 63 of each head's slice of the
residual stream. Ranges are half open; a lone number is a range of one. Source: Wu et al. 2022 (arXiv:2112.02505),
section 3, and the published variable names. Nothing here imports torch, so an invalid mapping is rejected immediately.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from potstill.errors import ConfigError
from potstill.runtime.json_text import read_json

KEY = "objective.interchange.mapping"
LAYOUTS = ("single_middle", "middle_late", "multilayer", "grid")
EXAMPLE = "$L:6$H:[0:12]$[0:64]"

# Names of the published files for teachers of 12 blocks, with the student's blocks.
_PUBLISHED = re.compile(r"(?:multiple_)?(single_middle_late|single_middle|single_multilayer)_layer_(\d+)(?:\.nm)?")
_PUBLISHED_LAYOUTS = {"single_middle_late": "middle_late", "single_multilayer": "multilayer"}

_RANGE = r"\d+|\[\d+:\d+\]"
_VARIABLE = re.compile(rf"\$L:(?P<layers>{_RANGE})\$H:(?P<heads>{_RANGE})\$(?P<dims>{_RANGE})")


class Sizes(Protocol):
    """Sizes of a model that mappings need, such as a `ModelSpec` or a `Backbone`."""

    @property
    def depth(self) -> int:
        """Number of blocks."""

    @property
    def width(self) -> int:
        """Dimension of the residual stream."""

    @property
    def heads(self) -> int:
        """Number of heads."""

    @property
    def head_dim(self) -> int:
        """Width of a head's slice of the residual stream."""


class Variable(NamedTuple):
    """A slice of the residual stream after some blocks, in half-open ranges; None means all.

    Attributes:
        layers: Blocks.
        heads: Heads.
        dims: Dimensions of each head's slice.
    """

    layers: tuple[int, int]
    heads: tuple[int, int] | None = None
    dims: tuple[int, int] | None = None


@dataclass(frozen=True)
class Site:
    """Columns of the residual stream after one block.

    Attributes:
        block: Index of the block.
        columns: Half-open ranges, ascending, which neither overlap nor touch.
    """

    block: int
    columns: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Number of columns."""
        return sum(stop - start for start, stop in self.columns)


@dataclass(frozen=True)
class InterchangeMapping:
    """Sites that are set together, in order of their blocks.

    Attributes:
        teacher: Sites of the teacher.
        student: Sites of the student.

    Example:
        >>> from potstill.interchange import InterchangeMapping
        >>> from potstill.interchange.mappings import Site
        >>> InterchangeMapping((Site(6, ((0, 768),)),), (Site(3, ((0, 768),)),)).name
        '6-3'
    """

    teacher: tuple[Site, ...]
    student: tuple[Site, ...]

    @property
    def name(self) -> str:
        """Blocks of the teacher and of the student, such as `6-3` or `0,1-0`."""
        return "-".join(",".join(str(site.block) for site in side) for side in (self.teacher, self.student))


def read_mappings(value: Any, teacher: Sizes, student: Sizes, *, key: str = KEY) -> tuple[InterchangeMapping, ...]:
    """The mappings that a configuration names, checked against both models.

    Args:
        value: A layout (`single_middle`, `middle_late`, `multilayer`: the published ones and their analogues at
            other depths and widths; `grid`: every block of the teacher with every block of the student) or the
            published name of one (`single_middle_layer_6`), a published JSON file (`.nm`, or one of the first release,
            which holds one mapping), or one or a list of `{teacher: [...], student: [...]}` whose variables are strings
            or `{layers: , heads: , dims: }`.
        teacher: Sizes of the teacher.
        student: Sizes of the student.
        key: Config key for messages.

    Returns:
        One or more mappings; a step draws one of them.

    Raises:
        ConfigError: An unknown layout, a missing file, an empty mapping, or a variable that is invalid, is not in its
            model, or has another size than its counterpart.

    Example:
        >>> from potstill.interchange import read_mappings
        >>> from potstill.models.specs import spec_from_settings
        >>> sizes = {"model_type": "bert", "vocab_size": 100, "hidden_size": 768, "num_attention_heads": 12}
        >>> teacher, student = (spec_from_settings({**sizes, "num_hidden_layers": n}, "BERT") for n in (12, 6))
        >>> [mapping.name for mapping in read_mappings("middle_late", teacher, student)]
        ['9-3', '10-4']
        >>> variables = [{"teacher": ["$L:6$H:[0:6]$[0:64]"], "student": ["$L:3$H:[0:6]$[0:64]"]}]
        >>> read_mappings(variables, teacher, student)[0].teacher[0].columns
        ((0, 384),)
    """
    if isinstance(value, str) and (layout := _layout_named(value, student, key)):
        return _layout(layout, teacher, student, key)
    label = f"{key}={value if isinstance(value, str) else '[...]'}"
    entries = _read_file(value, label) if isinstance(value, str) else value
    if isinstance(entries, Mapping):
        entries = [entries]
    if not isinstance(entries, Sequence) or not entries:
        raise ConfigError(
            f"{label}: an empty mapping; must be a list of {{teacher: [{EXAMPLE}], student: [...]}} or one of "
            + ", ".join(LAYOUTS)
        )
    return tuple(_mapping(entry, teacher, student, label) for entry in entries)


def mapping_names(mappings: Sequence[InterchangeMapping]) -> list[str]:
    """Names of mappings by their blocks; those that differ only in columns are numbered."""
    names = [mapping.name for mapping in mappings]
    return [name if names.count(name) == 1 else f"{name}#{names[: i + 1].count(name)}" for i, name in enumerate(names)]


def parse_variable(value: Any, label: str = KEY) -> Variable:
    """A variable from its published name or from a dictionary of `layers`, `heads` and `dims`.

    Raises:
        ConfigError: The value is neither of them, or a range is empty.
    """
    ranges = value
    if isinstance(value, str):
        match = _VARIABLE.fullmatch(value.replace(" ", ""))
        ranges = match and match.groupdict()
    if not isinstance(ranges, Mapping) or ranges.get("layers") is None or set(ranges) - set(Variable._fields):
        raise ConfigError(f"{label}: {value!r} is not a variable; write {EXAMPLE} or {{layers: 6, heads: [0, 12]}}")
    return Variable(**{name: _range(part, value, label) for name, part in ranges.items() if part is not None})


def _range(part: Any, variable: Any, label: str) -> tuple[int, int]:
    numbers = re.findall(r"\d+", part) if isinstance(part, str) else [part] if isinstance(part, int) else part
    try:
        start, *rest = (int(number) for number in numbers)
        stop = rest[0] if len(rest) == 1 else start + (not rest)
    except (TypeError, ValueError):
        start = stop = 0
    if not 0 <= start < stop:
        raise ConfigError(f"{label}: {part!r} in {variable!r} is an empty range; write [start:stop], half open")
    return start, stop


def _layout_named(name: str, student: Sizes, key: str) -> str | None:
    """The layout of a name, also of a published file that is not here; None for other names."""
    if name in LAYOUTS:
        return name
    published = _PUBLISHED.fullmatch(name)
    if published is None or Path(name).is_file():
        return None
    if int(published[2]) != student.depth:
        raise ConfigError(f"{key}={name}: is for students of {published[2]} blocks; this one has {student.depth}")
    return _PUBLISHED_LAYOUTS.get(published[1], published[1])


def _read_file(value: str, label: str) -> Any:
    path = Path(value).expanduser()
    if not path.is_file():
        raise ConfigError(f"{label}: neither a layout nor a file; one of {', '.join(LAYOUTS)}, or a .nm JSON file")
    try:
        content = read_json(path)
        return content.get("interchange_variable_mappings", content) if isinstance(content, dict) else content
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{label}: not a mapping file ({error}); expected JSON with interchange_variable_mappings, a list of "
            "{teacher_variable_names: [...], student_variable_names: [...]}"
        ) from error


def _mapping(entry: Any, teacher: Sizes, student: Sizes, label: str) -> InterchangeMapping:
    sides, widths = [], []
    for name, sizes in (("teacher", teacher), ("student", student)):
        names = entry.get(name, entry.get(f"{name}_variable_names")) if isinstance(entry, Mapping) else None
        if not names:
            raise ConfigError(
                f"{label}: {entry!r} names no variable of the {name}; write {{teacher: [{EXAMPLE}], student: [...]}}"
            )
        names = [names] if isinstance(names, str | Mapping) else names
        sides.append(_sites([parse_variable(each, label) for each in names], sizes, f"{label}: the {name}"))
        widths.append(sorted({site.size for site in sides[-1]}))
    if len(set().union(*widths)) > 1:
        raise ConfigError(
            f"{label}: {entry!r} swaps {widths[0]} of the teacher and {widths[1]} of the student dimensions in a "
            "block; name slices of equal size on both sides"
        )
    return InterchangeMapping(*sides)


def _sites(variables: Sequence[Variable], sizes: Sizes, label: str) -> tuple[Site, ...]:
    columns: dict[int, list[tuple[int, int]]] = {}
    for variable in variables:
        heads, dims = variable.heads or (0, sizes.heads), variable.dims or (0, sizes.head_dim)
        for what, (start, stop), limit in (
            ("block", variable.layers, sizes.depth),
            ("head", heads, sizes.heads),
            ("dimension", dims, sizes.head_dim),
        ):
            if stop > limit:
                raise ConfigError(f"{label} has no {what} {max(start, limit)}: {what}s 0 to {limit - 1}")
        for block in range(*variable.layers):
            columns.setdefault(block, []).extend(
                (head * sizes.head_dim + dims[0], head * sizes.head_dim + dims[1]) for head in range(*heads)
            )
    return tuple(Site(block, tuple(_merged(ranges))) for block, ranges in sorted(columns.items()))


def _merged(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Touching and overlapping ranges as one."""
    start, stop = min(ranges)
    for left, right in sorted(ranges):
        if left > stop:
            yield start, stop
            start, stop = left, right
        stop = max(stop, right)
    yield start, stop


def _layout(name: str, teacher: Sizes, student: Sizes, key: str) -> tuple[InterchangeMapping, ...]:
    """A published layout, or its analogue at these depths.

    The published ones are for teachers of 12 blocks. `single_middle`: the middle blocks. `middle_late`: the last but
    two and the last but one of both. `multilayer`: the teacher's blocks in as many runs as the student has blocks, the
    longer runs first; all blocks of a run are set together. Between unequal widths the first columns that both have.
    """
    ours, theirs = student.depth, teacher.depth
    pairs: list[tuple[list[int], int]]  # blocks of the teacher, block of the student
    if name == "single_middle":
        pairs = [([theirs // 2], ours // 2)]
    elif name == "middle_late":
        pairs = [([theirs - back], ours - back) for back in (3, 2) if min(ours, theirs) >= back]
        if not pairs:
            raise ConfigError(f"{key}={name}: needs 2 blocks or more on both sides; use single_middle")
    elif name == "multilayer":
        if theirs < ours:
            raise ConfigError(
                f"{key}={name}: the teacher's {theirs} blocks are fewer than the student's {ours}; use single_middle"
            )
        pairs = [(blocks.tolist(), i) for i, blocks in enumerate(np.array_split(np.arange(theirs), ours))]
    else:
        pairs = [([t], s) for t in range(theirs) for s in range(ours)]
    common = ((0, min(teacher.width, student.width)),)
    return tuple(
        InterchangeMapping(tuple(Site(block, common) for block in blocks), (Site(block, common),))
        for blocks, block in pairs
    )
