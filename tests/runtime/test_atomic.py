import errno
import os

import pytest

from potstill.errors import DataError, WriteError
from potstill.runtime.atomic import replacing, write_whole, writing


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    (tmp_path / ".a.json.1.tmp").write_text("of a killed process")
    with pytest.raises(TypeError), replacing(path) as fresh:
        fresh.write_text("half") + "of it"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"
    write_whole(path, "né")
    assert path.read_bytes() == "né".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def torch_hides(file):
    try:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    finally:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


def rust_writes(file):
    raise Exception("Error while serializing: I/O error: File too large (os error 27)")


def numpy_writes(file):
    raise OSError("4096 requested and 12 written")


def the_folder_is_gone(file):
    (file.parent / "gone" / "file").write_text("")


@pytest.mark.parametrize(
    ("write", "number"),
    [
        (torch_hides, errno.EDQUOT), (rust_writes, errno.EFBIG), (numpy_writes, errno.ENOSPC),
        (the_folder_is_gone, errno.ENOENT),
    ],
)  # fmt: skip
def test_errors_of_the_disk_name_the_file(write, number, tmp_path):
    path = tmp_path / "model"
    with pytest.raises(WriteError) as error, replacing(path) as fresh:
        write(fresh)
    assert (error.value.errno, error.value.filename) == (number, str(path))
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_changed(tmp_path):
    for error in (RuntimeError("a bug"), DataError("of the user's")):
        with pytest.raises(type(error)) as raised, writing(tmp_path):
            raise error
        assert raised.value is error


def test_a_deleted_folder_is_created(tmp_path):
    write_whole(tmp_path / "run" / "checkpoints" / "last.ckpt", "trained")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_text() == "trained"
