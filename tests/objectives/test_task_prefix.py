"""The two tasks' loss is transformers' own of each task, weighted; a cut into micro-batches changes nothing."""

import pytest
import torch

from potstill.data.rationales.datamodule import RationaleBatch
from potstill.models.decoder import Decoder
from potstill.models.seq2seq import Seq2Seq, seq2seq_from_config
from potstill.models.students import student_from_config
from potstill.objectives.task_prefix import TaskPrefixObjective, soft_label_loss

SHAPE = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


@pytest.fixture
def student():
    torch.manual_seed(0)
    settings = {**SHAPE, "dropout_rate": 0.0}
    return seq2seq_from_config(settings, vocab_size=50, pad_token_id=0, eos_token_id=1)


def drawn(count, low, high, seed):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=draw)
    return [torch.randint(2, 50, (int(n),), generator=draw) for n in lengths]


def padded(texts, value):
    return torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=value)


PREDICT, EXPLAIN = drawn(5, 4, 9, 1), drawn(5, 4, 9, 2)
LABELS, RATIONALES = drawn(5, 1, 4, 3), drawn(5, 5, 14, 4)


def batch_of(rows):
    ids = padded([PREDICT[r] for r in rows] + [EXPLAIN[r] for r in rows], 0)
    numbers = torch.tensor(rows)
    return RationaleBatch(
        ids,
        ids.ne(0).long(),
        {"predict": padded([LABELS[r] for r in rows], -100), "explain": padded([RATIONALES[r] for r in rows], -100)},
        {"predict": numbers, "explain": numbers},
    )  # fmt: skip


TOKENS = {"predict": sum(map(len, LABELS)), "explain": sum(map(len, RATIONALES))}
ALL = list(range(5))


def own_loss(student, inputs, targets):
    ids = padded(inputs, 0)
    return student(input_ids=ids, attention_mask=ids.ne(0).long(), labels=padded(targets, -100)).loss


def gradients(student):
    return {name: parameter.grad.clone() for name, parameter in student.named_parameters()}


@pytest.mark.parametrize("alpha", [0.5, 0.2, 1.0, 0.0])
def test_the_loss_is_transformers_own_of_both_tasks(student, alpha):
    predict, explain = own_loss(student, PREDICT, LABELS), own_loss(student, EXPLAIN, RATIONALES)
    expected = alpha * predict + (1 - alpha) * explain
    expected.backward()
    wanted = gradients(student)
    student.zero_grad()
    share = TaskPrefixObjective(alpha)(Seq2Seq(student), batch_of(ALL), TOKENS)
    share.loss.backward()
    assert torch.allclose(share.loss, expected, rtol=1e-5)
    for name, value in {"predict": predict, "explain": explain}.items():
        assert (name in share.terms) == (name in TaskPrefixObjective(alpha).active)
        if name in share.terms:
            assert torch.allclose(share.terms[name], value.detach(), rtol=1e-5)
    assert torch.equal(share.terms["total"], share.loss.detach())
    for name, found in gradients(student).items():
        assert torch.allclose(found, wanted[name], rtol=1e-3, atol=1e-6), name


def test_one_task_alone_is_not_weighted(student):
    objective = TaskPrefixObjective(0.3, explains=False)
    batch = batch_of(ALL)
    alone = RationaleBatch(
        batch.input_ids[:5], batch.attention_mask[:5], {"predict": batch.targets["predict"]},
        {"predict": batch.rows["predict"]},
    )  # fmt: skip
    share = objective(Seq2Seq(student), alone, {"predict": TOKENS["predict"]})
    assert objective.active == ("predict",)
    assert torch.allclose(share.loss, own_loss(student, PREDICT, LABELS), rtol=1e-5)


def test_a_task_without_weight_is_not_encoded(student):
    seen = []
    student.get_encoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    TaskPrefixObjective(1.0)(Seq2Seq(student), batch_of(ALL), TOKENS)
    TaskPrefixObjective(0.5)(Seq2Seq(student), batch_of(ALL), TOKENS)
    assert seen == [5, 10]


@pytest.mark.parametrize("cut", [[[0, 1, 2, 3, 4]], [[3], [0, 4], [1, 2]], [[4, 3, 2, 1], [0]]])
def test_a_cut_into_micro_batches_changes_nothing(student, cut):
    objective, view = TaskPrefixObjective(0.4), Seq2Seq(student)
    objective(view, batch_of(ALL), TOKENS).loss.backward()
    wanted = gradients(student)
    student.zero_grad()
    shares = [objective(view, batch_of(rows), TOKENS) for rows in cut]
    for share in shares:
        share.loss.backward()
    for name, found in gradients(student).items():
        assert torch.allclose(found, wanted[name], rtol=1e-3, atol=1e-6), name
    total = sum(float(share.terms["explain"]) for share in shares)
    assert total == pytest.approx(float(own_loss(student, EXPLAIN, RATIONALES).detach()), rel=1e-5)


CANDIDATES = [drawn(count, 1, 4, 10 + count) for count in (2, 3, 2)]  # of the rows 0, 2 and 3
SOFT_ROWS = [0, 0, 2, 2, 2, 3, 3]
SOFT = torch.tensor([0.9, 0.1, 0.2, 0.5, 0.3, 0.0, 1.0])


def with_probabilities(rows):
    """A batch of some rows with the choices of those that have probabilities."""
    batch = batch_of(rows)
    flat = [text for own in CANDIDATES for text in own]
    kept = [number for row in rows for number, own in enumerate(SOFT_ROWS) if own == row]
    if kept:
        batch.choices = padded([flat[number] for number in kept], -100)
        batch.choice_rows = torch.tensor([rows.index(SOFT_ROWS[number]) for number in kept])
        batch.soft = SOFT[kept]
    return batch


def own_soft_loss(student, temperature):
    """The definition, a row and a choice at a time."""
    losses = []
    for row, choices in zip((0, 2, 3), CANDIDATES, strict=True):
        scores = torch.stack([-own_loss(student, [PREDICT[row]], [text]) * len(text) for text in choices])
        soft = SOFT[[number for number, own in enumerate(SOFT_ROWS) if own == row]] ** (1 / temperature)
        losses.append(-(soft / soft.sum() * (scores / temperature).log_softmax(0)).sum() * temperature**2)
    return sum(losses) / 3


@pytest.mark.parametrize(("weight", "temperature"), [(0.4, 1.0), (1.0, 2.0)])
def test_label_probabilities_are_learnt_over_the_choices_however_a_step_is_cut(student, weight, temperature):
    predict, explain = own_loss(student, PREDICT, LABELS), own_loss(student, EXPLAIN, RATIONALES)
    soft = own_soft_loss(student, temperature)
    expected = 0.3 * ((1 - weight) * predict + weight * soft) + 0.7 * explain
    expected.backward()
    wanted = gradients(student)
    objective = TaskPrefixObjective(0.3, soft_weight=weight, temperature=temperature)
    assert objective.active == ("predict", "explain", "soft")
    for cut in ([ALL], [[4, 1], [3, 0], [2]]):  # the first part has no probabilities
        student.zero_grad()
        shares = [objective(Seq2Seq(student), with_probabilities(rows), TOKENS | {"soft": 3}) for rows in cut]
        for share in shares:
            share.loss.backward()
        terms = {name: sum(float(share.terms[name]) for share in shares) for name in shares[0].terms}
        assert terms["soft"] == pytest.approx(float(soft), rel=1e-4)
        assert terms["predict"] == pytest.approx(float(predict), rel=1e-4)
        assert terms["total"] == pytest.approx(float(expected), rel=1e-4)
        for name, found in gradients(student).items():
            assert torch.allclose(found, wanted[name], rtol=1e-3, atol=2e-6), name


def dense_loss(student, prompt, target):
    """The definition: one sequence without padding, cross entropy at its target's tokens, summed."""
    logits = student(torch.cat([prompt, target])[None]).logits[0, len(prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, target, reduction="sum")


@pytest.mark.parametrize("cut", [[ALL], [[4, 1], [3, 0], [2]]])
def test_the_loss_of_a_decoder_is_that_of_single_rows(cut):
    """Labels, rationales and label probabilities; the prompt is not learned."""
    torch.manual_seed(0)
    shape = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "tie_word_embeddings": True}  # fmt: skip
    student = student_from_config(shape, vocab_size=50, pad_token_id=0, eos_token_id=1)
    hard = [
        sum(map(dense_loss, [student] * 5, inputs, targets)) / sum(map(len, targets))
        for inputs, targets in ((PREDICT, LABELS), (EXPLAIN, RATIONALES))
    ]
    soft = []
    for row, choices in zip((0, 2, 3), CANDIDATES, strict=True):
        scores = torch.stack([-dense_loss(student, PREDICT[row], text) for text in choices])
        own = SOFT[[number for number, other in enumerate(SOFT_ROWS) if other == row]]
        soft.append(-(own * scores.log_softmax(0)).sum())
    expected = 0.3 * (0.6 * hard[0] + 0.4 * sum(soft) / 3) + 0.7 * hard[1]
    expected.backward()
    wanted = gradients(student)
    student.zero_grad()
    objective, view = TaskPrefixObjective(0.3, soft_weight=0.4), Decoder(student)
    shares = [objective(view, with_probabilities(rows), TOKENS | {"soft": 3}) for rows in cut]
    for share in shares:
        share.loss.backward()
    assert float(sum(share.loss.detach() for share in shares)) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, found in gradients(student).items():
        assert torch.allclose(found, wanted[name], rtol=1e-3, atol=2e-6), name


def test_without_a_weight_probabilities_cost_nothing(student):
    plain = TaskPrefixObjective(0.3)(Seq2Seq(student), batch_of(ALL), TOKENS)
    other = TaskPrefixObjective(0.3)(Seq2Seq(student), with_probabilities(ALL), TOKENS)
    assert torch.equal(plain.loss, other.loss)
    assert "soft" not in other.terms


def test_soft_labels_at_a_low_temperature():
    scores = torch.tensor([-1.0, -2.0, -3.0, -4.0, -1.0, -9.0], requires_grad=True)
    rows, soft = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0.3, 0.27, 0.23, 0.2, 0.0, 1.0])
    loss = soft_label_loss(scores, soft, rows, 0.01)
    loss.backward()
    assert torch.isfinite(scores.grad).all()
    # The likeliest choice has all: nothing of the first row, whose student says so too, 8 / T of the second.
    assert float(loss.detach()) == pytest.approx(8 / 0.01 * 0.01**2, rel=1e-3)
