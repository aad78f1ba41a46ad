"""The English in the docstrings of the installed libraries: a corpus that every environment has.

Sources are parsed with `ast` and not imported. Only paragraphs of prose are kept, without doctests, code, tables,
directives and parameter headers.
"""

import ast
import gc
import hashlib
import inspect
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from itertools import chain
from pathlib import Path
from typing import Any

from potstill.data.common.store import build_once
from potstill.data.corpus.sources import TextFiles
from potstill.errors import DataError
from potstill.runtime.workers import worker_pool

# Version of the rules in this file, part of the corpus's identity.
RULES_VERSION = 1
STANDARD_LIBRARY = "python"
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "_vendor", "__pycache__"}
)
# Larger sources are generated tables; generated sources repeat the prose of their origin.
LARGEST_SOURCE_BYTES = 2**20
GENERATED = b"automatically generated"
FILES_PER_TASK = 64
TEXT_FILE = "paragraphs.txt"

# Installed distributions by name; the standard library has none.
Packages = dict[str, Distribution | None]

MIN_WORDS = 8
MIN_LETTER_SHARE = 0.75
MIN_WORD_SHARE = 0.7

_FENCE = re.compile(r"^\s*(```|~~~)")
_DIRECTIVE = re.compile(r"^\s*(\.\. |:\w[\w -]*:|@\w+)")
_RULE = re.compile(r"^\s*([-=~^*#+_.`\"'])\1{2,}\s*$")
_TABLE = re.compile(r"^\s*[|+]|\s\|\s|={3,}|-{3,}|\s{3,}\S")
_PROMPT = re.compile(r"^\s*(>>>|\.\.\. |\.\.\.$|In \[|Out\[|\$ |%)")
_BULLET = re.compile(r"^\s*([-*•]|\d+[.)]|#+)\s+")
# `name (type, optional): text` of Google style and `name : type` of numpy style; the text after the colon stays.
_PARAMETER = re.compile(
    r"^\s*[-*]{0,2}\s*[`*]*[A-Za-z_][\w.*`, \[\]]{0,40}?\s*(\([^()]*(\([^()]*\)[^()]*)*\))?[`*]*\s*:(\s+|$)"
)
_NUMPY_PARAMETER = re.compile(r"^\s*[*]{0,2}[A-Za-z_][\w, *]*\s+:\s")
_HEADING = re.compile(r"^\s*[A-Z][\w ]{0,40}:\s*$")
_NO_PROSE = (_RULE, _HEADING, _NUMPY_PARAMETER, _DIRECTIVE)
_ROLE = re.compile(r":[\w:+-]+:`~?!?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{1,2}|\[([^\]]*)\]\([^)]*\)")
_TRIPLE_QUOTE = re.compile(rb"\"\"\"|'''")
_WORD = re.compile(r"[A-Za-z]+(?:['\u2019-][A-Za-z]+)*[.,;:!?)\"'\]]*")


@dataclass(frozen=True)
class Docstrings:
    """The English in the docstrings of installed libraries, one paragraph per text.

    Attributes:
        packages: Names as in `pip list`, `python` for the standard library; None for all installed packages.
        max_examples: Maximum number of texts.
        cache: The text is stored in its `docstrings` folder.
        key: Config key for messages.
    """

    packages: tuple[str, ...] | None
    max_examples: int | None
    cache: Path
    key: str = "data.packages"

    @property
    def name(self) -> str:
        """Names of the packages."""
        return f"docstrings of {', '.join(self.packages) if self.packages else 'the installed packages'}"

    def check(self) -> None:
        """See `TextSource`."""
        installed(self.packages, self.key)

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`; reads versions only."""
        return _identity(installed(self.packages, self.key)) | {"max_examples": self.max_examples}

    def batches(self, size: int) -> Iterator[list[str]]:
        """See `TextSource`."""
        text = str(self.write_texts())
        return TextFiles((text,), "line", None, self.max_examples, self.cache).batches(size)

    def write_texts(self, num_proc: int = 2) -> Path:
        """Write the text file of the paragraphs, one per line, on the first call; returns its path.

        Args:
            num_proc: Number of processes; the result does not depend on it.
        """
        packages = installed(self.packages, self.key)
        key = json.dumps(_identity(packages), sort_keys=True)
        folder = self.cache / "docstrings" / hashlib.sha256(key.encode()).hexdigest()[:32]
        build_once(folder, lambda at: _write(source_files(packages), at / TEXT_FILE, num_proc))
        return folder / TEXT_FILE


def prose(docstring: str) -> list[str]:
    """English paragraphs of a docstring, each on one line."""
    kept = []
    for block in _blocks(inspect.cleandoc(docstring).split("\n")):
        text = _plain(" ".join(line.strip() for line in block))
        if _reads_as_english(text):
            kept.append(text)
    return kept


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Groups of lines that form paragraphs, without code, tables, headings and parameter headers."""
    block: list[str] = []
    # While set, lines with a larger indent belong to code or to a directive.
    skip_deeper_than: int | None = None
    fenced = in_doctest = False
    for line in [*lines, ""]:
        if _FENCE.match(line):
            fenced = not fenced
            line = ""
        elif fenced:
            continue
        # Lines after a prompt up to a blank line are its output.
        in_doctest = bool(line.strip()) and (in_doctest or bool(_PROMPT.match(line)))
        indent = len(line) - len(line.lstrip())
        if line.strip() and skip_deeper_than is not None:
            if indent > skip_deeper_than:
                continue
            skip_deeper_than = None
        if _DIRECTIVE.match(line):
            skip_deeper_than = indent
        cut = in_doctest or not line.strip() or any(pattern.match(line) for pattern in _NO_PROSE)
        start = _BULLET.match(line) or _PARAMETER.match(line)
        if block and (cut or start):
            yield block
            block = []
        if cut:
            continue
        text = line[start.end() :] if start else line
        if text.rstrip().endswith("::"):
            text, skip_deeper_than = text.rstrip()[:-1], indent
        block.append(text)


def _plain(text: str) -> str:
    """Text without markup of links and roles, with single spaces."""
    text = _ROLE.sub(r"`\1`", text)
    text = _LINK.sub(lambda match: match[1] or match[2] or "", text)
    return " ".join(text.replace("``", "`").replace("**", "").split())


def _reads_as_english(text: str) -> bool:
    words = text.split()
    if len(words) < MIN_WORDS or _TABLE.search(text):
        return False
    letters = sum(map(str.isalpha, text))
    if letters < MIN_LETTER_SHARE * (len(text) - len(words) + 1):
        return False
    return sum(_WORD.fullmatch(word) is not None for word in words) >= MIN_WORD_SHARE * len(words)


def read_source(path: str) -> list[str]:
    """Paragraphs of prose of one Python file; empty if it cannot be parsed."""
    try:
        source = Path(path).read_bytes()
        if len(source) > LARGEST_SOURCE_BYTES or GENERATED in source[:1024] or not _TRIPLE_QUOTE.search(source):
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the docstrings of others
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [paragraph for docstring in dict.fromkeys(_docstrings(tree)) for paragraph in prose(docstring)]


def _docstrings(node: ast.Module | ast.stmt | ast.ExceptHandler | ast.match_case) -> Iterator[str]:
    """Docstrings in source order; unlike `ast.walk`, expressions are not visited."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield docstring
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for statement in getattr(node, block, ()):
            yield from _docstrings(statement)


def installed(packages: Sequence[str] | None, key: str) -> Packages:
    """The installed packages by name, sorted; the standard library is `python`.

    Args:
        packages: Names as in `pip list`; None for all.
        key: Config key for messages.

    Raises:
        DataError: A package is not installed.
    """
    site = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    found: Packages = {STANDARD_LIBRARY: None}
    for distribution in distributions(path=sorted(site)):
        if name := distribution.metadata["Name"]:  # a broken installation has none
            found[_normal(name)] = distribution
    chosen = sorted(found) if packages is None else sorted({_normal(name) for name in packages})
    for name in chosen:
        if name not in found:
            raise DataError(
                f"{key}: the package '{name}' is not installed; use names as in `pip list`, or '{STANDARD_LIBRARY}'"
            )
    return {name: found[name] for name in chosen}


def source_files(packages: Packages) -> list[str]:
    """The .py files of packages in their order, without tests."""
    files: list[str] = []
    for distribution in packages.values():
        if distribution is None:
            root = Path(sysconfig.get_path("stdlib"))
            names = [path.relative_to(root).as_posix() for path in root.rglob("*.py")]
        else:
            root = Path(str(distribution.locate_file("")))
            # path,digest,size; `distribution.files` is much slower.
            names = [line.split(",")[0] for line in (distribution.read_text("RECORD") or "").splitlines()]
        kept = {name for name in names if name.endswith(".py") and SKIPPED_FOLDERS.isdisjoint(name.split("/"))}
        files += [f"{root}/{name}" for name in sorted(kept)]
    return list(dict.fromkeys(files))


def _identity(packages: Packages) -> dict[str, Any]:
    """Versions of the packages, of Python, and of the rules in this file."""
    versions = {name: found.version if found else platform.python_version() for name, found in packages.items()}
    return {"kind": "docstrings", "rules": RULES_VERSION, "versions": versions, "python": platform.python_version()}


def _write(files: list[str], path: Path, num_proc: int) -> None:
    """Write the distinct paragraphs of source files, in their order."""
    tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    seen: set[bytes] = set()
    with worker_pool(num_proc, gc.disable) as pool, path.open("w", encoding="utf-8", errors="replace") as stream:
        for paragraph in chain.from_iterable(pool.map(_read_sources, tasks)):
            digest = hashlib.blake2b(paragraph.encode("utf-8", "replace"), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                stream.write(paragraph + "\n")


def _read_sources(paths: Sequence[str]) -> list[str]:
    # The cycle collector, which would walk the trees repeatedly, is off in a worker.
    return [paragraph for path in paths for paragraph in read_source(path)]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
