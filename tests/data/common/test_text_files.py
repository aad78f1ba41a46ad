"""Reading files: limits of memory, and regular files only."""

import gzip
import os
import re

import pytest

from potstill.data.common import text_files
from potstill.data.common.text_files import file_problem, paragraphs, read_document, read_lines, skipping
from potstill.data.corpus.sources import TextFiles
from potstill.data.rationales.files import records_of
from potstill.data.tasks.columns import ColumnSource
from potstill.data.tasks.questions import QuestionSource
from potstill.data.tasks.sources import DataFile
from potstill.errors import DataError, FileError, FormatError
from potstill.runtime.small_files import small_text


@pytest.fixture
def narrow(monkeypatch):
    """Small limits, which small files exceed."""
    monkeypatch.setattr(text_files, "LINE_BYTES", 1000)
    monkeypatch.setattr(text_files, "READ_BYTES", 100)
    monkeypatch.setattr(text_files, "DOCUMENT_BYTES", 5000)


def written(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\nlast"])
def test_lines_do_not_depend_on_the_blocks(narrow, tmp_path, name, end):
    lines = ["", "a", "é" * 99, "x" * 1000, "", "z" * 250, "\u2028y"]
    path = written(tmp_path / name, "\n".join(lines).encode() + end)
    assert list(read_lines(path, "data.train_files")) == [*lines, *(["last"] if end == b"\nlast" else [])]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("length", [1001, 1099, 1100, 100_000])
def test_the_number_of_a_line_that_is_too_long(narrow, tmp_path, name, length):
    path = written(tmp_path / name, b"first\nsecond\n" + b"x" * length + b"\nlast\n")
    with pytest.raises(FormatError, match=rf"^data\.train_files: '{re.escape(str(path))}' line 3"):
        list(read_lines(path, "data.train_files"))


def test_a_compressed_line_is_read_up_to_the_limit(tmp_path, monkeypatch):
    """A megabyte that unpacks to a gigabyte without a line end."""
    monkeypatch.setattr(text_files, "LINE_BYTES", 2**20)
    part = gzip.compress(b"x" * 2**24)
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(part * 64)
    read = []
    opened = text_files._open

    class Counting:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def read(self, size):
            read.append(size)
            return self.stream.read(size)

    monkeypatch.setattr(text_files, "_open", lambda path: Counting(opened(path)))
    with pytest.raises(FormatError, match="line 1"):
        list(read_lines(path, "data.train_files"))
    monkeypatch.setattr(text_files, "DOCUMENT_BYTES", 2**22)
    with pytest.raises(FormatError, match=r"^benchmark\.train_file: .*4,194,304"):
        read_document(path, "benchmark.train_file")
    assert sum(read) < 2**24


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".json", ".txt.gz"])
def test_files_of_tasks(narrow, tmp_path, suffix):
    path = written(tmp_path / f"a{suffix}", b"label\ttext\n" + b"x" * 6000)
    with pytest.raises(DataError, match=r"benchmark\.train_file") as caught:
        list(DataFile(path).records())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".xml", ".json.gz"])
def test_files_of_rationales(narrow, tmp_path, suffix):
    path = written(tmp_path / f"a{suffix}", b'["' + b"x" * 6000 + b'"]')
    with pytest.raises(DataError, match=r"data\.folder"):
        records_of(path, "data.folder")


def test_column_files_and_questions(narrow, tmp_path):
    path = written(tmp_path / "a.txt", b"word O\n" + b"x" * 6000)
    with pytest.raises(DataError, match=r"benchmark\.train_file.*line 2"):
        ColumnSource(DataFile(path)).read()
    with pytest.raises(DataError, match=r"benchmark\.train_file"):
        QuestionSource(DataFile(path)).read()


def test_a_document_may_have_one_long_line(narrow, tmp_path):
    path = written(tmp_path / "a.json", b'["' + b"x" * 4000 + b'"]')
    assert len(read_document(path, "k")) == 4004


def test_a_paragraph_has_a_limit(narrow):
    assert list(paragraphs(["a", "b", "", "c" * 1000, "", ""], "k: 'f'")) == ["a b", "c" * 1000]
    with pytest.raises(FormatError, match=r"^k: 'f' line 4"):
        list(paragraphs(["a", "", "b" * 600, "c" * 600], "k: 'f'"))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_a_named_pipe_is_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert file_problem(tmp_path / name) == "is not a regular file"
    with pytest.raises(FileError, match=rf"^generation\.prompts=.*{name}: "):
        small_text(tmp_path / name, "generation.prompts")
    with pytest.raises(FileError, match=rf"^data\.train_files: .*{name}' "):
        TextFiles((str(tmp_path / name),), "line", None, None, tmp_path).check()


@pytest.mark.parametrize("pattern", [r"(a|aa)+$", r"^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_a_pattern_that_takes_long_is_rejected(monkeypatch, pattern):
    monkeypatch.setattr(text_files, "SEARCH_SECONDS", 0.2)
    skipped = skipping(pattern)
    assert not skipped("b!")
    with pytest.raises(DataError, match=r"data\.skip=") as caught:
        skipped("a" * 5000 + "!")
    assert pattern in str(caught.value)


def test_search_and_invalid_patterns():
    assert skipping("^</?doc")("<doc id=1>")
    assert not skipping("^</?doc")("a <doc>")
    with pytest.raises(DataError, match=r"data\.skip=\("):
        skipping("(")
