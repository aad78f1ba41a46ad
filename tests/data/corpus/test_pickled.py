"""Pickles of the published scripts: all protocols and types, and files that are hostile, truncated or of others."""

import os
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest

from potstill.data.common.tokenizers import describe, load_backend
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.pickled import PickledTokens, check_pickle, read_arrays, read_counts
from potstill.data.corpus.sources import TextFiles
from potstill.errors import FileError, FormatError, TokenizerError

ARRAYS = [np.array([2, 9, 4, 3], dtype=np.uint16), np.array([2, 3], dtype=np.uint16), np.arange(3000, dtype=np.uint16)]


def written(folder, content, protocol=pickle.HIGHEST_PROTOCOL):
    file = folder / "tokens.pickle"
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return file


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, ">i4"])
def test_arrays_of_every_protocol_are_read(protocol, dtype, tmp_path):
    arrays = [np.array(array, dtype=dtype) for array in [*ARRAYS, []]]
    found = list(read_arrays(written(tmp_path, arrays, protocol), "k"))
    assert [ids.tolist() for ids in found] == [array.tolist() for array in arrays]
    assert {ids.dtype for ids in found} == {arrays[0].dtype}


@pytest.mark.parametrize("protocol", [2, 3])
def test_names_of_earlier_numpy_are_read(protocol, tmp_path):
    new = pickle.dumps(ARRAYS, protocol=protocol)
    old = new.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    assert old != new
    assert [ids.tolist() for ids in read_arrays(written(tmp_path, old), "k")] == [ids.tolist() for ids in ARRAYS]


def test_views_are_read(tmp_path):
    whole = np.arange(20, dtype=np.int32)
    frozen = whole[5:9].copy()
    frozen.flags.writeable = False
    found = read_arrays(written(tmp_path, [whole[::2], whole[3:6], frozen]), "k")
    assert [ids.tolist() for ids in found] == [whole[::2].tolist(), [3, 4, 5], [5, 6, 7, 8]]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_counts_are_read(protocol, tmp_path):
    counts = [0, 5, 2**20, 2**40]
    assert read_counts(written(tmp_path, counts, protocol), 4).tolist() == counts
    with pytest.raises(TokenizerError, match=r"^data\.token_counts=.*counts 4 tokens, and the tokenizer has 5"):
        read_counts(written(tmp_path, counts, protocol), 5)


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def named(module, name, *tail):
    """A pickle of protocol 2 that names a function."""
    return b"\x80\x02]c" + f"{module}\n{name}\n".encode() + b"".join(tail)


TWO = np.arange(4, dtype=np.uint16).reshape(2, 2)
HOSTILE = {
    "system": lambda mark: [Calls(os.system, f"touch {mark}")],
    "eval": lambda mark: [Calls(eval, f"open({str(mark)!r}, 'w')")],
    "open": lambda mark: [Calls(open, str(mark), "w")],
    "attribute": lambda mark: named("posix", "system", b"X", struct.pack("<I", 0), b"\x85Ra."),
    "dotted": lambda mark: b"\x80\x04]\x8c\x05numpy\x8c\x0edtype.__init__\x93a.",
    "module of numpy": lambda mark: named("numpy", "load", b"a."),
    "other name of the module": lambda mark: named("numpy.core.multiarray", "fromfile", b"a."),
    "mark in the array": lambda mark: [ARRAYS[0], [Calls(os.mkdir, str(mark))]],
    "state of a function": lambda mark: named("numpy.core.multiarray", "_reconstruct", b"}X\x01\x00\x00\x00aK\x01sba."),
    "state of a class": lambda mark: named("numpy", "ndarray", b"}X\x01\x00\x00\x00aK\x01sba."),
    "array without state": lambda mark: named("numpy.core.multiarray", "_reconstruct", b")Ra."),
    "class in place of an array": lambda mark: named("numpy", "ndarray", b"a."),
    "persistent id": lambda mark: b"\x80\x02]Px\na.",
    "extension": lambda mark: b"\x80\x02]\x82\x01a.",
    "out of band": lambda mark: b"\x80\x05]\x97a.",
    "stack": lambda mark: b"\x80\x02\x30\x30.",
    "objects": lambda mark: [np.array([1, "a", None], dtype=object)],
    "floats": lambda mark: [np.array([1.0, 2.0])],
    "two dimensions": lambda mark: [TWO],
    "no dimension": lambda mark: [np.array(3, dtype=np.uint16)],
    "records": lambda mark: [np.zeros(2, dtype=[("a", "u2")])],
    "huge": lambda mark: pickle.dumps([np.arange(3000, dtype=np.uint16)], protocol=4).replace(
        b"M" + struct.pack("<H", 3000), b"M" + struct.pack("<H", 60000)
    ),
    "a memo of 64 GB": lambda mark: b"\x80\x02]r\xff\xff\xff\xfe.",
    "a large integer": lambda mark: b"\x80\x02]\x8b\xff\xff\xff\x7f.",
    "more behind the end": lambda mark: pickle.dumps(ARRAYS) + pickle.dumps(ARRAYS),
    "a petabyte": lambda mark: b"\x80\x04]\x8e" + struct.pack("<Q", 2**50) + b"aa.",
    "dictionary": lambda mark: {"a": ARRAYS[0]},
    "tuple": lambda mark: tuple(ARRAYS),
    "nothing": lambda mark: [],
    "lists": lambda mark: [[2, 9, 3]],
    "integers": lambda mark: [2, 9, 3],
    "repeated": lambda mark: [ARRAYS[2]] * 50,
    "protocol 0": lambda mark: pickle.dumps(ARRAYS, protocol=0),
    "protocol 9": lambda mark: b"\x80\x09].",
    "text": lambda mark: b"the man\n",
    "zip": lambda mark: b"PK\x03\x04.",
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("read", [read_arrays, lambda path, key: read_counts(path, 3, key)], ids=["arrays", "counts"])
def test_hostile_files_are_rejected_and_call_nothing(case, read, tmp_path):
    mark = tmp_path / "mark"
    file = written(tmp_path, HOSTILE[case](mark))
    if case == "integers" and read is not read_arrays:
        return
    with pytest.raises(FormatError, match=r"^k=.*; expected a list of integer") as error:
        list(read(file, "k"))
    assert "\n" not in str(error.value)
    assert not mark.exists()
    assert [ids.tolist() for ids in read_arrays(written(tmp_path, ARRAYS), "k")] == [ids.tolist() for ids in ARRAYS]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_truncated_files_are_rejected(protocol, tmp_path):
    whole = pickle.dumps(ARRAYS[:2], protocol=protocol)
    for end in range(len(whole)):
        for tail in (b"", b"."):
            if whole[:end] + tail == whole:
                continue
            with pytest.raises(FormatError):
                list(read_arrays(written(tmp_path, whole[:end] + tail), "k"))


@pytest.mark.parametrize("counts", [[1, -1, 2], [1, 2.5, 3], [1, True, 3], [1, 2**63, 3], [1, "2", 3]])
def test_counts_are_whole_numbers(counts, tmp_path):
    with pytest.raises(FormatError):
        read_counts(written(tmp_path, counts), 3)


def test_files_are_regular_and_bounded(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        check_pickle(tmp_path / "none", "k", 100)
    with pytest.raises(FileError, match="is a folder"):
        check_pickle(tmp_path, "k", 100)
    file = written(tmp_path, ARRAYS)
    with pytest.raises(FileError, match=r"more than 100;"):
        check_pickle(file, "k", 100)
    check_pickle(file, "k", file.stat().st_size)


@pytest.fixture
def texts(words):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, rng.integers(3, 60))) for _ in range(60)]


@pytest.fixture
def source(texts, bert_tokenizer, tmp_path):
    """The texts as the published script binarizes them: a list of `[CLS] text [SEP]`."""
    backend = load_backend(bert_tokenizer)
    vocabulary = describe(bert_tokenizer)
    encoded = [
        np.uint16([vocabulary.start_id, *backend.encode(text, add_special_tokens=False).ids, vocabulary.end_id])
        for text in texts
    ]
    return PickledTokens(str(written(tmp_path, encoded)), None, tmp_path / "cache")


def built(source, vocabulary, cache):
    return binarize(source, vocabulary, cache=cache, max_length=32, min_length=6, num_proc=1)


def test_a_pickle_is_binarized_as_its_texts(texts, source, bert_tokenizer, tmp_path):
    vocabulary = describe(bert_tokenizer)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts) + "\n")
    text = TextFiles((str(file),), "line", None, None, tmp_path / "cache")
    one, other = (built(own, vocabulary, tmp_path / "cache") for own in (source, text))
    assert one.lengths.tolist() == other.lengths.tolist()
    assert one.counts.tolist() == other.counts.tolist()
    assert one.index["report"] == other.index["report"]
    for name in ("tokens", "counts"):
        assert [path.read_bytes() for path in sorted(one.folder.glob(f"*{name}*"))] == [
            path.read_bytes() for path in sorted(other.folder.glob(f"*{name}*"))
        ]
    assert built(source, vocabulary, tmp_path / "cache").folder == one.folder


def test_a_part_is_held_out(source, bert_tokenizer, tmp_path):
    vocabulary = describe(bert_tokenizer)
    parts = [replace(source, share=0.3, part=part) for part in ("train", "eval")]
    stores = [built(part, vocabulary, tmp_path / "cache") for part in parts]
    whole = built(source, vocabulary, tmp_path / "cache")
    counts = [store.index["report"]["texts"] for store in stores]
    assert sum(counts) == 60
    assert 5 < counts[1] < 35
    assert sum(store.counts for store in stores).tolist() == whole.counts.tolist()
    assert len({store.folder for store in (*stores, whole)}) == 3


def test_the_first_texts_alone(source, bert_tokenizer, tmp_path):
    first = replace(source, max_examples=7)
    assert built(first, describe(bert_tokenizer), tmp_path / "cache").index["report"]["texts"] == 7


@pytest.mark.parametrize("ids", [[5, 6, 3], [2, 6, 5], [2], [2, 60000, 3]])
def test_another_tokenizer_is_rejected(ids, bert_tokenizer, tmp_path):
    vocabulary = describe(bert_tokenizer)
    assert (vocabulary.start_id, vocabulary.end_id) == (2, 3)
    source = PickledTokens(str(written(tmp_path, [np.uint16([2, 5, 3]), np.uint16(ids)])), None, tmp_path)
    with pytest.raises(TokenizerError, match=r"^data\.train=.*data\.tokenizer="):
        list(source.batches(100, vocabulary))
