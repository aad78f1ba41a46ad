import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from potstill.data.corpus.datamodule import MicroBatch, StepBatch
from potstill.losses.hidden import cosine_distance
from potstill.losses.soft_targets import cross_entropy, kl_divergence, logit_mse
from potstill.models.students import student_from_layers
from potstill.models.trunk import trunk_of
from potstill.objectives.language import LanguageObjective, label_nll

ALL = {"ce": 5.0, "mlm": 2.0, "mse": 0.01, "cos": 1.0}


@pytest.fixture(scope="module")
def pair(bert_teacher):
    teacher = AutoModelForMaskedLM.from_pretrained(bert_teacher).eval()
    torch.manual_seed(1)
    return teacher, student_from_layers(teacher, [0, 3]).eval()


def micro_of(lengths, vocab=100, masked=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    mask = torch.stack([(torch.arange(width) < n).long() for n in lengths])
    ids = torch.randint(5, vocab, mask.shape, generator=generator) * mask
    positions = mask.flatten().nonzero().squeeze(1)
    labels = torch.randint(5, vocab, positions.shape, generator=generator)
    if masked:
        labels[torch.rand(positions.shape, generator=generator) > 0.3] = -100
    return MicroBatch(ids, mask, positions, labels)


def step_of(*micro):
    labelled = sum(int((m.labels != -100).sum()) for m in micro)
    tokens = sum(len(m.positions) for m in micro)
    return StepBatch(list(micro), tokens, labelled, tokens)


@pytest.mark.parametrize("positions", ["all", "masked"])
def test_equals_the_textbook(pair, positions):
    teacher, student = pair
    micro = micro_of([9, 6, 7])
    step = step_of(micro)
    objective = LanguageObjective("masked", ALL, temperature=2.0, positions=positions)
    found = objective(trunk_of(student), trunk_of(teacher), micro, objective.denominators(step))
    with torch.no_grad():
        s, t = (
            m(micro.input_ids, attention_mask=micro.attention_mask, output_hidden_states=True)
            for m in (student, teacher)
        )
        rows = micro.positions if positions == "all" else micro.positions[micro.labels != -100]
        s_rows, t_rows = s.logits.flatten(0, 1)[rows], t.logits.flatten(0, 1)[rows]
        expected = {
            "ce": kl_divergence(s_rows, t_rows, 2.0),
            "mse": logit_mse(s_rows, t_rows),
            "mlm": cross_entropy(s.logits.flatten(0, 1)[micro.positions], micro.labels),
            "cos": cosine_distance(
                s.hidden_states[-1].flatten(0, 1)[rows], t.hidden_states[-1].flatten(0, 1)[rows]
            ),
        }
    assert set(found.terms) == set(expected)
    for name, value in expected.items():
        assert found.terms[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert found.loss.item() == pytest.approx(sum(ALL[k] * v.item() for k, v in expected.items()), rel=1e-4)


def test_micro_batches_add_up(pair):
    teacher, student = pair
    parts = [micro_of([9, 6], seed=1), micro_of([12, 3], seed=2)]
    step = step_of(*parts)
    objective = LanguageObjective("masked", ALL, temperature=2.0)
    denominators = objective.denominators(step)
    shares = [objective(trunk_of(student), trunk_of(teacher), m, denominators) for m in parts]
    whole = torch.zeros(4, 12, dtype=torch.long)
    mask = torch.zeros_like(whole)
    labels = torch.full_like(whole, -100)
    for i, m in enumerate(parts):
        width = m.input_ids.shape[1]
        whole[2 * i : 2 * i + 2, :width] = m.input_ids
        mask[2 * i : 2 * i + 2, :width] = m.attention_mask
        spread = torch.full((2 * width,), -100)
        spread[m.positions] = m.labels
        labels[2 * i : 2 * i + 2, :width] = spread.view(2, width)
    positions = mask.flatten().nonzero().squeeze(1)
    joined = MicroBatch(whole, mask, positions, labels.flatten()[positions])
    once = objective(trunk_of(student), trunk_of(teacher), joined, denominators)
    assert sum(s.loss.item() for s in shares) == pytest.approx(once.loss.item(), rel=1e-4)


def test_student_equal_to_teacher_has_no_soft_loss(pair):
    teacher, _ = pair
    micro = micro_of([9, 6])
    objective = LanguageObjective("masked", {"ce": 1.0, "mse": 1.0, "cos": 1.0}, temperature=3.0)
    found = objective(trunk_of(teacher), trunk_of(teacher), micro, objective.denominators(step_of(micro)))
    for value in found.terms.values():
        assert abs(value.item()) < 1e-5


class Counting:
    """A trunk that counts what is asked of it."""

    def __init__(self, trunk):
        self.trunk, self.calls = trunk, []

    def __getattr__(self, name):
        if name in ("encode", "head", "decoder"):
            self.calls.append(name)
        return getattr(self.trunk, name)


def test_a_term_of_weight_zero_costs_nothing(pair):
    teacher, student = pair
    micro = micro_of([9, 6])
    step = step_of(micro)

    def calls(**weights):
        watched = Counting(trunk_of(teacher))
        objective = LanguageObjective("masked", weights, temperature=2.0)
        objective(trunk_of(student), watched, micro, objective.denominators(step))
        return watched.calls

    assert calls(ce=0.0, mlm=1.0, cos=0.0) == []
    assert calls(ce=0.0, mlm=1.0, cos=1.0) == ["encode"]  # no vocabulary projection of the teacher
    assert sorted(calls(ce=1.0, mlm=0.0, cos=0.0)) == ["decoder", "encode", "head"]


def test_a_step_with_nothing_to_predict_adds_nothing(pair):
    _, student = pair
    micro = micro_of([9, 6])
    micro.labels.fill_(-100)
    objective = LanguageObjective("masked", {"mlm": 1.0}, temperature=2.0)
    found = objective(trunk_of(student), None, micro, objective.denominators(step_of(micro)))
    assert found.loss.item() == found.terms["mlm"].item() == 0.0


def test_causal_labels(gpt2_teacher):
    model = AutoModelForCausalLM.from_pretrained(gpt2_teacher).eval()
    micro = micro_of([9, 6], masked=False)
    labels = torch.full(micro.input_ids.shape, -100).flatten()
    labels[micro.positions] = micro.labels
    with torch.no_grad():
        logits = model(micro.input_ids, attention_mask=micro.attention_mask).logits
        expected = cross_entropy(logits.flatten(0, 1), labels) * len(micro.positions)
        assert label_nll(trunk_of(model), micro).item() == pytest.approx(expected.item(), rel=1e-4)
