"""Stores of teacher outputs: what is written is read in any order, and nothing but a whole store of this run is."""

import json
import multiprocessing
import os
import pickle
import signal
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.common.store import Field, Gathered
from potstill.errors import DataError
from potstill.teacher_cache.store import OutputStore, OutputWriter, build_outputs

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
    writer = OutputWriter(folder, FIELDS, len(whole.counts), shard_bytes)
    for start in range(0, len(whole.counts), at_once):
        writer.add(part(whole, np.arange(len(whole.counts))[start : start + at_once]))
    writer.close(identity)
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
def test_gather_is_picking_one_by_one(tmp_path_factory, counts, at_once, shard_bytes, data):
    whole = outputs(counts)
    store = OutputStore.open(write(tmp_path_factory.mktemp("store"), whole, at_once, shard_bytes))
    store.check_identity(json.loads(json.dumps(IDENTITY)))
    assert len(store) == len(counts)
    same(store.gather(np.arange(len(counts))), whole)
    units = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=40))
    same(store.gather(units), part(whole, np.array(units, dtype=int)))


def test_units_outside_are_refused(tmp_path):
    store = OutputStore(write(tmp_path, outputs([1, 2])))
    for units in ([0, 2], [-1]):
        with pytest.raises(IndexError, match="of a store of 2"):
            store.gather(units)


def test_fields_of_one_row_a_unit_have_no_counts(tmp_path):
    writer = OutputWriter(tmp_path, FIELDS[:2], 4)
    whole = outputs([0] * 4)
    writer.add(Gathered({name: whole.values[name] for name in ("ids", "tail")}))
    writer.close(IDENTITY)
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


def test_pickling_maps_anew(tmp_path):
    whole = outputs([1] * 2000)
    store = OutputStore.open(write(tmp_path, whole, at_once=500, shard_bytes=10**6))
    message = pickle.dumps(store)
    assert len(message) < 1000
    same(pickle.loads(message).gather([1999]), part(whole, np.array([1999])))


def test_ill_formed_outputs_are_refused(tmp_path):
    whole = outputs([1, 2])
    writer = OutputWriter(tmp_path, FIELDS, 3)
    narrow = Gathered(whole.values | {"ids": whole.values["ids"][:, :2]}, whole.counts)
    few = Gathered(whole.values, np.array([1, 1]))
    for wrong in (
        narrow,
        few,
        Gathered(whole.values, None),
        Gathered({"ids": whole.values["ids"]}, whole.counts),
    ):
        with pytest.raises(ValueError, match=r"outputs|instead of"):
            writer.add(wrong)
    writer.add(whole)
    with pytest.raises(ValueError, match="items or more"):
        writer.add(whole)
    with pytest.raises(ValueError, match="2 items"):
        writer.close(IDENTITY)
    assert not (tmp_path / "index.json").exists()


def test_a_store_of_another_run_is_refused(tmp_path):
    folder = write(tmp_path / "s", outputs([1, 2]))
    with pytest.raises(
        DataError, match=r"it is of another run: form\.k is 3 in the store and 4 here; delete"
    ):
        OutputStore.open(folder).check_identity(IDENTITY | {"form": {"k": 4}})
    with pytest.raises(DataError, match=r"teacher\.weights is aaaaaaaaaaaa\.\.\. in the store and bbbb"):
        build_outputs(folder, IDENTITY | {"teacher": {"weights": "b" * 64}}, FIELDS, 2, lambda writer: None)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / "ids-00001.npy"), r"the content of ids-00001\.npy does not match"),
        (lambda f: flip(f / "ends-00000.npy"), r"the content of ends-00000\.npy does not match"),
        (lambda f: (f / "logits-00000.npy").unlink(), r"logits-00000\.npy is missing"),
        (lambda f: os.truncate(f / "weights-00000.npy", 130), r"weights-00000\.npy has 130 bytes instead of"),
        (lambda f: (f / "index.json").unlink(), r"index\.json is missing"),
        (
            lambda f: (f / "index.json").write_text(
                (f / "index.json").read_text().replace('"k": 3', '"k": 4')
            ),
            r"index\.json does not match its checksum",
        ),
    ],
)
def test_a_damaged_store_is_refused(tmp_path, damage, message):
    folder = write(tmp_path / "s", outputs([1, 2, 3, 1, 2, 3]))
    damage(folder)
    with pytest.raises(DataError, match=message):
        OutputStore.open(folder)


def write_slowly(log, seconds, writer):
    with log.open("a") as stream:
        stream.write("begun\n")
    whole = outputs([1, 2, 3, 1])
    for unit in range(4):
        writer.add(part(whole, np.array([unit])))
        time.sleep(seconds)


def build(folder, log, seconds):
    store = build_outputs(folder, IDENTITY, FIELDS, 4, partial(write_slowly, log, seconds))
    same(store.gather(np.arange(4)), outputs([1, 2, 3, 1]))


def test_two_processes_build_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "s", tmp_path / "log", 0.1)
    processes = [spawn.Process(target=build, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "begun\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "s", "s.lock"]


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
    with pytest.raises(DataError, match=r"index\.json is missing"):
        OutputStore.open(left)
    build(folder, log, 0)
    assert not left.exists()
    assert log.read_text() == "begun\nbegun\n"


def test_a_failed_run_leaves_no_store(tmp_path):
    with pytest.raises(ValueError, match="outputs of 0 items"):
        build_outputs(tmp_path / "s", IDENTITY, FIELDS, 4, lambda writer: None)
    assert [path.name for path in tmp_path.iterdir()] == ["s.lock"]
