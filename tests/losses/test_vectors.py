import pytest
import torch

from potstill.losses import contrastive, margin_mse, similarity_distance, vector_mse


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


def test_cosines_are_in_full_precision_under_autocast():
    ours, theirs = torch.randn(6, 8), torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = similarity_distance(ours, theirs), contrastive(ours, theirs, torch.arange(6))
    assert found == (similarity_distance(ours, theirs), contrastive(ours, theirs, torch.arange(6)))


def test_contrastive_is_its_definition():
    queries, documents = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[0, 4] = excluded[2, 1] = True
    cosine, expected = torch.nn.functional.cosine_similarity, []
    for i in range(3):
        kept = [j for j in range(5) if not excluded[i, j]]
        scores = {j: 10 * cosine(queries[i], documents[j], dim=0) for j in kept}
        expected.append(torch.stack([*scores.values()]).exp().sum().log() - scores[i])
    found = contrastive(queries, documents, torch.arange(3), scale=10, excluded_NM=excluded)
    torch.testing.assert_close(found, torch.stack(expected).mean())
    less = contrastive(queries, documents, torch.arange(3), scale=10, excluded_NM=excluded, denominator=6)
    torch.testing.assert_close(less, found / 2)


def test_contrastive_equals_sentence_transformers():
    from sentence_transformers import losses

    one, two, three = torch.randn(3, 6, 8)
    theirs = losses.MultipleNegativesRankingLoss(torch.nn.Identity())
    expected = theirs.compute_loss_from_embeddings([one, two, three], None)
    torch.testing.assert_close(contrastive(one, torch.cat([two, three]), torch.arange(6)), expected)


def test_margin_mse_is_a_mean_over_margins():
    ours, theirs = torch.randn(7), torch.randn(7)
    torch.testing.assert_close(margin_mse(ours, theirs), ((ours - theirs) ** 2).mean())
    assert float(margin_mse(ours[:0], theirs[:0])) == 0
