"""Losses, temperatures, projections and schedules of the user's own, by dotted path."""

import sys
from types import ModuleType

import pytest
import torch
from tests.objectives.test_matches import STEP, batch, bert, objective_of, share_of

from potstill.errors import ConfigError
from potstill.losses.soft_targets import kl_divergence, soft_cross_entropy
from potstill.models.backbone import backbone_of
from potstill.objectives.matches import Matches
from potstill.objectives.matching import read_matches
from potstill.objectives.own import own_projection
from potstill.objectives.schedules import WeightSchedule, schedule_problem
from potstill.objectives.soft_targets import SoftTargets
from potstill.objectives.task import TaskObjective


def mse(student, teacher, mask=None):
    """As TextBrewer's `hid_mse`."""
    return ((student - teacher).square().mean(-1) * mask).sum() / mask.sum()


def sum_of_layers(students, teachers, mask=None):
    return sum(mse(*pair, mask) for pair in zip(students, teachers, strict=True))


def attention(student, teacher, mask=None):
    assert student.shape[1] == 2
    pairs = (mask[:, None, :, None] * mask[:, None, None, :]).expand_as(student).float()
    scores = torch.where(student > -1e3, student, 0.0) - torch.where(teacher > -1e3, teacher, 0.0)
    return (scores.square() * pairs).sum() / pairs.sum()


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    module = ModuleType("mine")
    module.mse, module.sum_of_layers, module.attention = mse, sum_of_layers, attention
    module.cross_entropy = lambda student, teacher, t: soft_cross_entropy(student, teacher, t)
    module.by_row = lambda student, teacher, t: t + student[:, 0].sigmoid()
    module.halves = lambda width, target: torch.nn.Sequential(torch.nn.Linear(width, 4), torch.nn.Linear(4, target))
    module.wrong_width = lambda width, target: torch.nn.Linear(width, target + 1)
    module.vector = lambda student, teacher, mask=None: student.sum(0)
    module.breaks = lambda *_, **__: 1 / 0
    module.square = lambda progress: progress**2
    module.negative = lambda progress: -1.0
    module.text = lambda progress: "half"
    module.number = 3
    monkeypatch.setitem(sys.modules, "mine", module)


@pytest.mark.parametrize(
    ("own", "known"),
    [
        ({"teacher": 4, "student": 2, "loss": "mine.mse"}, {"teacher": 4, "student": 2, "loss": "hidden_mse"}),
        (
            {"module": {"teacher": "encoder.layer.1", "student": "encoder.layer.0"}, "loss": "mine.mse"},
            {"module": {"teacher": "encoder.layer.1", "student": "encoder.layer.0"}, "loss": "hidden_mse"},
        ),
    ],
)
def test_a_loss_is_that_of_the_same_arithmetic(own, known):
    """The value of the whole step and of its micro-batches, and the gradient."""
    teacher, student = bert(0, 4), bert(1, 2)
    found = {}
    for name, entry in (("own", own), ("known", known)):
        objective = objective_of(entry, student, teacher)
        denominators = objective.denominators(STEP)
        for rows in ([slice(None)], [slice(0, 2), slice(2, 6)]):
            student.zero_grad()
            parts = [share_of(objective, student, [teacher], batch(part), denominators) for part in rows]
            sum(part.loss for part in parts).backward()
            gradient = student.bert.embeddings.word_embeddings.weight.grad.clone()
            found[name, len(rows)] = (sum(part.loss.detach() for part in parts), gradient)
    for one in found.values():
        torch.testing.assert_close(one, found["known", 1])


def test_several_layers_and_attention():
    teacher, student = bert(0, 4), bert(1, 2)
    pair = objective_of({"teacher": [2, 4], "student": [1, 2], "loss": "mine.sum_of_layers"}, student, teacher)
    single = objective_of([{"teacher": 2 * k, "student": k, "loss": "hidden_mse"} for k in (1, 2)], student, teacher)
    values = [
        share_of(objective, student, [teacher], batch(), objective.denominators(STEP)).loss
        for objective in (pair, single)
    ]
    torch.testing.assert_close(*values)
    entry = {"teacher": 4, "student": 2, "feature": "attention", "loss": "mine.attention"}
    own = objective_of(entry, student, teacher)
    assert share_of(own, student, [teacher], batch(), own.denominators(STEP)).loss.item() > 0


def test_a_projection_is_a_function_of_the_seed():
    teacher, student = bert(0, 4), bert(1, 2, width=8)
    entry = {"teacher": 4, "student": 2, "loss": "mine.mse", "projection": "mine.halves"}
    backbones = [backbone_of(model) for model in (teacher, student)]
    read = read_matches(entry, [backbones[0].spec], backbones[1].spec)
    state = torch.get_rng_state()
    made = [Matches(read, backbones[:1], backbones[1], seed=seed).projections["0"] for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    weights = [projection[0].weight for projection in made]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    objective = objective_of(entry, student, teacher)
    share_of(objective, student, [teacher], batch(), objective.denominators(STEP)).loss.backward()
    assert objective.matches.projections["0"][1].weight.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match=r"^here=mine\.wrong_width: .* width 6"):
        own_projection("here", "mine.wrong_width", 4, 6, torch.Generator())


def test_soft_targets_and_temperatures():
    import mine

    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 3, generator=generator) for _ in range(2))
    own = SoftTargets(mine.cross_entropy)
    torch.testing.assert_close(
        own(student, teacher, 8.0, denominator=10.0), soft_cross_entropy(student, teacher, 8.0) / 2
    )
    assert own(student[:0], teacher[:0], 8.0, denominator=10.0) == 0
    by_row = SoftTargets(temperature_schedule=mine.by_row)
    expected = kl_divergence(student, teacher, 4 + student[:, 0].sigmoid())
    torch.testing.assert_close(by_row(student, teacher, 4.0, denominator=5.0), expected)


def test_a_schedule_scales_the_weight_over_the_run():
    whole = WeightSchedule("mine.square", 2.0)
    assert [whole(step, 4) for step in range(5)] == [0.0, 0.125, 0.5, 1.125, 2.0]
    assert [WeightSchedule("mine.square", 2.0, steps=2)(step, 4) for step in range(4)] == [0.0, 0.5, 2.0, 2.0]
    assert [WeightSchedule("linear", 1.0, 3.0)(step, 4) for step in (0, 2, 4, 8)] == [1.0, 2.0, 3.0, 3.0]
    objective = TaskObjective("classification", {"label": 2.0}, schedules={"label": whole})
    assert objective.at(2, 4).weights == {"label": 0.5}
    assert schedule_problem("mine.square", None, 0, {}) is None
    assert "mine.square" in schedule_problem("mine.square", 1.0, 0, {})
    for kind in ("mine.negative", "mine.text", "mine.missing", "mine.breaks"):
        with pytest.raises(ConfigError, match=rf"^schedule={kind}"):
            WeightSchedule(kind, 1.0)(1, 4)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"loss": "mine.missing"}, r"^objective\.matches\[0\]\.loss=mine\.missing: "),
        ({"loss": "mine.number"}, r"^objective\.matches\[0\]\.loss=mine\.number: "),
        ({"loss": "mine.breaks"}, r"^objective\.matches\[0\]\.loss=mine\.breaks: ZeroDivisionError"),
        ({"loss": "mine.vector"}, r"^objective\.matches\[0\]\.loss=mine\.vector: .*\(3, 16\)"),
        ({"loss": "cos", "projection": "mine.number"}, r"^objective\.matches\[0\]\.projection=mine\.number: "),
        ({"loss": "cos", "projection": "mine.wrong_width"}, r"^objective\.matches\[0\]\.projection=mine\.wrong_width"),
        ({"loss": "mine.mse", "feature": "relation"}, r"^objective\.matches\[0\]\.loss=mine\.mse: "),
        ({"loss": "mine.mse", "teacher": 9}, r"^objective\.matches\[0\]\.teacher=9: "),
    ],
)
def test_functions_that_do_not_fit(entry, message):
    with pytest.raises(ConfigError, match=message) as error:
        objective_of({"teacher": 2, "student": 1, **entry}, bert(1, 2), bert(0, 4))
    assert "\n" not in str(error.value)
