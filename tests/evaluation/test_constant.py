"""Comparison of a student with a constant prediction."""

import itertools
import logging

import pytest
import torch

from potstill.data.tasks.labels import Task
from potstill.data.tasks.readers import Rows
from potstill.evaluation.constant import BETTER, compared_with_constant
from potstill.evaluation.evaluators import LabelEvaluator
from potstill.evaluation.metrics import LABEL_SETS


def evaluated(kind, metrics, mode, labels, logits, monitor=None):
    names = () if kind == "regression" else ("a", "b", "c")
    task = Task("own", kind, names, metrics, monitor or metrics[0], mode)
    evaluator = LabelEvaluator(
        task, Rows((["x"] * len(labels),), list(map(str, labels)), [""] * len(labels), "eval", "benchmark.eval_file")
    )
    predicted = torch.arange(len(labels)), torch.tensor(logits), torch.tensor(labels, dtype=torch.float64)
    own = {f"val/{name}": value for name, value in evaluator.metrics(*predicted).items()}
    return compared_with_constant(task, evaluator, predicted, own)


def one_hot(numbers):
    return torch.nn.functional.one_hot(torch.tensor(numbers), 3).float().tolist()


@pytest.mark.parametrize(
    ("metric", "predicted", "constant", "better"),
    [
        ("accuracy", [0, 0, 0, 0, 0], 0.6, False),
        ("accuracy", [1, 0, 0, 1, 1], 0.6, False),  # as accurate as the constant
        ("accuracy", [0, 0, 0, 1, 0], 0.6, True),
        ("matthews", [1, 1, 1, 1, 1], 0.0, False),
        ("matthews", [0, 0, 0, 1, 0], 0.0, True),
        ("f1_macro", [0, 0, 0, 0, 0], 0.25, False),
    ],
)
def test_the_most_frequent_class(metric, predicted, constant, better, caplog):
    with caplog.at_level(logging.WARNING):
        found = evaluated("classification", (metric,), "max", [0, 0, 0, 1, 2], one_hot(predicted))
    assert found == {f"val/majority_{metric}": pytest.approx(constant), BETTER: better}
    assert bool(caplog.records) != better


@pytest.mark.parametrize(
    ("metric", "mode", "scores", "constant", "better"),
    [
        ("pearson", "max", [2.0, 2.0, 2.0], 0.0, False),
        ("pearson", "max", [1.0, 2.0, 2.5], 0.0, True),
        ("mse", "min", [9.0, 9.0, 9.0], 2 / 3, False),
        ("mse", "min", [1.0, 2.0, 2.5], 2 / 3, True),
    ],
)
def test_the_mean_score(metric, mode, scores, constant, better):
    found = evaluated("regression", (metric,), mode, [1.0, 2.0, 3.0], [[score] for score in scores])
    assert found == {f"val/mean_{metric}": pytest.approx(constant), BETTER: better}


def test_without_a_second_class_there_is_no_comparison():
    assert evaluated("classification", ("accuracy",), "max", [1, 1], one_hot([1, 1])) == {}


SETS = [
    [[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]],
    [[0, 0, 1], [1, 1, 1], [0, 1, 1], [0, 1, 0]],
    [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]],
    [[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
]


@pytest.mark.parametrize("metric", ["f1_micro", "f1_macro", "accuracy"])
@pytest.mark.parametrize("gold", SETS)
def test_the_best_set_of_labels(metric, gold, caplog):
    def score(predicted):
        return LABEL_SETS[metric](torch.tensor(predicted).bool(), torch.tensor(gold).bool())

    best = max((list(one) for one in itertools.product((0, 1), repeat=3)), key=lambda one: score([one] * len(gold)))
    for logits, better in (([best] * len(gold), False), (gold, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            signed = [[2.0 * value - 1 for value in row] for row in logits]
            found = evaluated("multi_label", (metric,), "max", gold, signed)
        assert found == {f"val/constant_{metric}": pytest.approx(score([best] * len(gold))), BETTER: better}
        assert bool(caplog.records) != better


def test_without_a_second_set_of_labels_there_is_no_comparison():
    assert evaluated("multi_label", ("f1_micro",), "max", [[1, 0, 1]] * 3, [[1.0, -1.0, 1.0]] * 3) == {}
