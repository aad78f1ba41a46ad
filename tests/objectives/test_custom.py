"""Terms on features of adaptors against their plain formulas, however a step is cut."""

import re

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
    check_shapes,
    correct,
    read_features,
    term_errors,
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


def sums_of(objective, student, teacher=None, examples=6):
    teachers = [] if teacher is None else [Observed([teacher])]
    return objective.compared(Observed([student]), teachers, dict.fromkeys(objective.active, float(examples)))


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
    hard = functional.cross_entropy(student[known], LABELS[known], reduction="sum") / 6
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


def test_a_masked_match_is_the_mean_over_examples_of_means_over_kept_positions():
    kept = torch.tensor([4, 1, 2, 4, 3, 2])
    mask = (torch.arange(4) < kept[:, None]).long()
    ours, theirs = features(0, mask=mask), features(1)
    objective = objective_of({"teacher": "words", "student": "words", "loss": "hidden_mse"}, ours, theirs)
    gap = (ours.hidden["words"] - theirs.hidden["words"]).square().mean(-1)
    plain = sum(float(gap[row, :count].mean()) for row, count in enumerate(kept)) / 6
    assert value(objective, ours, theirs) == pytest.approx(plain, rel=1e-5)
    image = features(0, mask=mask.view(6, 2, 2))
    objective = objective_of({"teacher": "map", "student": "map", "loss": "hidden_mse"}, image, theirs)
    gap = (ours.hidden["map"] - theirs.hidden["map"]).square().mean(-1)
    plain = sum(float(gap[row, :count].mean()) for row, count in enumerate(kept)) / 6
    assert value(objective, image, theirs) == pytest.approx(plain, rel=1e-5)


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
    mask = (torch.arange(4) < torch.tensor([4, 1, 2, 4, 3, 2])[:, None]).long()
    matches = [
        {"teacher": "words", "student": "words", "loss": "cos"},
        {"teacher": ["words", "words"], "student": ["words", "words"], "loss": "fsp", "name": "flow"},
        {"teacher": 0, "student": 0, "loss": "attention_ce", "weight": 0.5, "name": "attention"},
    ]
    sides = [features(0, mask=mask), features(1)]
    objective = objective_of(matches, *sides, {"ce": 1.0, "label": 0.3, "mse": 0.1})
    whole = sums_of(objective, *sides)
    parts = [
        sums_of(objective, features(0, mask=mask, rows=rows), features(1, rows=rows))
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
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
        ({"teacher": "map", "student": "map", "loss": "emd"}, "loss=emd: .* hidden_mse"),
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
        (match, ours, small, r"matches: match_0: .*\(1, 4, 3\).*\(1, 1, 3\)"),
    ]
    for objective, student, teacher, problem in cases:
        (error,) = term_errors(objective, student, teacher)
        assert re.match(problem, error)
    assert not list(term_errors(objective_of(None, ours, theirs, {"ce": 1.0, "label": 1.0}), ours, theirs))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "logits, labels, losses, hidden, attention, mask"),
        ({"logits": None}, "logits, labels, losses, hidden, attention, mask"),
        ({"logit": torch.zeros(2, 2)}, "the key logit.* logits, labels"),
        (torch.zeros(2), "Tensor.* dictionary"),
        ({"hidden": [[1.0]]}, r"hidden\[0\] .* list"),
        ({"mask": [torch.zeros(2)]}, r"mask\[0\] .* list"),
        ({"labels": torch.zeros(3)}, r"labels\[0\] .*\(3,\).* 2 examples"),
        ({"hidden": torch.tensor(1.0)}, r"hidden\[0\] .*\(\)"),
        ({"logits": torch.zeros(2, 3, 4)}, r"logits\[0\] .*\(2, 3, 4\)"),
        ({"logits": torch.zeros(2, 3), "labels": torch.zeros(2, 1)}, r"1 tensors of labels"),
    ],
)
def test_values_that_an_adaptor_cannot_return(value, problem):
    with pytest.raises(ConfigError, match=f"^my.adaptor: .*{problem}"):
        check_shapes(read_features(value, "my.adaptor", 2), 2, "my.adaptor")


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
