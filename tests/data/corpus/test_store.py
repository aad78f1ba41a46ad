import pickle
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.corpus.store import Corpus, StoreWriter, TokenStore, token_dtype
from potstill.errors import CacheError, TokenizerError

REPORT = {"texts": 3, "sequences": 3, "tokens": 9, "split": 0, "dropped_short": 1, "dropped_unknown": 0}


def write(folder, sequences, vocabulary_size=100, tokenizer="t", shard_tokens=1000, source=None, at_once=2):
    folder.mkdir(parents=True)
    writer = StoreWriter(folder, vocabulary_size, shard_tokens)
    for start in range(0, len(sequences), at_once):
        block = sequences[start : start + at_once]
        lengths = np.array([len(sequence) for sequence in block], dtype=np.int32)
        writer.add(np.array(list(chain.from_iterable(block)), dtype=token_dtype(vocabulary_size)), lengths)
    writer.close(source or {"kind": "test"}, tokenizer, {"max_length": 8}, REPORT)
    return folder


def cut(ids, lengths):
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def test_layout(tmp_path):
    folder = write(tmp_path / "s", [[1, 2, 3], [4, 5], [6, 7, 8, 9]], shard_tokens=6)
    assert sorted(path.name for path in folder.iterdir()) == [
        "counts.npy",
        "ends-00000.npy",
        "ends-00001.npy",
        "index.json",
        "tokens-00000.npy",
        "tokens-00001.npy",
    ]
    assert np.load(folder / "tokens-00000.npy").tolist() == [1, 2, 3, 4, 5]
    assert np.load(folder / "tokens-00001.npy").tolist() == [6, 7, 8, 9]
    assert np.load(folder / "ends-00000.npy").tolist() == [3, 5]
    assert np.load(folder / "ends-00001.npy").tolist() == [4]
    assert np.load(folder / "counts.npy").tolist() == [0] + [1] * 9 + [0] * 90
    store = TokenStore.open(folder)
    assert store.lengths.tolist() == [3, 2, 4]
    assert [(shard["items"], shard["rows"]) for shard in store.index["shards"]] == [(2, 5), (1, 4)]
    assert store.index["report"] == REPORT


@pytest.mark.parametrize(("size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_smallest_type(tmp_path, size, dtype):
    store = TokenStore.open(write(tmp_path / "s", [[size - 1, 0]], vocabulary_size=size))
    tokens = store.shards[0]["tokens"][:, 0]
    assert tokens.dtype == dtype
    assert tokens.tolist() == [size - 1, 0]


@pytest.mark.parametrize("file", ["tokens-00001.npy", "ends-00000.npy", "counts.npy", "index.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_store_is_rejected(tmp_path, file, damage):
    folder = write(tmp_path / "s", [[1, 2, 3], [4, 5], [6, 7, 8, 9]], shard_tokens=6)
    content = bytearray((folder / file).read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        (folder / file).write_bytes(content)
    elif damage == "truncate":
        (folder / file).write_bytes(content[:-2])
    else:
        (folder / file).unlink()
    with pytest.raises(CacheError, match=file):
        TokenStore.open(folder)


def test_an_altered_index_is_rejected(tmp_path):
    folder = write(tmp_path / "s", [[1, 2, 3]])
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"texts": 3', '"texts": 4'))
    with pytest.raises(CacheError, match=r"index\.json"):
        TokenStore.open(folder)


def test_pickled_arrays_are_rejected(tmp_path):
    folder = write(tmp_path / "s", [[1, 2, 3]])
    np.save(folder / "counts.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CacheError, match=r"counts\.npy"):
        TokenStore.open(folder)


def test_join(tmp_path):
    a = TokenStore.open(write(tmp_path / "a", [[1, 2, 3], [4, 5], [6, 7, 8, 9]], shard_tokens=6))
    b = TokenStore.open(write(tmp_path / "b", [[9], [8, 8]]))
    corpus = Corpus([a, b])
    assert len(corpus) == 5
    assert corpus.lengths.tolist() == [3, 2, 4, 1, 2]
    assert corpus.token_counts[:10].tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 3, 2]
    assert cut(*corpus.gather([4, 0, 2, 0])) == [[8, 8], [1, 2, 3], [6, 7, 8, 9], [1, 2, 3]]
    assert corpus.describe() == {name: 2 * count for name, count in REPORT.items()}
    ids, lengths = corpus.gather([])
    assert ids.shape == lengths.shape == (0,)
    for outside in ([5], [-1]):
        with pytest.raises(IndexError):
            corpus.gather(outside)


def test_stores_of_different_tokenizers_do_not_join(tmp_path):
    a = TokenStore.open(write(tmp_path / "a", [[1]], tokenizer="t"))
    b = TokenStore.open(write(tmp_path / "b", [[1]], tokenizer="u"))
    with pytest.raises(TokenizerError, match=r"^data\.tokenizer"):
        Corpus([a, b])


def test_pickles_have_no_values(tmp_path):
    corpus = Corpus([TokenStore.open(write(tmp_path / "s", [[1, 2]] * 5000, shard_tokens=10**6, at_once=500))])
    message = pickle.dumps(corpus)
    assert len(message) < 1000
    assert cut(*pickle.loads(message).gather([4999])) == [[1, 2]]


SEQUENCES = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(stores=st.lists(SEQUENCES, min_size=1, max_size=3), shard_tokens=st.integers(1, 60), data=st.data())
def test_gather_equals_indexing(tmp_path_factory, stores, shard_tokens, data):
    root = tmp_path_factory.mktemp("gather")
    at_once = data.draw(st.integers(1, 7))
    opened = [
        TokenStore.open(write(root / str(number), sequences, shard_tokens=shard_tokens, at_once=at_once))
        for number, sequences in enumerate(stores)
    ]
    every = list(chain.from_iterable(stores))
    indices = data.draw(st.lists(st.integers(0, len(every) - 1), min_size=1, max_size=40))
    corpus = Corpus(opened)
    assert cut(*corpus.gather(np.array(indices))) == [every[index] for index in indices]
    assert corpus.token_counts.tolist() == np.bincount(list(chain.from_iterable(every)), minlength=100).tolist()
    for shard in (shard for store in opened for shard in store.index["shards"]):
        assert shard["rows"] <= shard_tokens or shard["items"] == 1
