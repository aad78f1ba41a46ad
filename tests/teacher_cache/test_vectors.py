"""Stores of vectors: written in parts, continued, and read in the teacher's place."""

import numpy as np
import pytest
import torch

from potstill.errors import CacheError, ConfigError
from potstill.teacher_cache import vectors
from potstill.teacher_cache.store import OutputStore
from potstill.teacher_cache.vectors import StoredVectors, VectorFormat, build_vectors

VECTORS = torch.randn(23, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("precision", "error", "size"), [("float16", 1e-3, 12), ("bfloat16", 8e-3, 12), ("float32", 0, 24)]
)
def test_vectors_are_stored_in_a_precision(precision, error, size, tmp_path):
    form = VectorFormat(6, precision)

    def compute(first, add):
        add(first, VECTORS[first:])

    assert build_vectors(tmp_path / "store", {"seed": 0}, form, 23, compute, lambda done: None) == 23
    stored = StoredVectors(OutputStore.open(tmp_path / "store"), form)
    order = np.array([22, 0, 5, 5])
    torch.testing.assert_close(stored(order), VECTORS[order], rtol=error, atol=0)
    assert stored(order).dtype == torch.float32
    assert form.text_bytes == size
    assert sum(file.stat().st_size for file in (tmp_path / "store").glob("vectors-*.npy")) == 23 * size + 128


def test_a_store_continues_after_its_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "PART_TEXTS", 4)
    form, asked, done = VectorFormat(6, "float32"), [], []

    def compute(first, add, end=None):
        for start in range(first, 23, 3):
            if start == end:
                raise KeyboardInterrupt
            asked.append(start)
            add(start, VECTORS[start : start + 3])

    with pytest.raises(KeyboardInterrupt):
        build_vectors(tmp_path / "store", {}, form, 23, lambda *given: compute(*given, end=9), done.append)
    assert not (tmp_path / "store").exists()
    with pytest.raises(CacheError, match="seed"):
        build_vectors(tmp_path / "store", {"seed": 1}, form, 23, compute, done.append)
    assert build_vectors(tmp_path / "store", {}, form, 23, compute, done.append) == 23
    assert asked == list(range(0, 23, 3))  # nothing twice
    assert done[-1] <= 23
    assert torch.equal(StoredVectors(OutputStore.open(tmp_path / "store"), form)(np.arange(23)), VECTORS)
    assert not (tmp_path / "store.parts").exists()
    assert build_vectors(tmp_path / "store", {}, form, 23, lambda *_: pytest.fail("computed again"), done.append) == 23


def test_values_beyond_the_precision_are_refused():
    with pytest.raises(ConfigError, match=r"teacher\.cache\.precision=float16"):
        VectorFormat(2).encode(torch.tensor([[1e6, 1.0]]))
