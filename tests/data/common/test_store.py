import errno
import multiprocessing
import time

import pytest

from potstill.data.common.store import build_once, store_key
from potstill.errors import DataError, WriteError


def test_key_depends_on_every_part():
    keys = {
        store_key({"a": 1}, "t", {"o": 1}),
        store_key({"a": 2}, "t", {"o": 1}),
        store_key({"a": 1}, "u", {"o": 1}),
        store_key({"a": 1}, "t", {"o": 2}),
    }
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "part").write_text("x")
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        build_once(tmp_path / "stores" / "key", fail)
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["key.lock"]


def test_a_full_disk_is_a_user_error(tmp_path):
    def fail(folder):
        (folder / "part").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WriteError) as caught:
        build_once(tmp_path / "stores" / "key", fail)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "stores"))
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["key.lock"]


def test_an_unwritable_cache(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WriteError, match="stores"):
        build_once(tmp_path / "file" / "stores" / "key", lambda folder: None)


def test_stale_builds_are_removed(tmp_path):
    stale = tmp_path / "key.tmp-1-abcd"
    other = tmp_path / "other.tmp-1-abcd"
    stale.mkdir()
    other.mkdir()
    build_once(tmp_path / "key", lambda folder: (folder / "done").touch())
    assert (tmp_path / "key" / "done").exists()
    assert not stale.exists()
    assert other.exists()


def slow_build(folder):
    time.sleep(0.5)
    (folder / "built").write_text("x")
    with (folder.parent / "builds.log").open("a") as log:
        log.write("built\n")


def test_two_processes_build_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=build_once, args=(tmp_path / "key", slow_build)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "builds.log").read_text() == "built\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["builds.log", "key", "key.lock"]
