from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from potstill.data.corpus.sentence_steps import SentenceBatch, SentenceStep, StepRows, TextGroup
from potstill.losses import cosine_distance, similarity_distance, vector_mse
from potstill.models.sentence import SentenceEncoder, add_dense
from potstill.models.sentence_folders import SentenceSettings
from potstill.objectives.embedding import EmbeddingObjective, Pair


@pytest.fixture
def encoders():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    made = [BertModel(BertConfig(vocab_size=50, **shape), add_pooling_layer=False).eval() for _ in range(2)]
    return [SentenceEncoder(model, SentenceSettings("mean", True)) for model in made]


def batch(rows, start=0, total=None):
    ids = torch.arange(5, 5 + rows * 4).view(rows, 4) + 4 * start
    mask = torch.ones_like(ids)
    places = torch.arange(rows) + start
    group = TextGroup(ids, mask, torch.arange(ids.numel()), ids.flatten(), places=places)
    return SentenceBatch([group], total or rows)


@pytest.mark.parametrize("widths", [(), (8, 4)])
def test_terms_are_their_definitions(widths, encoders):
    student, teacher = encoders
    weights = {"mse": 0.5, "cos": 2.0, "similarity": 3.0}
    turn = torch.linalg.qr(torch.randn(16, 16)).Q[:12]
    add_dense(student.backbone.model, torch.randn(12, 16))
    objective = EmbeddingObjective("sentences", weights, widths=widths, normalized=True, components=turn)
    micro = batch(3)
    step = SentenceStep([micro], tokens=12, labelled=0, sequences=3)
    found = objective(student, teacher, micro, objective.denominators(step))
    inputs = micro.groups[0].input_ids, micro.groups[0].attention_mask
    ours = student(*inputs)
    norm = torch.nn.functional.normalize
    theirs = norm(teacher(*inputs) @ turn.T, dim=-1)
    cut = [(norm(ours[:, :n], dim=-1), norm(theirs[:, :n], dim=-1)) for n in (12, *widths)]
    expected = {
        "mse": torch.stack([vector_mse(*pair) for pair in cut]).mean(),
        "cos": torch.stack([cosine_distance(*pair) for pair in cut]).mean(),
        "similarity": torch.stack([similarity_distance(own, theirs) for own, _ in cut]).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value.detach())
    torch.testing.assert_close(found.loss, sum(weights[name] * value for name, value in expected.items()))


def test_a_step_is_the_same_however_it_is_cut(encoders):
    student, teacher = encoders
    weights = {"mse": 1.0, "similarity": 4.0, "contrastive": 2.0, "margin_mse": 3.0}
    objective = EmbeddingObjective("sentences", weights, normalized=True, widths=(8,))
    rows = StepRows(torch.tensor([[0, 3, 5], [4, 1, -1], [2, 0, 3]]), None, 2)
    parts = [replace(batch(n, at, 6), rows=rows) for n, at in ((2, 0), (3, 2), (1, 5))]
    whole = batch(6)
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])  # a micro-batch has its texts in another order than the step
    (group,) = whole.groups
    groups = [
        replace(group, input_ids=group.input_ids[own], attention_mask=torch.ones(len(own), 4), places=own)
        for own in shuffled.split([4, 2])
    ]
    whole = SentenceBatch(groups, 6, rows)
    step = SentenceStep([whole], tokens=24, labelled=0, sequences=6, rows=rows)
    counts, parameters = objective.denominators(step), [*student.backbone.model.parameters()]
    assert counts == {"mse": 6, "similarity": 6, "contrastive": 3, "margin_mse": 2}
    one = objective(student, teacher, whole, counts)
    expected = torch.autograd.grad(one.loss, parameters)
    with torch.no_grad():
        ids = group.input_ids
        vectors = Pair(*(encoder(ids, torch.ones_like(ids)) for encoder in encoders))
    shares = [objective(student, teacher, part, counts, vectors) for part in parts]
    torch.testing.assert_close(sum(share.loss for share in shares), one.loss)
    for name, value in one.terms.items():
        torch.testing.assert_close(sum(share.terms[name] for share in shares), value)
    found = torch.autograd.grad(sum(share.loss for share in shares), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_terms_of_rows_are_their_definitions(encoders):
    student, teacher = encoders
    texts = torch.tensor([[0, 1, 2, 3], [4, 5, -1, -1], [0, 6, 4, -1], [7, 1, 2, -1]])
    scores = torch.full((4, 2), torch.nan)
    scores[texts[:, 2:] >= 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    rows = StepRows(texts, scores, 4)
    micro = replace(batch(8), rows=rows)
    step = SentenceStep([micro], tokens=32, labelled=0, sequences=8, rows=rows)
    inputs = micro.groups[0].input_ids, micro.groups[0].attention_mask
    ours, theirs = (encoder(*inputs) for encoder in encoders)
    objective = EmbeddingObjective("sentences", {"contrastive": 1.0, "margin_mse": 1.0}, normalized=True, scale=10.0)
    found = objective(student, teacher, micro, objective.denominators(step)).terms
    # Of the documents 1 5 6 1 | 2 3 4 2, the queries 0 4 0 7 have those as negatives that are neither a positive of the
    # same query nor the query.
    expected = []
    for query, positive, others in ((0, 1, [5, 2, 3, 4, 2]), (4, 5, [1, 6, 1, 2, 3, 2]), (0, 6, [5, 2, 3, 4, 2]),
                                    (7, 1, [5, 6, 2, 3, 4, 2])):  # fmt: skip
        scores_of = 10 * ours[[positive, *others]] @ ours[query]
        expected.append(scores_of.logsumexp(0) - scores_of[0])
    torch.testing.assert_close(found["contrastive"], torch.stack(expected).mean().detach())
    triples = [(0, 1, 2), (0, 1, 3), (0, 6, 4), (7, 1, 2)]
    margins = [torch.stack([side[q] @ (side[p] - side[n]) for q, p, n in triples]) for side in (ours, theirs)]
    torch.testing.assert_close(found["margin_mse"], ((margins[0] - margins[1]) ** 2).mean().detach())
    scored = replace(objective, scored=True)
    assert not scored.needs_teacher
    assert objective.needs_teacher
    found = scored(student, None, micro, objective.denominators(step)).terms["margin_mse"]
    given = torch.tensor([0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(found, ((margins[0] - given) ** 2).mean().detach())
