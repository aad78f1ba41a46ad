from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.functional import retrieval as reference

from potstill.data.tasks.retrieval import Collection
from potstill.evaluation.retrieval import Rankings, Retrieval, search
from potstill.evaluation.similarity import SIMILARITIES
from potstill.models.sentence_folders import SentenceSettings


@pytest.mark.parametrize("similarity", list(SIMILARITIES))
@pytest.mark.parametrize("cuts", [[50], [7, 1, 30, 12], [2] * 25])
def test_search_in_chunks_finds_what_a_sort_of_all_finds(similarity, cuts, monkeypatch):
    monkeypatch.setattr("potstill.evaluation.retrieval.SCORES", 40)  # several blocks of queries
    torch.manual_seed(0)
    queries, documents = torch.randn(9, 8), torch.randn(50, 8)
    excluded = [None, 3, 49, *[None] * 6]
    every = torch.stack([SIMILARITIES[similarity](query[None], documents) for query in queries])
    every[1, 3] = every[2, 49] = -torch.inf
    expected = every.sort(dim=1, descending=True)
    found, scores = search(queries, documents.split(cuts), similarity, 10, excluded)
    torch.testing.assert_close(found, expected.indices[:, :10])
    torch.testing.assert_close(scores, expected.values[:, :10])


def test_fewer_documents_than_asked_for_and_equal_ones():
    documents = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    found, scores = search(torch.tensor([[1.0, 0]]), documents.split(1), "dot", 5, [1])
    assert found.tolist() == [[0, 2, -1, -1, -1]]
    assert scores.tolist() == [[1, 1, -torch.inf, -torch.inf, -torch.inf]]


def test_a_document_of_the_querys_own_id_is_returned_only_if_it_is_relevant():
    encoder = SimpleNamespace(
        settings=SentenceSettings(similarity="dot"),
        backbone=SimpleNamespace(model=SimpleNamespace(device="cpu")),
        encode=lambda ids, pad_id, batch_size: torch.tensor([[float(own[0])] for own in ids]),
    )
    collection = Collection(["", "", ""], ["1", "2", "3"], ["", ""], ["3", "2"], [{0: 1}, {1: 1}], 0)
    documents = [np.array([number]) for number in (1, 2, 3)]
    own = Retrieval(collection, documents[:2], documents, 0, ("mrr@3",))
    assert own.measure(encoder).found.tolist() == [[1, 0, -1], [2, 1, 0]]


def rankings(found, relevant, metrics=("ndcg@3",)):
    count = max(map(max, found)) + 1
    collection = Collection([], [f"d{n}" for n in range(count)], [], [f"q{n}" for n in range(len(found))], relevant, 0)
    found = np.array(found)
    return Rankings(found, np.linspace(1, 0, found.size, dtype=np.float32).reshape(found.shape), collection, metrics)


def test_values_by_hand():
    # The second document has grade 1, the third 3; a fourth, of grade 2, is not found.
    own = rankings([[4, 0, 1]], [{0: 1, 1: 3, 2: 2}])
    gain, ideal = 1 / np.log2(3) + 3 / 2, 3 + 2 / np.log2(3) + 1 / 2
    assert own.values("ndcg@3") == pytest.approx([gain / ideal])
    assert own.values("ndcg@2") == pytest.approx([1 / np.log2(3) / (3 + 2 / np.log2(3))])
    assert own.values("recall@3") == pytest.approx([2 / 3])
    assert own.values("precision@2") == pytest.approx([1 / 2])
    assert own.values("precision@10") == pytest.approx([2 / 10])
    assert own.values("mrr@3") == own.values("mrr@2") == pytest.approx([1 / 2])
    assert own.values("mrr@1") == [0]
    assert own.values("map@3") == pytest.approx([(1 / 2 + 2 / 3) / 3])


def test_values_equal_those_of_torchmetrics():
    draw = np.random.default_rng(0)
    documents, depth = 40, 12
    orders = np.array([draw.permutation(documents) for _ in range(20)])
    relevant = [{int(n): int(draw.integers(1, 4)) for n in draw.choice(documents, 5, replace=False)} for _ in orders]
    own = rankings(orders[:, :depth].tolist(), relevant)
    names = {
        "ndcg": reference.retrieval_normalized_dcg, "recall": reference.retrieval_recall,
        "precision": reference.retrieval_precision, "mrr": reference.retrieval_reciprocal_rank,
    }  # fmt: skip
    for name, function in names.items():
        expected = []
        for order, grades in zip(orders, relevant, strict=True):
            target = torch.tensor([grades.get(int(number), 0) for number in order])
            scores = torch.arange(documents, 0, -1).float()
            expected.append(function(scores, target if name == "ndcg" else target > 0, top_k=10).item())
        np.testing.assert_allclose(own.values(f"{name}@10"), expected, rtol=1e-5, err_msg=name)
        rows = np.array([0, 0, 3])
        assert own.metric(f"{name}@10")(rows) == pytest.approx(np.mean([expected[row] for row in rows]), rel=1e-5)


def test_rankings_are_written_as_trec_reads_them(tmp_path):
    own = rankings([[1, 0], [1, -1]], [{0: 1}, {1: 1}])
    own.write(tmp_path / "found")
    rows = [line.split() for line in (tmp_path / "found.trec").read_text().splitlines()]
    assert [row[:4] for row in rows] == [["q0", "Q0", "d1", "1"], ["q0", "Q0", "d0", "2"], ["q1", "Q0", "d1", "1"]]
    assert float(rows[0][4]) > float(rows[1][4])
