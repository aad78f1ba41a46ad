import numpy as np
import pytest
import torch

from potstill.data.corpus.masking import IGNORED, mask_tokens, masked_count, next_tokens, token_weights


def draw(ids, weights, seed=0, share=0.15, replace=(0.8, 0.1, 0.1), mask_id=4):
    generator = torch.Generator().manual_seed(seed)
    return mask_tokens(ids, weights, share=share, replace=replace, mask_id=mask_id, generator=generator)


def test_weights_are_smoothed_counts():
    weights = token_weights(np.array([50, 0, 1, 16, 100]), 0.5, [0])
    assert weights.tolist() == pytest.approx([0.0, 1.0, 1.0, 0.25, 0.1])
    assert token_weights(np.array([0, 7, 9]), 0.0, []).tolist() == [1.0, 1.0, 1.0]
    assert token_weights(np.array([0, 8, 1]), 1.0, []).tolist() == [1.0, 0.125, 1.0]


@pytest.mark.parametrize(("tokens", "share", "count"), [(20, 0.15, 3), (21, 0.15, 4), (1, 0.15, 1), (40, 0.1, 4)])
def test_count_is_the_ceiling(tokens, share, count):
    assert masked_count(tokens, share) == count


def test_literal_masks():
    # 20 tokens, [CLS]=2 and [SEP]=3 around words; only the mask token is used, so the result is a token list.
    ids = torch.tensor([2, 10, 11, 12, 13, 14, 15, 16, 17, 3, 2, 20, 21, 22, 23, 24, 25, 26, 27, 3])
    weights = token_weights(np.ones(30, dtype=np.int64), 0.7, [0, 1, 2, 3, 4])
    weights[[10, 16, 21]] = 1e6  # three tokens far likelier than all others together
    masked, labels = draw(ids, weights, replace=(1.0, 0.0, 0.0))
    assert masked.tolist() == [2, 4, 11, 12, 13, 14, 15, 4, 17, 3, 2, 20, 4, 22, 23, 24, 25, 26, 27, 3]
    expected = [-100, 10, -100, -100, -100, -100, -100, 16, -100, -100]
    assert labels.tolist() == [*expected, -100, -100, 21, *[-100] * 7]
    kept, labels = draw(ids, weights, replace=(0.0, 0.0, 1.0))
    assert kept.tolist() == ids.tolist()
    assert (labels != IGNORED).sum() == 3


def test_special_tokens_are_never_masked():
    ids = torch.tensor([2, 10, 3, 2, 11, 3])
    weights = token_weights(np.ones(30, dtype=np.int64), 0.7, [0, 1, 2, 3, 4])
    masked, labels = draw(ids, weights, share=1.0, replace=(1.0, 0.0, 0.0))
    assert masked.tolist() == [2, 4, 3, 2, 4, 3]
    assert labels.tolist() == [-100, 10, -100, -100, 11, -100]
    masked, labels = draw(torch.tensor([2, 3]), weights)
    assert masked.tolist() == [2, 3]
    assert (labels == IGNORED).all()


def test_shares_of_mask_random_and_kept():
    ids = torch.randint(5, 1000, (40_000,), generator=torch.Generator().manual_seed(1))
    weights = token_weights(np.ones(1000, dtype=np.int64), 0.7, range(5))
    masked, labels = draw(ids, weights)
    chosen = labels != IGNORED
    assert chosen.sum() == 6000
    assert (labels[chosen] == ids[chosen]).all()
    assert (masked[~chosen] == ids[~chosen]).all()
    share = (masked[chosen] == 4).float().mean()
    kept = (masked[chosen] == ids[chosen]).float().mean()
    assert share == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1, abs=0.02)


def test_the_published_distribution():
    """The published distiller draws with torch.multinomial without replacement from normalised smoothed counts."""
    counts = np.array([0, 1000, 300, 100, 30, 10, 3, 1])
    ids = torch.tensor([1, 2, 3, 4, 5, 6, 7] * 3)
    weights = token_weights(counts, 0.7, [0])
    ours, theirs = torch.zeros(21), torch.zeros(21)
    generator = torch.Generator().manual_seed(7)
    draws = 4000
    for i in range(draws):
        ours += (draw(ids, weights, seed=i)[1] != IGNORED).float()
        chances = weights[ids] / weights[ids].sum()
        theirs[torch.multinomial(chances, masked_count(21, 0.15), replacement=False, generator=generator)] += 1
    assert ours.sum() == theirs.sum() == 4 * draws
    # Both are counts of 4000 draws: the standard error of a frequency is below 0.008.
    assert torch.allclose(ours / draws, theirs / draws, atol=0.035)


def test_the_mask_is_a_function_of_the_seed():
    ids = torch.arange(5, 105)
    weights = token_weights(np.ones(200, dtype=np.int64), 0.7, range(5))
    assert torch.equal(draw(ids, weights, seed=3)[0], draw(ids, weights, seed=3)[0])
    assert not torch.equal(draw(ids, weights, seed=3)[1], draw(ids, weights, seed=4)[1])


def test_next_tokens():
    ids = torch.tensor([7, 8, 9, 5, 6])
    assert next_tokens(ids, torch.tensor([2, 4])).tolist() == [8, 9, -100, 6, -100]
