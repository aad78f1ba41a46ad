"""The checksum of a checkpoint."""

import zipfile

import pytest
import torch

from potstill.runtime.checksums import add_checksum, has_valid_checksum


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "last.ckpt"
    with path.open("wb") as file:
        torch.save({"weights": torch.arange(5), "step": 3}, file)
        add_checksum(file)
    return path


@pytest.mark.parametrize("mmap", [False, True])
def test_what_reads_the_file_still_reads_it(sealed, mmap):
    assert has_valid_checksum(sealed)
    saved = torch.load(sealed, weights_only=True, mmap=mmap)
    assert (saved["step"], saved["weights"].tolist()) == (3, [0, 1, 2, 3, 4])
    assert zipfile.ZipFile(sealed).testzip() is None


def test_every_flipped_bit_is_found(sealed):
    whole = sealed.read_bytes()
    for place in range(0, len(whole) * 8, 5):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        sealed.write_bytes(damaged)
        assert not has_valid_checksum(sealed), place
    sealed.write_bytes(whole)
    assert has_valid_checksum(sealed)


@pytest.mark.parametrize("kept", [0, 1, 50, 400, -1, -72])
def test_a_file_that_is_cut_off_is_not_sealed(sealed, kept):
    sealed.write_bytes(sealed.read_bytes()[:kept])
    assert not has_valid_checksum(sealed)


def test_a_longer_or_foreign_file_is_not_sealed(sealed, tmp_path):
    sealed.write_bytes(sealed.read_bytes() + b"\n")
    assert not has_valid_checksum(sealed)
    torch.save({}, tmp_path / "other")
    assert not has_valid_checksum(tmp_path / "other")
