"""The generated parts of `docs/configuration.md` and `conf/README.md`.

`python -m potstill.config.reference` rewrites everything between the markers of both files; with `--check` it only
reports stale files, with exit code 1. A table of keys comes from the dataclasses of the schema (types, defaults,
ranges, help texts) and from the options of `conf/` that set another default:

    <!-- keys TrainConfig: data trainer.max_steps -->
    ...
    <!-- end -->

holds every key of these sections that no other table of the file names more exactly; without sections, all keys of
the class. `<!-- options student -->` lists the options of a group of `conf/` with the comments at the top of their
files, and `<!-- codes -->` the codes of all user errors.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import omegaconf
import yaml

from potstill.config import OPTIONS, EvaluateConfig, TrainConfig, config_folder
from potstill.errors import PotstillError
from potstill.runtime.ranges import HELP, KEY, WHEN, WORKERS

ROOTS = (TrainConfig, EvaluateConfig)
FILES = (Path("docs/configuration.md"), Path("docs/errors.md"), Path("conf/README.md"))
MOST_OPTIONS = 4  # whose own defaults a table names
_BLOCK = re.compile(r"(<!-- (keys|options|codes) ?([\w/]*)(?:: ([^\n]*?))? -->\n).*?(<!-- end -->)", re.S)


@dataclass(frozen=True)
class Row:
    """A key of the reference, by its dotted name."""

    key: str
    type: str
    default: str
    help: str


def rows(schema: type, prefix: str = "") -> Iterator[Row]:
    """The keys of a dataclass and of its sections, in their order.

    A group whose options have keys of their own shows the keys of all, each with the schemas that have it. For a
    section whose fields all have one type, such as `objective.terms`: the first key of each field, with the help
    text of the field, then the other keys once, `objective.terms.<term>.schedule`.
    """
    hints = get_type_hints(schema)
    for field in fields(schema):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        section = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), None)
        if key in OPTIONS and section is not None:
            yield from _of_options(key)
        elif section is not None and get_origin(hint) is not list:
            yield from _section(section, key)  # type: ignore[arg-type]
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield Row(key, _type(hint, field.metadata), _shown(default), _help(field.metadata))


def _of_options(group: str) -> Iterator[Row]:
    found: dict[str, dict[str, Row]] = {}
    for name, schema in OPTIONS[group].items():
        for row in rows(schema, f"{group}."):
            found.setdefault(row.key, {})[name] = row
    for owners in found.values():
        texts: dict[str, list[str]] = {}
        for name, row in owners.items():
            texts.setdefault(row.help, []).append(f"`{name}`")
        alike = len(texts) == 1 and len(owners) == len(OPTIONS[group])
        help = "; ".join(text if alike else f"{' '.join(names)}: {text}" for text, names in texts.items())
        yield replace(next(iter(owners.values())), help=help)


def _section(section: type, key: str) -> Iterator[Row]:
    hints = set(get_type_hints(section).values())
    if len(hints) > 1 or not is_dataclass(shared := next(iter(hints))):
        yield from rows(section, f"{key}.")
        return
    first, *others = rows(shared, "")  # type: ignore[arg-type]
    for field in fields(section):
        help = field.metadata[HELP]
        yield Row(f"{key}.{field.name}.{first.key}", first.type, first.default, help)
    placeholder = key.rpartition(".")[2].removesuffix("s")
    for row in others:
        yield Row(f"{key}.<{placeholder}>.{row.key}", row.type, row.default, row.help)


def _help(metadata: Mapping[str, Any]) -> str:
    condition = metadata.get(WHEN)
    return f"{metadata.get(HELP, '')}; with {condition}" if condition else metadata.get(HELP, "")


def _type(hint: Any, metadata: Mapping[str, Any]) -> str:
    names = {type(None): "null", Any: "any", str: "text"}
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    shown = []
    for part in parts:
        if get_origin(part) is list:
            (item,) = get_args(part)
            shown.append("list" if is_dataclass(item) else f"list of {names.get(item, item.__name__)}")
        elif get_origin(part) is dict:
            shown.append("dictionary")
        else:
            shown.append(names.get(part) or part.__name__)
    allowed = re.sub(r"^an? (number|integer) ", "", str(metadata[KEY])) if KEY in metadata else ""
    if metadata.get(KEY) is WORKERS:  # its upper bound is that of this machine
        allowed = "from 0"
    allowed = allowed.replace("e+0", "e")
    allowed = re.sub(r"\b10{6,}\b", lambda large: f"1e{len(large[0]) - 1}", allowed)
    return ", ".join([*shown[:1], *([allowed] if allowed else []), *(f"or {one}" for one in shown[1:])])


def _shown(value: Any) -> str:
    if value == omegaconf.MISSING:
        return "required, or by option"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    return f"`{text}`" if text else ""


def options(group: str) -> dict[str, Path]:
    """The options of a group of `conf/`, by name."""
    return {path.stem: path for path in sorted((config_folder() / group).glob("*.yaml"))}


def _own_defaults() -> dict[str, dict[str, Any]]:
    """The values that options set, by key and option."""
    found: dict[str, dict[str, Any]] = {}
    for group in ("objective", "teacher", "student", "optimizer", "schedule", "logger", "data", "benchmark"):
        for name, path in options(group).items():
            content = yaml.safe_load(path.read_text()) or {}
            for key, value in _leaves(content, f"{group}."):
                found.setdefault(key, {})[name] = value
    return found


def _leaves(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value and "_target_" not in value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}", value


def _default_of(row: Row, own: Mapping[str, Mapping[str, Any]]) -> str:
    differ = {name: _shown(value) for name, value in own.get(row.key, {}).items() if _shown(value) != row.default}
    if not differ or row.default.startswith("required"):
        return row.default
    if len(differ) > MOST_OPTIONS or any("${" in text for text in differ.values()):
        return f"{row.default}, or by option"
    return f"{row.default} ({', '.join(f'{name}: {text}' for name, text in differ.items())})"


def classes() -> dict[str, type]:
    """Every dataclass of the schema, by name: the two commands, their sections and what their lists hold."""
    found: dict[str, type] = {}
    waiting: list[Any] = [*ROOTS, *(own for known in OPTIONS.values() for own in known.values())]
    while waiting:
        one = waiting.pop()
        waiting += get_args(one)
        if is_dataclass(one) and one.__name__ not in found:  # type: ignore[union-attr]
            found[one.__name__] = one  # type: ignore[assignment,union-attr]
            waiting += get_type_hints(one).values()
    return found


def table(schema: type, sections: Sequence[str], elsewhere: Sequence[str]) -> str:
    """A Markdown table of the keys of some sections.

    Args:
        schema: the dataclass.
        sections: dotted names of sections and keys; none: all.
        elsewhere: what other tables of the file name.
    """
    own = _own_defaults() if schema in ROOTS else {}
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows(schema):
        owner = max((one for one in elsewhere if _is_in(row.key, one)), key=len, default="")
        mine = max((one for one in sections if _is_in(row.key, one)), key=len, default=None)
        if (not sections or mine is not None) and len(mine or "") >= len(owner):
            cells = (f"`{row.key}`", row.type, _default_of(row, own), row.help)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _is_in(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def listing(group: str) -> str:
    """A Markdown list of the options of a group, with the comments at the beginning of their files."""
    lines = []
    for name, path in options(group).items():
        comments = []
        for line in path.read_text().splitlines():
            if not line.startswith("#"):
                break
            comments.append(line.removeprefix("#").strip())
        text = " ".join(line for line in comments if not line.startswith(("python ", "@package")))
        lines.append(f"- `{name}`: {_escaped(text)}" if text else f"- `{name}`")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """A text in which `<` outside of code does not begin an HTML tag."""
    parts = text.split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def codes() -> str:
    """A Markdown table of the codes of user errors; a kind of another error follows it."""
    lines = ["| code | class | meaning |", "|---|---|---|"]
    waiting: list[type[PotstillError]] = PotstillError.__subclasses__()
    while waiting:
        kind = waiting.pop(0)
        meaning = inspect.getdoc(kind) or ""
        lines.append(f"| `{kind.code}` | `{kind.__name__}` | {meaning.splitlines()[0].rstrip('.')} |")
        waiting = [*kind.__subclasses__(), *waiting]
    return "\n".join(lines) + "\n"


def generated(text: str) -> str:
    """A document with what stands between its markers generated."""
    named = [(block[3], (block[4] or "").split()) for block in _BLOCK.finditer(text) if block[2] == "keys"]
    known = classes()

    def fill(block: re.Match[str]) -> str:
        if block[2] == "codes":
            return f"{block[1]}\n{codes()}\n{block[5]}"
        if block[2] == "options":
            return f"{block[1]}\n{listing(block[3])}\n{block[5]}"
        sections = (block[4] or "").split()
        elsewhere = [one for name, other in named if name == block[3] for one in other if one not in sections]
        return f"{block[1]}\n{table(known[block[3]], sections, elsewhere)}\n{block[5]}"

    return _BLOCK.sub(fill, text)


def main(arguments: Sequence[str]) -> int:
    """Rewrite the files of the checkout in the working directory, or check them."""
    stale = []
    for path in FILES:
        before = path.read_text()
        after = generated(before)
        if after != before:
            stale.append(str(path))
            if "--check" not in arguments:
                path.write_text(after)
    if stale and "--check" in arguments:
        print(f"{', '.join(stale)}: stale; run python -m potstill.config.reference", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
