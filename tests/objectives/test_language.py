from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from potstill.data.corpus.datamodule import AlignedInputs, MicroBatch, StepBatch
from potstill.interchange.intervene import Swap, blocks_read, counterfactual, run
from potstill.interchange.mappings import read_mappings
from potstill.losses.hidden import cosine_distance
from potstill.losses.soft_targets import (
    cross_entropy,
    generalized_js_divergence,
    kl_divergence,
    logit_mse,
    reverse_kl_divergence,
    universal_logit_distance,
)
from potstill.models.backbone import backbone_of
from potstill.models.students import student_from_layers
from potstill.objectives.interchange import Interchange
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
    return StepBatch(list(micro), tokens, labelled)


@pytest.mark.parametrize("positions", ["all", "masked"])
def test_equals_the_textbook(pair, positions):
    teacher, student = pair
    micro = micro_of([9, 6, 7])
    step = step_of(micro)
    objective = LanguageObjective("masked", ALL, temperature=2.0, positions=positions)
    found = objective(backbone_of(student), backbone_of(teacher), micro, objective.denominators(step))
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
            "cos": cosine_distance(s.hidden_states[-1].flatten(0, 1)[rows], t.hidden_states[-1].flatten(0, 1)[rows]),
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
    shares = [objective(backbone_of(student), backbone_of(teacher), m, denominators) for m in parts]
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
    once = objective(backbone_of(student), backbone_of(teacher), joined, denominators)
    assert sum(s.loss.item() for s in shares) == pytest.approx(once.loss.item(), rel=1e-4)


def test_student_equal_to_teacher_has_no_soft_loss(pair):
    teacher, _ = pair
    micro = micro_of([9, 6])
    objective = LanguageObjective("masked", {"ce": 1.0, "mse": 1.0, "cos": 1.0}, temperature=3.0)
    found = objective(backbone_of(teacher), backbone_of(teacher), micro, objective.denominators(step_of(micro)))
    for value in found.terms.values():
        assert abs(value.item()) < 1e-5


class Counting:
    """A backbone that counts what is asked of it."""

    def __init__(self, backbone):
        self.backbone, self.calls = backbone, []

    def __getattr__(self, name):
        if name in ("embed", "head", "decoder"):
            self.calls.append(name)
        return getattr(self.backbone, name)


def test_a_term_of_weight_zero_costs_nothing(pair):
    teacher, student = pair
    micro = micro_of([9, 6])
    step = step_of(micro)

    def calls(**weights):
        watched = Counting(backbone_of(teacher))
        objective = LanguageObjective("masked", weights, temperature=2.0)
        objective(backbone_of(student), watched, micro, objective.denominators(step))
        return watched.calls

    assert calls(ce=0.0, mlm=1.0, cos=0.0) == []
    assert calls(ce=0.0, mlm=1.0, cos=1.0) == ["embed"]  # no vocabulary projection of the teacher
    assert sorted(calls(ce=1.0, mlm=0.0, cos=0.0)) == ["decoder", "embed", "head"]


def test_a_step_with_nothing_to_predict_adds_nothing(pair):
    _, student = pair
    micro = micro_of([9, 6])
    micro.labels.fill_(-100)
    objective = LanguageObjective("masked", {"mlm": 1.0}, temperature=2.0)
    found = objective(backbone_of(student), None, micro, objective.denominators(step_of(micro)))
    assert found.loss.item() == found.terms["mlm"].item() == 0.0


def test_causal_labels(gpt2_teacher):
    model = AutoModelForCausalLM.from_pretrained(gpt2_teacher).eval()
    micro = micro_of([9, 6], masked=False)
    labels = torch.full(micro.input_ids.shape, -100).flatten()
    labels[micro.positions] = micro.labels
    with torch.no_grad():
        logits = model(micro.input_ids, attention_mask=micro.attention_mask).logits
        expected = cross_entropy(logits.flatten(0, 1), labels) * len(micro.positions)
        assert label_nll(backbone_of(model), micro).item() == pytest.approx(expected.item(), rel=1e-4)


CAUSAL = {"ce": 1.0, "mlm": 0.5, "cos": 0.25, "causal_ce": 2.0, "causal_cos": 0.5}


def swapping(micro, pairs, reached=None):
    """The micro-batch with ((row, column), (source row, source column)) swaps."""
    width = micro.input_ids.shape[1]
    source_width = width if micro.sources is None else micro.sources.input_ids.shape[1]
    micro.swap = Swap(
        torch.tensor([r * width + c for (r, c), _ in pairs]),
        torch.tensor([r * source_width + c for _, (r, c) in pairs]),
    )
    for part in (micro, micro.sources):
        if part is not None:
            part.reached = torch.ones_like(part.positions, dtype=torch.bool) if reached is None else reached
    return micro


def full_step(*micro):
    parts = [part for m in micro for part in (m, m.sources) if part is not None]
    labelled = sum(int((m.labels != -100).sum()) for m in parts)
    tokens = sum(len(m.positions) for m in parts)
    reached = sum(int(m.reached.sum()) for m in parts)
    both = sum(int((m.reached & (m.labels != -100)).sum()) for m in parts)
    return StepBatch(list(micro), tokens, labelled, reached=reached, reached_labelled=both)


def interchange_of(pair, mapping="multilayer", **settings):
    teacher, student = map(backbone_of, pair)
    return Interchange(read_mappings(mapping, teacher, student), **settings)


def counterfactual_rows(model, micro, sites, rows):
    backbone = backbone_of(model)
    with torch.no_grad():
        base = run(
            backbone, backbone.embed(micro.input_ids, micro.attention_mask), {sites[0].block, *blocks_read(sites, "")}
        )
        last = counterfactual(backbone, base, base, sites, micro.swap).flatten(0, 1)[rows]
        return last, torch.nn.functional.linear(backbone.head(last), *backbone.decoder)


DIVERGENCES = {
    "forward_kl": kl_divergence,
    "reverse_kl": reverse_kl_divergence,
    "jsd": partial(generalized_js_divergence, beta=0.3),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_both_soft_terms_have_the_divergence(divergence, pair):
    """Over base and counterfactual rows in one pass, which have weights of their own; gradients too."""
    teacher, student = pair
    micro = swapping(micro_of([9, 6, 7]), [((0, 2), (1, 5)), ((1, 0), (2, 6)), ((2, 3), (0, 8))])
    exchange = interchange_of(pair, "single_middle")
    settings = {"interchange": exchange, "divergence": divergence, "beta": 0.3}
    objective = LanguageObjective("masked", {"ce": 0.7, "causal_ce": 2.0, "mlm": 0.1}, 2.0, **settings)
    found = objective(backbone_of(student), backbone_of(teacher), micro, objective.denominators(full_step(micro)))
    rows, (mapping,) = micro.positions, exchange.mappings
    s, t = (
        model(micro.input_ids, attention_mask=micro.attention_mask).logits.flatten(0, 1)[rows] for model in pair[::-1]
    )
    _, s_causal = counterfactual_rows(student, micro, mapping.student, rows)
    _, t_causal = counterfactual_rows(teacher, micro, mapping.teacher, rows)
    compare = DIVERGENCES[divergence]
    assert found.terms["ce"].item() == pytest.approx(compare(s, t, 2.0).item(), rel=1e-4)
    assert found.terms["causal_ce"].item() == pytest.approx(compare(s_causal, t_causal, 2.0).item(), rel=1e-4)
    alone = replace(objective, weights={"ce": 0.7}, interchange=None)
    student.zero_grad()
    alone(backbone_of(student), backbone_of(teacher), micro, alone.denominators(full_step(micro))).loss.backward()
    ours = student.bert.embeddings.word_embeddings.weight.grad.clone()
    student.zero_grad()
    (0.7 * compare(s, t.detach(), 2.0)).backward()
    torch.testing.assert_close(ours, student.bert.embeddings.word_embeddings.weight.grad, rtol=1e-3, atol=1e-6)
    student.zero_grad()


@pytest.mark.parametrize("positions", ["all", "masked"])
@pytest.mark.parametrize("draw", [0, 1])
def test_causal_terms_equal_the_textbook(pair, positions, draw):
    teacher, student = pair
    micro = swapping(micro_of([9, 6, 7]), [((0, 2), (1, 5)), ((1, 0), (2, 6)), ((2, 3), (0, 8))])
    micro.reached[:3] = False
    micro.swap.draw = draw
    exchange = interchange_of(pair)
    objective = LanguageObjective("masked", CAUSAL, 2.0, positions, exchange)
    found = objective(backbone_of(student), backbone_of(teacher), micro, objective.denominators(full_step(micro)))
    wanted = micro.reached & (micro.labels != -100) if positions == "masked" else micro.reached
    mapping = exchange.mappings[draw]
    s_last, s_logits = counterfactual_rows(student, micro, mapping.student, micro.positions[wanted])
    t_last, t_logits = counterfactual_rows(teacher, micro, mapping.teacher, micro.positions[wanted])
    assert found.terms["causal_ce"].item() == pytest.approx(kl_divergence(s_logits, t_logits, 2.0).item(), rel=1e-4)
    assert found.terms["causal_cos"].item() == pytest.approx(cosine_distance(s_last, t_last).item(), rel=1e-4)
    assert found.loss.item() == pytest.approx(sum(CAUSAL[k] * v.item() for k, v in found.terms.items()), rel=1e-4)


def test_pairing_in_batch_and_from_the_data_set_agree(pair):
    teacher, student = map(backbone_of, pair)
    inside = swapping(micro_of([9, 9]), [((0, 2), (1, 5)), ((1, 0), (0, 6))])
    outside = micro_of([9, 9])
    outside.sources = micro_of([9, 9])
    swapping(outside, [((0, 2), (1, 5)), ((1, 0), (0, 6))])
    values = []
    for micro in (inside, outside):
        objective = LanguageObjective("masked", CAUSAL, 2.0, interchange=interchange_of(pair))
        denominators = dict.fromkeys(CAUSAL, 10.0)
        values.append(objective(student, teacher, micro, denominators))
    assert {k: v.item() for k, v in values[0].terms.items()} == pytest.approx(
        {k: v.item() for k, v in values[1].terms.items()}, rel=1e-5
    )


def test_crossway_of_two_is_crossway_of_the_other_two(pair):
    teacher, student = map(backbone_of, pair)
    pairs = [((0, 2), (0, 5)), ((1, 0), (1, 6))]
    found = []
    for flip in (False, True):
        parts = [micro_of([9, 6], seed=1), micro_of([8, 7], seed=2)][:: -1 if flip else 1]
        parts[0].sources = parts[1]
        micro = swapping(parts[0], [p[::-1] if flip else p for p in pairs])
        objective = LanguageObjective("masked", CAUSAL, 2.0, interchange=interchange_of(pair, crossway=True))
        found.append(objective(student, teacher, micro, objective.denominators(full_step(micro))))
    assert found[0].loss.item() == pytest.approx(found[1].loss.item(), rel=1e-5)
    one_way = LanguageObjective("masked", CAUSAL, 2.0, interchange=interchange_of(pair))
    shares = []
    for flip in (False, True):
        parts = [micro_of([9, 6], seed=1), micro_of([8, 7], seed=2)][:: -1 if flip else 1]
        parts[0].sources = parts[1]
        micro = swapping(parts[0], [p[::-1] if flip else p for p in pairs])
        shares.append(one_way(student, teacher, micro, one_way.denominators(full_step(micro))).loss.item())
    assert sum(shares) == pytest.approx(found[0].loss.item(), rel=1e-5)


@pytest.mark.parametrize("dataset", [False, True])
def test_augmentation_is_a_pass_over_swapped_tokens(pair, dataset):
    teacher, student = pair
    micro = micro_of([9, 9])
    if dataset:
        micro.sources = micro_of([9, 9], seed=4)
    swapping(micro, [((0, 2), (1, 5)), ((1, 0), (0, 6))])
    exchange = interchange_of(pair, data_augment=True)
    objective = LanguageObjective("masked", {"causal_ce": 1.0}, 2.0, interchange=exchange)
    denominators = {"causal_ce": float(len(micro.positions))}
    found = objective(backbone_of(student), backbone_of(teacher), micro, denominators)
    ids = micro.input_ids.clone()
    source = micro.sources.input_ids if dataset else micro.input_ids
    ids[0, 2], ids[1, 0] = source[1, 5], source[0, 6]
    with torch.no_grad():
        s, t = (
            m(ids, attention_mask=micro.attention_mask).logits.flatten(0, 1)[micro.positions]
            for m in (student, teacher)
        )
    assert found.terms["causal_ce"].item() == pytest.approx(kl_divergence(s, t, 2.0).item(), rel=1e-4)


def test_student_equal_to_teacher_has_no_causal_loss(pair):
    teacher = backbone_of(pair[0])
    micro = swapping(micro_of([9, 6]), [((0, 2), (1, 5))])
    exchange = Interchange(read_mappings([{"teacher": {"layers": 1}, "student": {"layers": 1}}], teacher, teacher))
    objective = LanguageObjective("masked", {"causal_ce": 1.0, "causal_cos": 1.0}, 3.0, interchange=exchange)
    found = objective(teacher, teacher, micro, objective.denominators(full_step(micro)))
    assert all(abs(value.item()) < 1e-5 for value in found.terms.values())


def test_causal_terms_alone_run_no_base_to_the_end(pair):
    """The base runs stop at the swapped block; the counterfactual ones go on from there."""
    teacher, student = pair
    micro = swapping(micro_of([9, 6]), [((0, 2), (1, 5))])
    ran = []
    handle = teacher.bert.encoder.layer[-1].register_forward_hook(lambda *_: ran.append("teacher"))
    objective = LanguageObjective("masked", {"causal_ce": 1.0}, interchange=interchange_of(pair, "single_middle"))
    objective(backbone_of(student), backbone_of(teacher), micro, objective.denominators(full_step(micro)))
    handle.remove()
    assert ran == ["teacher"]


def test_nothing_to_swap_costs_nothing_and_is_no_problem(pair):
    teacher, student = map(backbone_of, pair)
    micro = micro_of([9])
    objective = LanguageObjective("masked", CAUSAL, interchange=interchange_of(pair))
    found = objective(student, teacher, micro, objective.denominators(step_of(micro)))
    assert found.terms.get("causal_ce", torch.zeros(())).item() == 0
    found.loss.backward()


def test_other_tokens_are_compared_where_both_have_read_the_same():
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    teacher = GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=24, **shape)).eval()
    student = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, **shape)).eval()
    micro = micro_of([9, 6, 7], vocab=60, masked=False)
    theirs = micro_of([4, 11, 8], vocab=90, masked=False, seed=1)
    rows, other_rows = torch.tensor([0, 4, 9, 13, 20]), torch.tensor([1, 3, 12, 20, 25])
    micro.teacher = AlignedInputs(theirs.input_ids, theirs.attention_mask, rows, other_rows)
    step = step_of(micro)
    step.aligned = 5
    objective = LanguageObjective("causal", {"uld": 2.0, "clm": 1.0}, temperature=1.5)
    found = objective(backbone_of(student), backbone_of(teacher), micro, objective.denominators(step))
    found.loss.backward()
    weight = student.transformer.wte.weight
    gradient, weight.grad = weight.grad, None
    s = student(micro.input_ids, attention_mask=micro.attention_mask).logits.flatten(0, 1)
    with torch.no_grad():
        t = teacher(theirs.input_ids, attention_mask=theirs.attention_mask).logits.flatten(0, 1)
    distance = universal_logit_distance(s[rows], t[other_rows], temperature=1.5)
    hard = cross_entropy(s[micro.positions], micro.labels)
    torch.testing.assert_close(found.terms["uld"], distance.detach())
    torch.testing.assert_close(found.loss, 2 * distance + hard)
    (2 * distance + hard).backward()
    torch.testing.assert_close(gradient, weight.grad)
    alone = LanguageObjective("causal", {"uld": 1.0}, temperature=1.5)
    weight.grad = None
    alone(backbone_of(student), backbone_of(teacher), micro, alone.denominators(step)).loss.backward()
    assert weight.grad.abs().max() > 0
    assert alone.needs_teacher
