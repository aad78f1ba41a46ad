"""Terms on features of adaptors against their plain formulas, however a step is cut."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from potstill.errors import ConfigError, PotstillError
from potstill.losses import attention, hidden
from potstill.objectives.custom import (
    AdaptorReader,
    agreeing,
    call_model,
    correct,
    counts_examples,
    read_features,
    term_errors,
    units_of,
)
from potstill.objectives.features import Features
from potstill.objectives.matches import Matches
from potstill.objectives.matching import read_matches
from potstill.objectives.soft_targets import SoftTargets
from potstill.objectives.task import Observed, TaskObjective

LABELS = torch.tensor([0, 2, 1, -100, 1, 0])


def returned(seed, channels=3, rows=slice(None), **further):
    """What an adaptor returns for some of six examples."""
    draw = torch.Generator().manual_seed(seed)
    values = {
        "logits": torch.randn(6, 4, generator=draw),
        "hidden": {
            "map": torch.randn(6, channels, 2, 2, generator=draw),
            "words": torch.randn(6, 4, channels, generator=draw),
            "pooled": torch.randn(6, channels, generator=draw),
        },
        "attention": [torch.randn(6, 2, 4, 4, generator=draw)],
        "labels": LABELS,
        **further,
    }
    return {
        name: {place: own[rows] for place, own in value.items()} if name == "hidden"
        else [own[rows] if own.ndim else own for own in value] if isinstance(value, list)
        else value[rows]
        for name, value in values.items() if value is not None
    }  # fmt: skip


def features(seed, channels=3, rows=slice(None), **further):
    examples = len(range(6)[rows])
    return read_features(returned(seed, channels, rows, **further), "adaptor", examples)


def objective_of(matches, student, teacher, weights=None, **further):
    read = Matches(read_matches(matches), [teacher], student, seed=0) if matches else None
    weights = {**(weights or {}), **({} if read is None else read.weights)}
    return TaskObjective("classification", weights, matches=read, **further)


def sums_of(objective, student, teacher=None, units=None):
    teachers = [] if teacher is None else [Observed([teacher])]
    return objective.compared(Observed([student]), teachers, units or units_of(objective, student, 6))


def value(objective, student, teacher):
    (term,) = sums_of(objective, student, teacher).terms.values()
    return float(term)


def test_terms_on_logits_are_the_plain_formulas():
    ours, theirs = features(0), features(1)
    student, teacher = ours.logits[0], theirs.logits[0]
    soft = functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    found = value(objective_of(None, ours, theirs, {"ce": 1.0}, temperature=3.0), ours, theirs)
    assert found == pytest.approx(9 * float(soft), rel=1e-5)
    known = LABELS >= 0
    hard = functional.cross_entropy(student[known], LABELS[known], reduction="mean")
    assert value(objective_of(None, ours, theirs, {"label": 1.0}), ours, None) == pytest.approx(float(hard))
    gap = (student - teacher).square().sum() / 6
    assert value(objective_of(None, ours, theirs, {"mse": 1.0}), ours, theirs) == pytest.approx(float(gap))
    reverse = TaskObjective("classification", {"ce": 2.0}, 3.0, soft=SoftTargets("reverse_kl"))
    sums = sums_of(reverse, ours, theirs)
    other = functional.kl_div((teacher / 3).log_softmax(-1), (student / 3).softmax(-1), reduction="batchmean")
    assert float(sums.loss) == pytest.approx(18 * float(other), rel=1e-5)


def test_several_logits_add_up_and_the_models_own_losses_come_first():
    ours, theirs = features(0), features(1)
    two = Features(logits=ours.logits * 2, labels=ours.labels * 2)
    twice = Features(logits=theirs.logits * 2)
    for term in ("ce", "label", "mse"):
        objective = objective_of(None, ours, theirs, {term: 1.0})
        assert value(objective, two, twice) == pytest.approx(2 * value(objective, ours, theirs), rel=1e-6)
    objective = objective_of(None, ours, theirs, {"label": 1.0})
    rows = torch.arange(6.0)
    assert value(objective, features(0, losses=[torch.tensor(0.5)]), None) == pytest.approx(0.5)
    assert value(objective, features(0, losses=[rows, torch.tensor(0.5)]), None) == pytest.approx(3.0)


PLACES = {"map": (3, 2, 2), "words": (4, 3), "pooled": (3,)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("loss", ["hidden_mse", "cos", "fsp", "nst"])
def test_a_match_of_whole_features_is_the_loss_on_flattened_positions(loss, place):
    ours, theirs = features(0), features(1)
    both = loss in ("fsp", "nst")
    where = [place, place] if both else place
    objective = objective_of({"teacher": where, "student": where, "loss": loss}, ours, theirs)
    flat = [side.hidden[place] for side in (ours, theirs)]
    if place == "map":
        assert torch.equal(flat[0][2, 3], returned(0)["hidden"]["map"][2, :, 1, 1])
    plain = {"hidden_mse": hidden.hidden_mse, "cos": hidden.hidden_cosine, "fsp": hidden.fsp, "nst": hidden.nst}
    sides = [(own, own) for own in flat] if both else flat
    assert value(objective, ours, theirs) == pytest.approx(float(plain[loss](*sides)), rel=1e-5)


KEPT = torch.tensor([4, 1, 2, 4, 3, 2])
MASK = (torch.arange(4) < KEPT[:, None]).long()


@pytest.mark.parametrize("place", ["words", "map"])
def test_a_masked_match_is_the_mean_over_the_kept_positions_of_the_batch(place):
    mask = MASK.view(6, 2, 2) if place == "map" else MASK
    ours, theirs = features(0, inputs_mask=mask), features(1)
    objective = objective_of({"teacher": place, "student": place, "loss": "hidden_mse"}, ours, theirs)
    gap = (ours.hidden[place] - theirs.hidden[place]).square()
    plain = (gap * MASK[..., None]).sum() / (MASK.sum() * gap.shape[-1])
    assert value(objective, ours, theirs) == pytest.approx(float(plain), rel=1e-5)


def test_other_losses_of_hidden_states():
    ours, theirs = features(0, inputs_mask=MASK), features(1)
    first = [functional.normalize(side.hidden["words"][:, 0], dim=-1) for side in (ours, theirs)]
    plain = (first[0] - first[1]).square().sum(-1).mean()
    pkd = {"teacher": "words", "student": "words", "loss": "pkd"}
    assert value(objective_of(pkd, ours, theirs), ours, theirs) == pytest.approx(float(plain), rel=1e-5)
    pooled = {"teacher": "pooled", "student": "pooled", "loss": "pkd"}
    vectors = [functional.normalize(side.hidden["pooled"][:, 0], dim=-1) for side in (ours, theirs)]
    plain = (vectors[0] - vectors[1]).square().sum(-1).mean()
    assert value(objective_of(pooled, ours, theirs), ours, theirs) == pytest.approx(float(plain), rel=1e-5)


def test_emd_projects_each_layer_of_the_student_by_itself():
    pytest.importorskip("ot")
    draw = torch.Generator().manual_seed(3)
    layers = {
        side: [torch.randn(6, 4, width, generator=draw) for _ in range(count)]
        for side, width, count in (("student", 3, 2), ("teacher", 5, 4))
    }
    ours = read_features({"hidden": layers["student"], "inputs_mask": MASK}, "a", 6)
    theirs = read_features({"hidden": layers["teacher"]}, "a", 6)
    written = {
        "teacher": [0, 1, 2, 3], "student": [0, 1], "loss": "emd", "projection": "linear", "name": "layers",
    }  # fmt: skip
    objective = objective_of(written, ours, theirs)
    made = objective.matches.projections["layers"]
    assert [tuple(linear.weight.shape) for linear in made] == [(5, 3), (5, 3)]
    assert not torch.equal(made[0].weight, made[1].weight)
    costs = torch.stack([
        torch.stack([
            ((project(own) - other).square() * MASK[..., None]).sum() / (MASK.sum() * 5)
            for other in layers["teacher"]
        ])
        for project, own in zip(made, layers["student"], strict=True)
    ])  # fmt: skip
    costs = costs.detach()
    # With two layers of weight 1/2 and four of 1/4, each student layer takes two of the teacher's.
    plans = [{a, b} for a in range(4) for b in range(a)]
    plain = min(float(sum(costs[0 if layer in first else 1, layer] for layer in range(4))) / 4 for first in plans)
    assert value(objective, ours, theirs) == pytest.approx(plain, rel=1e-5)
    sums_of(objective, ours, theirs).loss.backward()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in made)
    narrow = read_features({"hidden": [layers["student"][0], torch.zeros(6, 4, 2)]}, "a", 6)
    assert objective_of(written, narrow, theirs).matches.projections["layers"][1].weight.shape == (5, 2)
    with pytest.raises(PotstillError, match=r"loss=emd: .* 2 wide.* 3; .*projection="):
        objective_of({**written, "projection": None, "teacher": [0]}, narrow, ours)


def published_without_mask(loss, student, teacher):
    """The published arithmetic of attention losses without an input mask."""
    if loss.endswith(("_sum", "_mean")):
        student, teacher = (
            side.sum(1) if loss.endswith("_sum") else side.mean(1) for side in (student, teacher)
        )  # fmt: skip
    if "mse" in loss:
        kept = [torch.where(side <= -1e-3, torch.zeros_like(side), side) for side in (student, teacher)]
        return functional.mse_loss(*kept)
    targets = torch.where(teacher <= -1e-3, torch.zeros_like(teacher), teacher.softmax(-1))
    return -(targets * student.log_softmax(-1)).sum(-1).mean()


@pytest.mark.parametrize("loss", ["attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean"])
def test_the_published_rule_of_attention_has_no_mask(loss):
    entry = {"teacher": 0, "student": 0, "loss": loss, "published": True}
    ours, theirs = features(0), features(1)
    scores = [side.attention[0] for side in (ours, theirs)]
    found = value(objective_of(entry, ours, theirs), ours, theirs)
    assert found == pytest.approx(float(published_without_mask(loss, *scores)), rel=1e-5)
    plain = {**entry, "published": False}
    assert found != pytest.approx(value(objective_of(plain, ours, theirs), ours, theirs), rel=1e-2)
    masked = features(0, inputs_mask=MASK)
    added = [own + (1 - MASK[:, None, None]) * -10000.0 for own in scores]
    found = value(objective_of(entry, masked, theirs), masked, theirs)
    assert found == pytest.approx(float(published_without_mask(loss, *added)), rel=1e-5)


@pytest.mark.parametrize("published", [True, "yes"])
def test_only_attention_has_a_published_rule(published):
    with pytest.raises(ConfigError, match=f"published={published}: .*attention_ce.*loss=cos"):
        read_matches({"teacher": 0, "student": 0, "loss": "cos", "published": published})


TAGS = torch.tensor([[0, 1, 2, -100], [3, 0, 0, 0], [1, 1, -100, 0], [2, 0, 1, 3], [1, 2, 3, 0], [0, -100, 0, 0]])


def tagged(seed, rows=slice(None), **further):
    draw = torch.Generator().manual_seed(seed)
    values = {
        "logits": [torch.randn(6, 4, 4, generator=draw), torch.randn(6, 4, 2, generator=draw)],
        "logits_mask": [MASK, MASK.flip(0)], "labels": [TAGS, TAGS.clamp(max=1)], **further,
    }  # fmt: skip
    values = {name: [own[rows] for own in value] for name, value in values.items() if value is not None}
    return read_features(values, "adaptor", len(range(6)[rows]))


def selected(seed):
    """Predictions and labels of both heads, as the published selection makes them."""
    draw = torch.Generator().manual_seed(seed)
    heads = [torch.randn(6, 4, 4, generator=draw), torch.randn(6, 4, 2, generator=draw)]
    masks = [MASK, MASK.flip(0)]
    return [
        (torch.masked_select(own, mask.bool()[..., None].expand_as(own)).view(-1, own.shape[-1]), tags[mask.bool()])
        for own, mask, tags in zip(heads, masks, [TAGS, TAGS.clamp(max=1)], strict=True)
    ]


def test_masks_select_predictions_and_heads_add_up():
    ours, theirs = tagged(0), tagged(1)
    pairs = list(zip(selected(0), selected(1), strict=True))
    soft = sum(-((t[0] / 2).softmax(-1) * (s[0] / 2).log_softmax(-1)).sum(-1).mean() for s, t in pairs)
    toolkit = {"soft": SoftTargets("cross_entropy"), "temperature": 2.0}
    found = value(objective_of(None, ours, theirs, {"ce": 1.0}, **toolkit), ours, theirs)
    assert found == pytest.approx(float(soft), rel=1e-5)
    distance = sum(functional.mse_loss(s[0] / 2, t[0] / 2) for s, t in pairs)
    squared = {"soft": SoftTargets("mse"), "temperature": 2.0}
    found = value(objective_of(None, ours, theirs, {"ce": 1.0}, **squared), ours, theirs)
    assert found == pytest.approx(float(distance), rel=1e-5)
    hard = sum(functional.cross_entropy(*s) for s, _ in pairs)
    found = value(objective_of(None, ours, theirs, {"label": 1.0}), ours, theirs)
    assert found == pytest.approx(float(hard), rel=1e-5)
    known = sum(int((tags >= 0).sum()) for (_, tags), _ in pairs)
    assert correct(ours)[1] == known
    assert agreeing(ours, theirs)[1] == 2 * int(MASK.sum())


def test_a_probability_shift_moves_selected_targets():
    ours, theirs = tagged(0), tagged(1)
    plain = 0.0
    for (student, tags), (teacher, _) in zip(selected(0), selected(1), strict=True):
        moved = teacher.clone()
        for row, tag in enumerate(tags.tolist()):
            if tag >= 0:
                best = int(moved[row].argmax())
                moved[row, best], moved[row, tag] = teacher[row, tag], teacher[row, best]
        plain += float(-(moved.softmax(-1) * student.log_softmax(-1)).sum(-1).mean())
    shifted = objective_of(None, ours, theirs, {"ce": 1.0}, soft=SoftTargets("cross_entropy", shift=True))
    assert value(shifted, ours, theirs) == pytest.approx(plain, rel=1e-5)


def test_one_mask_for_all_heads_none_and_logits_without_positions():
    draw = torch.Generator().manual_seed(0)
    words, rows = torch.randn(6, 4, 3, generator=draw), torch.randn(6, 2, generator=draw)
    found = read_features({"logits": [words, rows, words], "logits_mask": MASK}, "a", 6).logits
    assert [tuple(own.shape) for own in found] == [(16, 3), (6, 2), (16, 3)]
    assert torch.equal(found[0], words[MASK.bool()])
    assert torch.equal(found[1], rows)
    assert read_features({"logits": (words,)}, "a", 6).logits[0].shape == (24, 3)
    scores = read_features({"attention": [torch.randn(6, 4, 4, generator=draw)]}, "a", 6).attention[0]
    assert scores.shape == (6, 1, 4, 4)


def test_a_batch_without_a_selected_prediction_adds_nothing():
    none = torch.zeros_like(MASK)
    ours, theirs = tagged(0, logits_mask=[none, none]), tagged(1, logits_mask=[none, none])
    objective = objective_of(None, ours, theirs, {"ce": 1.0, "label": 1.0})
    units = {term: own.clamp(min=1) for term, own in units_of(objective, ours, 6).items()}
    sums = sums_of(objective, ours, theirs, units)
    assert float(sums.loss) == 0.0


def test_whether_all_terms_count_examples():
    ours, theirs = features(0), features(1)
    pkd = {"teacher": "words", "student": "words", "loss": "pkd"}
    assert counts_examples(objective_of(pkd, ours, theirs, {"ce": 1.0}), ours)
    assert not counts_examples(objective_of({**pkd, "loss": "cos"}, ours, theirs), ours)
    assert not counts_examples(objective_of(None, ours, theirs, {"ce": 1.0}), tagged(0))
    assert not counts_examples(objective_of(None, ours, theirs, {"label": 1.0}), ours)
    assert counts_examples(objective_of(None, ours, theirs, {"label": 1.0}), features(0, losses=[torch.ones(6)]))


@pytest.mark.parametrize("loss", ["attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean"])
def test_matches_of_attention(loss):
    ours, theirs = features(0), features(1)
    objective = objective_of({"teacher": 0, "student": 0, "loss": loss}, ours, theirs)
    plain = getattr(attention, loss)(ours.attention[0], theirs.attention[0])
    assert value(objective, ours, theirs) == pytest.approx(float(plain), rel=1e-5)


def test_a_projection_is_a_1x1_convolution_over_channels():
    ours, theirs = features(0, channels=3), features(1, channels=5)
    written = {"teacher": "map", "student": "map", "loss": "hidden_mse", "projection": "relu", "name": "maps"}
    objective = objective_of(written, ours, theirs)
    linear = objective.matches.projections["maps"][0]
    weight = linear.weight.detach()[:, :, None, None]
    maps = [returned(seed, channels)["hidden"]["map"] for seed, channels in ((0, 3), (1, 5))]
    projected = functional.conv2d(maps[0], weight, linear.bias.detach()).relu()
    plain = functional.mse_loss(projected, maps[1])
    assert value(objective, ours, theirs) == pytest.approx(float(plain), rel=1e-5)
    sums_of(objective, ours, theirs).loss.backward()
    assert linear.weight.grad.abs().sum() > 0
    again = objective_of(written, ours, theirs).matches.projections["maps"][0]
    assert torch.equal(again.weight, linear.weight)


def test_shares_of_any_cut_add_up():
    matches = [
        {"teacher": "words", "student": "words", "loss": "cos"},
        {"teacher": ["words", "words"], "student": ["words", "words"], "loss": "fsp", "name": "flow"},
        {"teacher": 0, "student": 0, "loss": "attention_ce", "weight": 0.5, "name": "attention"},
        {"teacher": 0, "student": 0, "loss": "attention_mse", "name": "scores", "published": True},
    ]

    def both(rows=slice(None)):
        inner = [features(0, rows=rows, inputs_mask=MASK), features(1, rows=rows)]
        outer = [tagged(0, rows), tagged(1, rows)]
        return [
            replace(own, logits=other.logits, labels=other.labels)
            for own, other in zip(inner, outer, strict=True)
        ]  # fmt: skip

    sides = both()
    objective = objective_of(matches, *sides, {"ce": 1.0, "label": 0.3, "mse": 0.1})
    whole = sums_of(objective, *sides)
    units = units_of(objective, sides[0], 6)
    parts = [sums_of(objective, *both(rows), units) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert float(sum(part.loss for part in parts)) == pytest.approx(float(whole.loss), rel=1e-5)
    for term, whole_value in whole.terms.items():
        assert float(sum(part.terms[term] for part in parts)) == pytest.approx(float(whole_value), rel=1e-5)


def test_what_is_counted():
    ours, theirs = features(0), features(1)
    right = ours.logits[0].argmax(-1) == LABELS
    assert correct(ours) == (int(right.sum()), 5)
    assert correct(Features(logits=ours.logits)) == (0, 0)
    same = ours.logits[0].argmax(-1) == theirs.logits[0].argmax(-1)
    assert agreeing(ours, theirs) == (int(same.sum()), 6)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"teacher": "map", "student": "mop", "loss": "cos"}, r"\[0\].student=mop: .* map, words, pooled"),
        ({"teacher": 3, "student": 0, "loss": "attention_mse"}, r"\[0\].teacher=3: .* 0$"),
        ({"teacher": "words", "student": "map", "loss": "hidden_mse"}, r"loss=hidden_mse: .* 3 .* 5; .*=linear"),
        ({"teacher": 0, "student": 0, "loss": "relation_qk"}, "feature=relation: .*hidden, "),
        ({"teacher": 0, "student": 0, "loss": "cos", "teacher_index": 1}, "teacher_index=1: .* 0 to 0"),
        ({"teacher": "map", "student": "map", "loss": "fsp"}, "teacher=map: .* fsp"),
        ({"teacher": ["map"] * 2, "student": ["map", "pooled"], "loss": "nst"}, r"\[0\]: .* \[3, 4\] .* \[5, 5\]"),
        ({"teacher": -1, "student": "map", "loss": "cos"}, "teacher=-1: "),
        ({"student": "map", "loss": "cos"}, "teacher=null: "),
        ({"teacher": 0, "student": 0, "loss": "attention_ce", "projection": "relu"}, "projection=relu: attention"),
        ({"teacher": 0, "student": 0, "loss": "cos", "heads": 2}, "heads=2: "),
        ({"teacher": 0, "student": 0, "loss": "cos", "projection_lr": 0.1}, "projection_lr=0.1: "),
        ({"teacher": 0, "student": 0, "loss": "cos", "feature": "attention"}, "loss=cos: .* feature=attention"),
        ("L3", "objective.matches.0.=L3: "),
    ],
)  # fmt: skip
def test_invalid_matches(entry, problem):
    ours = features(0)
    ours.hidden["pooled"] = torch.zeros(6, 1, 4)
    with pytest.raises(PotstillError, match=problem):
        objective_of(entry, ours, features(1, channels=5))


def test_terms_that_features_do_not_allow():
    ours, theirs, bare = features(0), features(1), features(0, labels=None)
    wide = Features(logits=(torch.zeros(6, 5),))
    small = features(1)
    small.hidden["map"] = torch.zeros(6, 1, 3)
    match = objective_of({"teacher": "map", "student": "map", "loss": "cos"}, ours, small)
    cases = [
        (objective_of(None, ours, theirs, {"label": 1.0}), bare, theirs, "terms.label.weight: "),
        (objective_of(None, ours, theirs, {"ce": 1.0}), ours, wide, r"terms.ce.weight: .*\[\(6, 4\)\].*\[\(6, 5\)\]"),
        (
            objective_of(None, ours, theirs, {"ce": 1.0}, soft=SoftTargets(shift=True)),
            bare,
            theirs,
            "probability_shift=",
        ),
        (match, ours, small, r"matches: match_0: .*\(6, 4, 3\).*\(6, 1, 3\)"),
    ]
    for objective, student, teacher, problem in cases:
        (error,) = term_errors(objective, student, [teacher])
        assert re.match(problem, error)
    assert not list(term_errors(objective_of(None, ours, theirs, {"ce": 1.0, "label": 1.0}), ours, [theirs]))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "logits, logits_mask, labels, losses, hidden, attention, inputs_mask"),
        ({"logits": None}, "logits, logits_mask, labels, losses, hidden, attention, inputs_mask"),
        ({"logit": torch.zeros(2, 2)}, "the key logit; .* logits, logits_mask"),
        (torch.zeros(2), "Tensor.* dictionary"),
        ({"hidden": [[1.0]]}, r"hidden\[0\] .* list"),
        ({"inputs_mask": [[0.0]]}, r"inputs_mask\[0\] .* list"),
        ({"inputs_mask": [torch.zeros(2, 3)] * 2}, "2 tensors of inputs_mask"),
        ({"mask": torch.zeros(2, 3)}, "the key mask; .*inputs_mask"),
        ({"labels": torch.zeros(3)}, r"labels\[0\] .*\(3,\).* 2 examples"),
        ({"hidden": torch.tensor(1.0)}, r"hidden\[0\] .*\(\)"),
        ({"logits": torch.zeros(2, 3, 4, 5)}, r"logits\[0\] .*\(2, 3, 4, 5\)"),
        ({"logits": torch.zeros(2, 3), "labels": torch.zeros(2, 1)}, r"labels\[0\] .*\(2, 1\).*\(2, 3\).*\(2,\)"),
        ({"logits": [torch.zeros(2, 3)] * 2, "labels": torch.zeros(2)}, "1 tensors of labels and 2 of logits"),
        (
            {"logits": torch.zeros(2, 3, 4), "logits_mask": torch.ones(2, 4)},
            r"logits_mask .*\(2, 4\).*\(2, 3, 4\).*\(2, 3\)",
        ),
        (
            {"logits": [torch.zeros(2, 3, 4)] * 3, "logits_mask": [torch.ones(2, 3)] * 2},
            "2 tensors of logits_mask and 3 of logits",
        ),
        ({"losses": torch.zeros(2, 3)}, r"losses\[0\] .*\(2, 3\)"),
    ],
)
def test_values_that_an_adaptor_cannot_return(value, problem):
    with pytest.raises(ConfigError, match=f"^my.adaptor: .*{problem}"):
        read_features(value, "my.adaptor", 2)


def test_a_reader_runs_the_module_and_its_adaptor():
    read = AdaptorReader(
        nn.Linear(2, 3), lambda batch, outputs: {"logits": outputs, "losses": outputs.mean()}, "a", call_model
    )
    batch = torch.ones(4, 2)
    (found,) = read((batch, 4)).base
    assert torch.equal(found.logits[0], read.model(batch))
    assert torch.allclose(found.losses[0], 4 * read.model(batch).mean())


def test_batches_go_into_a_model_by_their_form():
    class Plain(nn.Module):
        def forward(self, images):
            return images

    class Named(nn.Module):
        def forward(self, images, labels=None):
            return images, labels

    class Free(nn.Module):
        def forward(self, *items, **named):
            return items, named

    images, labels = torch.ones(2), torch.zeros(2)
    assert call_model(Plain(), images) is images
    assert call_model(Plain(), (images, labels)) is images
    assert call_model(Plain(), {"labels": labels, "images": images}) is images
    assert call_model(Named(), [images, labels]) == (images, labels)
    assert call_model(Named(), {"images": images, "labels": labels, "name": 1}) == (images, labels)
    assert call_model(Free(), (images, labels)) == ((images, labels), {})
    assert call_model(Free(), {"labels": labels}) == ((), {"labels": labels})
