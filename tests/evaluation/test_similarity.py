import numpy as np
import pytest
import torch

from potstill.evaluation.similarity import Similarities


def test_average_precision_by_hand():
    found, scores = torch.tensor([0.9, -0.2, 0.8, 0.5, -0.7]), torch.tensor([1.0, 1, 0, 1, 0])
    own = Similarities(found, scores, ([], []), ("average_precision",))
    expected = (1 / 1 + 2 / 3 + 3 / 4) / 3  # precision at each of the pairs of 1
    assert own.figures()["average_precision"] == pytest.approx(expected)
    distances = Similarities(found * 1e4 - 1e5, scores, ([], []), ("average_precision",))  # any scale
    assert distances.figures() == pytest.approx(own.figures())
    assert own.metric("average_precision")(np.array([0, 2, 2])) == pytest.approx(1)
