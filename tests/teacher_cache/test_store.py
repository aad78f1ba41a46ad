"""Stores of teacher outputs: reading in any order, identities, killed runs."""

import json
import multiprocessing
import os
import signal
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.common.store import Field, Gathered, ShardWriter
from potstill.errors import CacheError
from potstill.teacher_cache.formats import TopFormat
from potstill.teacher_cache.store import OutputStore, build_outputs, differences, identity_key, store_identity

FIELDS = (
    Field("ids", "<u2", 3),
    Field("tail", "<f4"),
    Field("logits", "<f4", 2, ragged=True),
    Field("weights", "<f2", 1, ragged=True),
)
IDENTITY = {"teacher": {"weights": "a" * 64}, "form": {"k": 3}}


def outputs(counts, seed=0):
    rng = np.random.default_rng(seed)
    n, rows = len(counts), int(np.sum(counts))
    return Gathered(
        {
            "ids": rng.integers(0, 2**16, (n, 3)).astype("<u2"),
            "tail": rng.normal(size=(n, 1)).astype("<f4"),
            "logits": rng.normal(size=(rows, 2)).astype("<f4"),
            "weights": rng.normal(size=(rows, 1)).astype("<f2"),
        },
        np.array(counts, dtype=np.int64),
    )


def part(whole, units):
    """Some units, picked one by one."""
    ends = np.cumsum(whole.counts)
    rows = [np.arange(ends[u] - whole.counts[u], ends[u]) for u in units]
    rows = np.concatenate(rows) if rows else np.zeros(0, dtype=int)
    picked = {f.name: whole.values[f.name][rows if f.ragged else units] for f in FIELDS}
    return Gathered(picked, whole.counts[units])


def write(folder, whole, at_once=3, shard_bytes=60, identity=IDENTITY):
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, FIELDS, shard_bytes)
    for start in range(0, len(whole.counts), at_once):
        writer.append(part(whole, np.arange(len(whole.counts))[start : start + at_once]))
    writer.finish({"identity": identity})
    return folder


def same(found, expected):
    assert found.values.keys() == expected.values.keys()
    for name, values in expected.values.items():
        assert found.values[name].dtype == values.dtype
        np.testing.assert_array_equal(found.values[name], values)
    np.testing.assert_array_equal(found.counts, expected.counts)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=25),
    at_once=st.integers(1, 9),
    shard_bytes=st.integers(1, 300),
    data=st.data(),
)
def test_gather_equals_indexing(tmp_path_factory, counts, at_once, shard_bytes, data):
    whole = outputs(counts)
    store = OutputStore.open(write(tmp_path_factory.mktemp("store"), whole, at_once, shard_bytes))
    store.check_identity(json.loads(json.dumps(IDENTITY)))
    assert len(store) == len(counts)
    same(store.gather(np.arange(len(counts))), whole)
    units = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=40))
    same(store.gather(units), part(whole, np.array(units, dtype=int)))


def test_items_outside_are_rejected(tmp_path):
    store = OutputStore(write(tmp_path, outputs([1, 2])))
    for units in ([0, 2], [-1]):
        with pytest.raises(IndexError, match=r" 2$"):
            store.gather(units)


def test_a_store_without_ragged_fields_has_no_counts(tmp_path):
    writer = ShardWriter(tmp_path, FIELDS[:2])
    whole = outputs([0] * 4)
    writer.append(Gathered({name: whole.values[name] for name in ("ids", "tail")}))
    writer.finish({"identity": IDENTITY})
    found = OutputStore.open(tmp_path).gather([3, 1])
    assert found.counts is None
    np.testing.assert_array_equal(found.values["ids"], whole.values["ids"][[3, 1]])


def read_some(folder, queue):
    store = OutputStore(folder)
    queue.put(store.gather([7, 0, 3]))


def test_several_processes_read(tmp_path):
    whole = outputs([2] * 10)
    write(tmp_path / "s", whole)
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    processes = [spawn.Process(target=read_some, args=(tmp_path / "s", queue)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        same(queue.get(timeout=60), part(whole, np.array([7, 0, 3])))
    for process in processes:
        process.join()


def test_ill_formed_outputs_are_rejected(tmp_path):
    whole = outputs([1, 2])
    writer = ShardWriter(tmp_path, FIELDS)
    narrow = Gathered(whole.values | {"ids": whole.values["ids"][:, :2]}, whole.counts)
    few = Gathered(whole.values, np.array([1, 1]))
    for wrong in (narrow, few, Gathered(whole.values, None), Gathered({"ids": whole.values["ids"]}, whole.counts)):
        with pytest.raises(ValueError, match=r"ids|logits|weights"):
            writer.append(wrong)
    assert writer.written == 0


def test_a_store_of_another_run_is_rejected(tmp_path):
    folder = write(tmp_path / "s", outputs([1, 2]))
    with pytest.raises(CacheError, match=r"form\.k is 3 in the store and 4 here"):
        OutputStore.open(folder).check_identity(IDENTITY | {"form": {"k": 4}})
    with pytest.raises(CacheError, match=r"teacher\.weights is aaaaaaaaaaaa\.\.\. in the store and bbbb"):
        build_outputs(folder, IDENTITY | {"teacher": {"weights": "b" * 64}}, FIELDS, 2, lambda writer: None)


def write_slowly(log, seconds, writer):
    with log.open("a") as stream:
        stream.write("begun\n")
    whole = outputs([1, 2, 3, 1])
    for unit in range(4):
        writer.append(part(whole, np.array([unit])))
        time.sleep(seconds)


def build(folder, log, seconds):
    store = build_outputs(folder, IDENTITY, FIELDS, 4, partial(write_slowly, log, seconds))
    same(store.gather(np.arange(4)), outputs([1, 2, 3, 1]))


def test_a_killed_run_leaves_no_store(tmp_path):
    folder, log = tmp_path / "s", tmp_path / "log"
    process = multiprocessing.get_context("spawn").Process(target=build, args=(folder, log, 60))
    process.start()
    while not list(tmp_path.glob("s.tmp-*/ids-*.npy")):
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (left,) = tmp_path.glob("s.tmp-*")
    assert not folder.exists()
    with pytest.raises(CacheError, match=r"index\.json"):
        OutputStore.open(left)
    build(folder, log, 0)
    assert not left.exists()
    assert log.read_text() == "begun\nbegun\n"


@pytest.mark.parametrize("written", [0, 2, 5])
def test_another_number_of_items_leaves_no_store(tmp_path, written):
    with pytest.raises(ValueError, match=rf"outputs of {written} items instead of 4"):
        build_outputs(tmp_path / "s", IDENTITY, FIELDS, 4, lambda writer: writer.append(outputs([1] * written)))
    assert [path.name for path in tmp_path.iterdir()] == ["s.lock"]


def identity(**changes):
    parts = {
        "teacher": {"weights": "1" * 64, "config": "2" * 64},
        "tokenizer": "3" * 64,
        "data": "4" * 64,
        "form": TopFormat(8, 100, (1.0, 2.0)).identity,
        "masks": {"seed": 1, "world": 1},
    }
    return store_identity(**parts | changes)


def test_an_identity_is_the_same_after_json():
    assert differences(json.loads(json.dumps(identity())), identity()) == []
    assert identity_key(json.loads(json.dumps(identity()))) == identity_key(identity())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher": {"weights": "9" * 64, "config": "2" * 64}},
            "teacher.weights is 111111111111... in the store and 999999999999... here",
        ),
        ({"tokenizer": "9" * 64}, "tokenizer is 333333333333... in the store and 999999999999... here"),
        ({"data": "9" * 64}, "data is 444444444444... in the store and 999999999999... here"),
        ({"form": TopFormat(16, 100, (1.0, 2.0)).identity}, "form.k is 8 in the store and 16 here"),
        (
            {"form": TopFormat(8, 100, (1.0, 4.0)).identity},
            "form.temperatures is [1.0, 2.0] in the store and [1.0, 4.0] here",
        ),
        ({"masks": {"seed": 2, "world": 1}}, "masks.seed is 1 in the store and 2 here"),
        ({"teacher": {"weights": "1" * 64}}, "teacher.config is 222222222222... in the store and absent here"),
    ],
)
def test_differences(change, message):
    assert differences(identity(), identity(**change)) == [message]
    assert identity_key(identity()) != identity_key(identity(**change))


def test_differences_of_masks_and_none():
    found = differences(identity(masks=None), identity())
    assert found[0] == "masks is null in the store and absent here"
    assert "masks.seed is absent in the store and 1 here" in found
