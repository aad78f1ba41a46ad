"""The checksum of a checkpoint."""

import zipfile

import pytest
import torch

from potstill.runtime.checksums import add_checksum, has_valid_checksum


@pytest.fixture
def checked(tmp_path):
    path = tmp_path / "last.ckpt"
    with path.open("wb") as file:
        torch.save({"weights": torch.arange(5), "step": 3}, file)
        add_checksum(file)
    return path


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_with_a_checksum_is_still_readable(checked, mmap):
    assert has_valid_checksum(checked)
    saved = torch.load(checked, weights_only=True, mmap=mmap)
    assert (saved["step"], saved["weights"].tolist()) == (3, [0, 1, 2, 3, 4])
    assert zipfile.ZipFile(checked).testzip() is None


def test_every_flipped_bit_is_found(checked):
    whole = checked.read_bytes()
    for place in range(0, len(whole) * 8, 5):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        checked.write_bytes(damaged)
        assert not has_valid_checksum(checked), place
    checked.write_bytes(whole)
    assert has_valid_checksum(checked)


@pytest.mark.parametrize("kept", [0, 1, 50, 400, -1, -72])
def test_a_truncated_file_is_invalid(checked, kept):
    checked.write_bytes(checked.read_bytes()[:kept])
    assert not has_valid_checksum(checked)


def test_a_longer_or_another_file_is_invalid(checked, tmp_path):
    checked.write_bytes(checked.read_bytes() + b"\n")
    assert not has_valid_checksum(checked)
    torch.save({}, tmp_path / "other")
    assert not has_valid_checksum(tmp_path / "other")
