import numpy as np

from potstill.data.common.ragged import flat_indices, padded_indices, starts_of

LENGTHS = np.array([2, 0, 3], dtype=np.int32)


def test_starts():
    assert starts_of(LENGTHS).tolist() == [0, 2, 2]


def test_flat_indices():
    assert flat_indices(np.array([10, 5, 0]), LENGTHS).tolist() == [10, 11, 0, 1, 2]
    assert flat_indices(np.zeros(0, np.int64), LENGTHS[:0]).tolist() == []


def test_padded_indices():
    indices, mask = padded_indices(np.array([10, 5, 0]), LENGTHS)
    assert indices.tolist() == [[10, 11, 0], [0, 0, 0], [0, 1, 2]]
    assert mask.sum(axis=1).tolist() == LENGTHS.tolist()
    assert padded_indices(np.array([10, 5, 0]), LENGTHS, 4)[0].shape == (3, 4)
