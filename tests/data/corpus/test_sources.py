import gzip
import json
import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.corpus.sources import HubDataset, SavedDataset, TextFiles
from potstill.errors import DataError, FileError, FormatError

DATA = os.environ.get("POTSTILL_DATA_DIR")


def files(tmp_path, *contents, unit="line", skip=None, max_examples=None):
    paths = []
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(str(path))
    return TextFiles(tuple(paths), unit, skip, max_examples, tmp_path / "cache")


def texts(source, size=10):
    return [text for batch in source.batches(size) for text in batch]


def error(source):
    """Code and text of the error of a check."""
    with pytest.raises(DataError) as caught:
        source.check()
    assert "\n" not in str(caught.value)
    return f"{caught.value.code} {caught.value}"


def test_lines(tmp_path):
    source = files(tmp_path, "\ufeffone\r\n\n  two \n\u2028\nth\u2028ree", "four\n")
    source.check()
    assert texts(source) == ["one", "two", "th\u2028ree", "four"]
    assert source.name == "0.txt, 1.txt"


def test_paragraphs_end_at_blank_lines_and_files(tmp_path):
    source = files(tmp_path, "one\n two\n\n \nthree\n", "four", unit="paragraph")
    assert texts(source) == ["one two", "three", "four"]


def test_skip_and_max_examples(tmp_path):
    source = files(tmp_path, '<doc id="1">\none\n</doc>\ntwo\nthree\n', skip="^</?doc", max_examples=2)
    assert texts(source) == ["one", "two"]


def test_batches_are_about_as_large_as_asked(tmp_path):
    source = files(tmp_path, "four\n" * 100)
    assert [len(batch) for batch in source.batches(40)] == [10] * 10
    assert [len(batch) for batch in source.batches(10**6)] == [100]


def test_gzip_and_plain_give_the_same(tmp_path):
    plain = files(tmp_path, "one\n\ntwo\n" * 1000)
    with gzip.open(tmp_path / "a.txt.gz", "wb") as stream:
        stream.write(Path(plain.files[0]).read_bytes())
    packed = replace(plain, files=(str(tmp_path / "a.txt.gz"),))
    packed.check()
    assert texts(packed) == texts(plain)


@settings(max_examples=50, deadline=None)
@given(
    content=st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))),
    size=st.integers(1, 50),
)
def test_no_text_is_lost(tmp_path_factory, content, size):
    source = files(tmp_path_factory.mktemp("lines"), "\n".join(content))
    expected = [line.strip() for line in content]
    if expected:
        expected[0] = content[0].removeprefix("\ufeff").strip()
    assert texts(source, size) == [line for line in expected if line]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"a\0b\n", "NUL"), (b"fine\nbad \xff\n", "UTF-8 (line 2)")]
)
def test_bad_content_is_found_by_the_check(tmp_path, content, message):
    source = files(tmp_path, content)
    with gzip.open(tmp_path / "bad.gz", "wb") as stream:
        stream.write(content)
    for file in (source.files[0], str(tmp_path / "bad.gz")):
        text = error(replace(source, files=(file,), key="data.eval_files"))
        assert text.startswith(f"E-FILE data.eval_files: '{file}' ")
        assert message in text


def test_a_character_cut_by_the_first_mebibyte_is_fine(tmp_path):
    files(tmp_path, b"a" * (2**20 - 1) + "é\n".encode()).check()


def test_files_that_cannot_be_used(tmp_path):
    source = files(tmp_path, "fine\n")
    (tmp_path / "not.gz").write_text("plain")
    for file in (tmp_path / "missing.txt", tmp_path, tmp_path / "not.gz"):
        assert error(replace(source, files=(str(file),))).startswith(f"E-FILE data.train_files: '{file}' ")


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"files": ()}, "data.train_files=[]"), ({"unit": "page"}, "data.unit=page"), ({"skip": "("}, "data.skip=(")],
)
def test_invalid_options(tmp_path, changes, named):
    assert f" {named}: " in error(replace(files(tmp_path, "fine\n"), **changes))


@pytest.mark.parametrize("name", ["deep.txt", "deep.txt.gz"])
def test_bad_utf8_deep_in_a_file_names_the_line(tmp_path, name):
    content = b"a line of text\n" * 200_000 + b"\xff\n"
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    source = TextFiles((str(tmp_path / name),), "line", None, None, tmp_path)
    source.check()
    with pytest.raises(FileError, match=rf"^data\.train_files: '.*{name}' .*line 200001"):
        texts(source, 10**6)


def test_a_gzip_file_that_ends_early(tmp_path):
    lines = "".join(f"line {number} {number**3}\n" for number in range(300_000)).encode()
    path = tmp_path / "short.gz"
    path.write_bytes(gzip.compress(lines)[:-1000])
    source = TextFiles((str(path),), "line", None, None, tmp_path)
    source.check()
    with pytest.raises(FileError, match=r"short\.gz' .* line \d+"):
        texts(source, 10**6)


def age(path, seconds):
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def test_fingerprint_follows_content_and_options(tmp_path):
    source = files(tmp_path, "one\n")
    first = source.fingerprint()
    assert files(tmp_path, "two\n").fingerprint() != first
    assert files(tmp_path, "one\n").fingerprint() == first
    changes = {"unit": "paragraph", "skip": "x", "max_examples": 1, "files": source.files * 2}
    for name, value in changes.items():
        assert replace(source, **{name: value}).fingerprint() != first


def test_digests_of_unchanged_files_are_stored(tmp_path):
    source = files(tmp_path, "one\n")
    source.fingerprint()
    assert not (tmp_path / "cache" / "digests").exists()  # it may change within the same instant
    age(source.files[0], 60)
    first = source.fingerprint()
    (remembered,) = (tmp_path / "cache" / "digests").iterdir()
    remembered.write_text("0" * 64)
    assert source.fingerprint()["sha256"] == ["0" * 64]
    remembered.write_text("0" * 63)  # as of a killed process
    assert source.fingerprint() == first
    age(source.files[0], 50)
    assert source.fingerprint() == first


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("saved")
    rows = datasets.Dataset.from_dict({"text": ["one", " ", "two", None], "number": [1, 2, 3, 4]})
    other = datasets.Dataset.from_dict({"text": ["three"], "number": [1]})
    rows.save_to_disk(root / "dataset")
    datasets.DatasetDict({"train": rows, "test": other}).save_to_disk(root / "dict")
    return root


def test_saved_data_sets(saved):
    whole = SavedDataset(str(saved / "dataset"))
    whole.check()
    assert texts(whole) == ["one", "two"]
    assert texts(replace(whole, max_examples=1)) == ["one"]
    train, test = SavedDataset(str(saved / "dict")), SavedDataset(str(saved / "dict"), split="test")
    test.check()
    assert texts(train) == ["one", "two"]
    assert texts(test) == ["three"]
    assert len({str(source.fingerprint()) for source in (train, test, replace(test, column="number"))}) == 3
    state = json.loads((saved / "dict" / "test" / "state.json").read_text())
    (data,) = (saved / "dict" / "test").glob("*.arrow")
    identity = {"kind": "saved", "fingerprint": state["_fingerprint"], "bytes": [data.stat().st_size]}
    assert test.fingerprint() == identity | {"column": "text", "max_examples": None}


def test_saved_data_sets_that_cannot_be_used(saved, tmp_path):
    source = SavedDataset(str(saved / "dict"), key="data.train.0")
    assert "data.train.0.split=dev: " in error(replace(source, split="dev"))
    assert "train, test" in error(replace(source, split="dev"))
    assert error(replace(source, column="body")).startswith("E-FORMAT data.train.0.column=body: ")
    assert error(replace(source, column="number")).startswith("E-FORMAT data.train.0.column=number: ")
    shutil.copytree(saved / "dataset", tmp_path / "broken")
    next((tmp_path / "broken").glob("*.arrow")).unlink()
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "broken"):
        assert error(replace(source, path=str(folder))).startswith(f"E-FILE data.train.0: '{folder} ")


def test_a_folder_of_data_files_loads_as_from_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    source = HubDataset(str(tmp_path / "data"))
    source.check()
    assert texts(source) == ["one", "two"]
    assert source.fingerprint() == source.fingerprint()
    with pytest.raises(FormatError, match=r"^data\.dataset\.column=body"):
        texts(replace(source, column="body"))


def test_old_names_are_mapped():
    assert HubDataset("wikitext").path == "Salesforce/wikitext"
    assert HubDataset("bookcorpus").path == "bookcorpus/bookcorpus"


def test_the_hub_without_network(monkeypatch):
    pytest.importorskip("datasets")

    def no_network(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    begun = time.monotonic()
    text = error(HubDataset("wikitext", config="wikitext-2-raw-v1"))
    assert time.monotonic() - begun < 10  # datasets itself would retry for half a minute
    assert text.startswith("E-FILE data.dataset: 'Salesforce/wikitext")
    assert "data.train_files" in text


@pytest.mark.skipif(not DATA, reason="POTSTILL_DATA_DIR is not set: no real text")
def test_real_files(tmp_path):
    enwiki = Path(DATA) / "corpus" / "enwiki" / "enwiki_AA_00-09.txt.gz"
    source = TextFiles((str(enwiki),), "line", "^</?doc", None, tmp_path)
    source.check()
    found = texts(source, 2**18)
    with gzip.open(enwiki, "rt", encoding="utf-8", newline="\n") as stream:
        lines = [line.strip() for line in stream if not line.startswith(("<doc", "</doc"))]
    assert found == [line for line in lines if line]
    paragraphs = texts(replace(source, unit="paragraph"), 2**18)
    assert 648 <= len(paragraphs) < len(found)
    assert " ".join(paragraphs) == " ".join(found)
