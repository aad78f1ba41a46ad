import math

import pytest
import torch

from potstill.losses.masking import kept_positions, log_softmax_kept, pairs_of, without_padding

STATES = torch.ones(2, 3, 4)


def test_kept_positions_and_pairs():
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    kept = kept_positions(STATES, mask)
    assert kept.tolist() == [[True, True, False], [True, False, False]]
    assert pairs_of(kept).sum(dim=(1, 2)).tolist() == [4, 1]
    assert pairs_of(kept)[0].tolist() == [[True, True, False], [True, True, False], [False, False, False]]
    assert kept_positions(STATES, None).tolist() == [[True] * 3] * 2


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2, 4)])
def test_a_mask_of_another_shape_is_rejected(shape):
    mask = torch.ones(shape, dtype=torch.bool)
    for function in (kept_positions, without_padding):
        with pytest.raises(ValueError, match=rf"mask \({shape[0]}, {shape[1]}\)"):
            function(STATES, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_log_softmax_among_the_kept(dtype):
    scores = torch.tensor([[0.0, math.inf, 0.0, -1e30], [5.0, 5.0, 5.0, 5.0]], dtype=dtype)
    kept = torch.tensor([[True, False, True, False], [False] * 4])
    found = log_softmax_kept(scores, kept)
    assert found.isfinite().all()
    assert found[0].exp().tolist() == pytest.approx([0.5, 0, 0.5, 0])
    assert (0 * found).abs().sum() == 0
