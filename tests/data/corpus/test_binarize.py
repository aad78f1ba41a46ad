import errno
import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.common.tokenizers import describe, load_backend
from potstill.data.corpus.binarize import Framing, binarize, frame
from potstill.data.corpus.sources import TextFiles
from potstill.data.corpus.store import Corpus, TokenStore
from potstill.errors import DataError, FileError, WriteError

# ids: 0 [PAD] 1 [UNK] 2 [CLS] 3 [SEP] 4 [MASK] 5 the 6 cat 7 sat 8 ##s 9 on 10 mat 11 .
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "on", "mat", "."]
TEXT = "The cats sat on the mat."
IDS = [5, 6, 8, 7, 9, 5, 10, 11]


@pytest.fixture
def vocabulary(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return describe(folder)


def files(tmp_path, *lines, **changes):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return replace(TextFiles((str(path),), "line", None, None, tmp_path / "cache"), **changes)


def run(source, vocabulary, tmp_path, **options):
    defaults = {"cache": tmp_path / "cache", "max_length": 12, "min_length": 3, "num_proc": 1}
    return binarize(source, vocabulary, **defaults | options)


def sequences(store):
    ids, lengths = Corpus([store]).gather(np.arange(len(store.lengths)))
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_ids_lengths_counts_and_report(tmp_path, vocabulary):
    store = run(files(tmp_path, TEXT, "  ", "on the mat", "the"), vocabulary, tmp_path, min_length=4)
    assert sequences(store) == [[2, *IDS, 3], [2, 9, 5, 10, 3]]
    assert store.counts.tolist() == [0, 0, 2, 2, 0, 3, 1, 1, 1, 2, 2, 1]
    expected = {"texts": 3, "sequences": 2, "tokens": 15, "split": 0, "dropped_short": 1, "dropped_unknown": 0}
    assert store.index["report"] == expected
    assert store.shards[0]["tokens"].dtype == np.uint16


def test_split_restores_special_tokens(tmp_path, vocabulary):
    store = run(files(tmp_path, TEXT), vocabulary, tmp_path, max_length=5)
    assert sequences(store) == [[2, 5, 6, 8, 3], [2, 7, 9, 5, 3], [2, 10, 11, 3]]
    assert store.index["report"]["split"] == 1


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, 3, [[5, 6, 8, 7, 3], [9, 5, 10, 11, 3]]),
        (2, None, [[2, 5, 6, 8, 7], [2, 9, 5, 10, 11]]),
        (None, None, [[5, 6, 8, 7, 9], [5, 10, 11]]),
    ],
)
def test_tokenizers_without_start_or_end_tokens(tmp_path, vocabulary, start, end, expected):
    changed = replace(vocabulary, start_id=start, end_id=end)
    assert sequences(run(files(tmp_path, TEXT), changed, tmp_path, max_length=5)) == expected


@pytest.mark.parametrize("num_proc", [1, 2])
def test_packed_texts_fill_the_sequences_as_in_run_mlm(tmp_path, vocabulary, num_proc, monkeypatch):
    """transformers' `group_texts`: no token is lost but those of the last, short sequence."""
    monkeypatch.setattr("potstill.data.corpus.binarize.BATCH_CHARACTERS", 40)  # several batches
    lines = [TEXT, "", "on", "the mat .", "the cat sat on the mat . " * 3, "cats"] * 3 + ["on"]
    joined = []
    for line in lines:
        ids = load_backend(vocabulary.path).encode(line, add_special_tokens=False).ids
        joined += [2, *ids, 3] if ids else []
    for least, kept in ((1, True), (9, False)):
        store = run(
            files(tmp_path, *lines),
            vocabulary,
            tmp_path,
            max_length=9,
            min_length=least,
            packed=True,
            num_proc=num_proc,
        )
        expected = [joined[start : start + 9] for start in range(0, len(joined), 9)]
        assert 0 < len(expected[-1]) < 9
        assert sequences(store) == (expected if kept else expected[:-1])
        tally = store.index["report"]
        assert (tally["texts"], tally["sequences"]) == (len([*filter(None, lines)]), len(expected) - (not kept))
        assert tally["tokens"] == len(joined) - (0 if kept else len(expected[-1]))
        assert store.counts.tolist() == np.bincount(np.concatenate(sequences(store)), minlength=12).tolist()


def test_packed_sequences_are_another_store(tmp_path, vocabulary):
    source = files(tmp_path, *[TEXT] * 9)
    assert run(source, vocabulary, tmp_path).folder != run(source, vocabulary, tmp_path, packed=True).folder


def test_min_length(tmp_path, vocabulary):
    nine, ten = " ".join(["cat"] * 9), " ".join(["mat"] * 10)
    store = run(files(tmp_path, nine, ten), vocabulary, tmp_path, max_length=32, min_length=12)
    assert sequences(store) == [[2, *[10] * 10, 3]]
    assert store.index["report"]["dropped_short"] == 1


def test_max_unknown(tmp_path, vocabulary):
    # Of 8 tokens, special ones counted, 4 and 3 are unknown.
    half, less = "x x x x cat cat", "x x x mat mat mat"
    store = run(files(tmp_path, half, less), vocabulary, tmp_path)
    assert sequences(store) == [[2, 1, 1, 1, 10, 10, 10, 3]]
    assert store.index["report"]["dropped_unknown"] == 1


def test_truncation_and_padding_of_the_file_are_off(tmp_path, vocabulary):
    tokenizer = load_backend(vocabulary.path)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=30)
    (tmp_path / "json").mkdir()
    tokenizer.save(str(tmp_path / "json" / "tokenizer.json"))
    store = run(files(tmp_path, TEXT), describe(tmp_path / "json"), tmp_path)
    assert sequences(store) == [[2, *IDS, 3]]


def test_same_bytes_for_any_number_of_processes(tmp_path, vocabulary):
    lines = [" ".join(WORDS[5 + (number * step) % 7] for step in range(3, 60)) for number in range(6000)]
    source = files(tmp_path, *lines)
    done: list[int] = []
    one = run(source, vocabulary, tmp_path, cache=tmp_path / "one", progress=done.append)
    two = run(source, vocabulary, tmp_path, cache=tmp_path / "two", num_proc=2)
    assert len(done) > 4
    assert done[-1] == 6000
    assert contents(one.folder) == contents(two.folder)


def test_all_options_change_the_folder_of_the_store(tmp_path, vocabulary):
    folders = {
        run(files(tmp_path, TEXT), vocabulary, tmp_path).folder,
        run(files(tmp_path, TEXT), vocabulary, tmp_path, max_length=11).folder,
        run(files(tmp_path, TEXT), vocabulary, tmp_path, min_length=4).folder,
        run(files(tmp_path, TEXT), vocabulary, tmp_path, max_unknown=0.4).folder,
        run(files(tmp_path, TEXT), replace(vocabulary, end_id=None), tmp_path).folder,
        run(files(tmp_path, TEXT, max_examples=1), vocabulary, tmp_path).folder,
        run(files(tmp_path, TEXT.replace("cats", "mats")), vocabulary, tmp_path).folder,
    }
    assert len(folders) == 7
    assert run(files(tmp_path, TEXT), vocabulary, tmp_path, num_proc=2).folder in folders


def test_a_store_is_not_built_again(tmp_path, vocabulary):
    source = files(tmp_path, TEXT)
    first = run(source, vocabulary, tmp_path).folder
    before = (first / "index.json").stat()
    second = run(source, vocabulary, tmp_path).folder
    assert first == second
    assert (second / "index.json").stat().st_ino == before.st_ino


def test_all_texts_dropped(tmp_path, vocabulary):
    with pytest.raises(DataError, match=r"^text\.txt: [^\n]* 2 texts [^\n]* 1 [^\n]* 4 tokens [^\n]* 1 [^\n]*$"):
        run(files(tmp_path, "cat", "y y y y y y"), vocabulary, tmp_path, min_length=4)
    assert [path.suffix for path in (tmp_path / "cache" / "stores").iterdir()] == [".lock"]


def test_invalid_utf8_leaves_no_store(tmp_path, vocabulary):
    path = tmp_path / "deep.txt"
    path.write_bytes(f"{TEXT}\n".encode() * 100_000 + b"\xff\xfe\n")
    source = TextFiles((str(path),), "line", None, None, tmp_path / "cache")
    source.check()
    with pytest.raises(FileError, match=r"deep\.txt.*line 100001"):
        run(source, vocabulary, tmp_path, num_proc=2)
    assert [path.suffix for path in (tmp_path / "cache" / "stores").iterdir()] == [".lock"]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_full_disk(tmp_path, vocabulary, num_proc):
    source = files(tmp_path, *[TEXT] * 30_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"stores") as caught:
            run(source, vocabulary, tmp_path, num_proc=num_proc)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert [path.suffix for path in (tmp_path / "cache" / "stores").iterdir()] == [".lock"]


def test_max_length_below_the_special_tokens(tmp_path, vocabulary):
    with pytest.raises(DataError, match=r"^data\.max_length=2: .* 3,"):
        run(files(tmp_path, TEXT), vocabulary, tmp_path, max_length=2)


# Binarizes in two processes, prints the number of texts after each batch, and waits for an answer.
KILLED = """
import sys
from pathlib import Path
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.sources import TextFiles
from potstill.data.common.tokenizers import describe
root = Path(sys.argv[1])
source = TextFiles((str(root / "text.txt"),), "line", None, None, root / "cache")
binarize(source, describe(root / "tokenizer"), cache=root / "cache", max_length=12, min_length=3, num_proc=2,
         progress=lambda done: (print(done, flush=True), sys.stdin.readline()))
"""


def test_a_killed_run_leaves_no_store(tmp_path, vocabulary):
    source = files(tmp_path, *[TEXT] * 30_000)
    script = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        children = _children(process.pid)
        process.send_signal(signal.SIGKILL)
    stores = tmp_path / "cache" / "stores"
    assert [path for path in stores.iterdir() if ".tmp-" in path.name]
    assert not [path for path in stores.iterdir() if path.is_dir() and ".tmp-" not in path.name]

    again = run(source, vocabulary, tmp_path, num_proc=2)
    clean = run(source, vocabulary, tmp_path, cache=tmp_path / "clean")
    assert contents(again.folder) == contents(clean.folder)
    assert not [path for path in stores.iterdir() if ".tmp-" in path.name]
    _wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_two_runs_at_once_share_one_build(tmp_path, vocabulary):
    source = files(tmp_path, *[TEXT] * 30_000)
    script = [sys.executable, "-c", KILLED, str(tmp_path)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    runs = [subprocess.Popen(script, text=True, **pipes) for _ in range(2)]
    outputs = [process.communicate()[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0]
    assert sorted(bool(output) for output in outputs) == [False, True]  # the waiting one has built nothing
    assert len(TokenStore.open(run(source, vocabulary, tmp_path).folder).lengths) == 30_000


def _children(parent):
    tasks = Path(f"/proc/{parent}/task")
    if not tasks.is_dir():
        return []
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def _wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "worker processes outlive their parent"
        time.sleep(0.05)


TEXTS = st.lists(st.lists(st.integers(0, 9), max_size=30), min_size=1, max_size=12)
SPECIAL = st.sampled_from([None, 10])


@settings(max_examples=200, deadline=None)
@given(texts=TEXTS, start=SPECIAL, end=SPECIAL, max_length=st.integers(3, 12), min_length=st.integers(1, 6))
def test_every_kept_sequence_is_recoverable(texts, start, end, max_length, min_length):
    unknown = 0
    framing = Framing(start, end, unknown, max_length, min_length, 0.5)
    flat = np.array(list(chain.from_iterable(texts)), dtype=np.uint16)
    ids, lengths, tally = frame(flat, np.array([len(text) for text in texts], dtype=np.int64), framing)

    expected, short, strange = [], 0, 0
    for text in texts:
        body = max_length - framing.specials
        for at in range(0, max(len(text), 1), body):
            piece = text[at : at + body]
            whole = [start] * (start is not None) + piece + [end] * (end is not None)
            if len(whole) < min_length or not piece:
                short += 1
            elif piece.count(unknown) / len(whole) >= 0.5:
                strange += 1
            else:
                expected.append(whole)
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(sequence) for sequence in expected]
    assert (tally.dropped_short, tally.dropped_unknown) == (short, strange)
    assert (tally.texts, tally.sequences, tally.tokens) == (len(texts), len(expected), len(ids))


DATA = os.environ.get("POTSTILL_DATA_DIR")


@pytest.mark.skipif(not DATA, reason="POTSTILL_DATA_DIR is not set: no real text")
@pytest.mark.parametrize("tokenizer", ["bert-base-uncased", "roberta-gpt2-bpe"])
def test_real_text(tmp_path, tokenizer):
    path = Path(DATA) / "corpus" / "wikitext-2" / "valid.txt.gz"
    source = TextFiles((str(path),), "line", None, 1500, tmp_path)
    source.check()
    vocabulary = describe(Path(DATA) / "tokenizers" / tokenizer)
    store = binarize(source, vocabulary, cache=tmp_path, max_length=128, num_proc=2)
    backend = load_backend(vocabulary.path)
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        lines = [line.strip() for line in stream if line.strip()][:1500]
    expected = []
    for line in lines:
        ids = backend.encode(line, add_special_tokens=False).ids
        pieces = [[vocabulary.start_id, *ids[at : at + 126], vocabulary.end_id] for at in range(0, len(ids), 126)]
        expected += [piece for piece in pieces if len(piece) >= 12 and piece.count(vocabulary.unk_id) < len(piece) / 2]
    assert sequences(store) == expected
    assert store.index["report"]["texts"] == 1500
    assert store.counts.sum() == sum(map(len, expected))
