import pytest
import torch

from potstill.losses import similarity_distance, vector_mse


def test_vector_mse_is_a_mean_over_rows_of_sums():
    ours, theirs = torch.randn(5, 3), torch.randn(5, 3)
    expected = ((ours - theirs) ** 2).sum() / 5
    torch.testing.assert_close(vector_mse(ours, theirs), expected)
    torch.testing.assert_close(vector_mse(ours, theirs, denominator=20.0), expected / 4)
    assert vector_mse(ours.bfloat16(), theirs.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="shapes"):
        vector_mse(ours, theirs[:, :2])


def test_similarity_distance_by_pairs():
    ours, theirs = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity
    expected = sum(
        (cosine(ours[i], ours[j], dim=0) - cosine(theirs[i], theirs[j], dim=0)) ** 2 for i in range(4) for j in range(4)
    )
    torch.testing.assert_close(similarity_distance(ours, theirs), expected / 16)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert similarity_distance(2 * ours @ turn, ours) < 1e-20
