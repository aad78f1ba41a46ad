"""Metrics equal those of scikit-learn and scipy, also for degenerate sets."""

import numpy as np
import pytest
import torch

from potstill.data.tasks.labels import METRICS, Task
from potstill.data.tasks.readers import Rows
from potstill.evaluation.evaluators import write_predictions
from potstill.evaluation.metrics import CLASSIFICATIONS, LABEL_SETS, REGRESSIONS, Predictions, metric_of, task_metrics

evaluators = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")


def task(kind, labels=(), metrics=None):
    return Task("t", kind, labels, metrics or METRICS[kind], "accuracy", "max")


def one_hot(predicted, labels):
    return torch.nn.functional.one_hot(torch.as_tensor(predicted), labels).float()


def test_each_metric_of_the_options_is_implemented():
    assert tuple(CLASSIFICATIONS) == METRICS["classification"]
    assert tuple(REGRESSIONS) == METRICS["regression"]
    assert tuple(LABEL_SETS) == METRICS["multi_label"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "corner", ["random", "all right", "all wrong", "one predicted", "one gold", "one of each", "never predicted"]
)
def test_classification_metrics_equal_scikit_learn(corner):
    rng = np.random.default_rng(3)
    for labels in (2, 3):
        gold = rng.integers(0, labels, 60)
        predicted = {
            "random": rng.integers(0, labels, 60), "all right": gold, "all wrong": (gold + 1) % labels,
            "one predicted": np.ones(60, int), "one gold": rng.integers(0, labels, 60),
            "one of each": np.ones(60, int), "never predicted": np.minimum(gold, labels - 2),
        }[corner]  # fmt: skip
        gold = np.ones(60, int) if corner.startswith("one") and corner != "one predicted" else gold
        metrics = tuple(m for m in METRICS["classification"] if labels == 2 or m != "f1")
        names = tuple(map(str, range(labels)))
        found = task_metrics(task("classification", names, metrics), one_hot(predicted, labels), torch.as_tensor(gold))
        expected = {
            "accuracy": evaluators.accuracy_score(gold, predicted),
            "f1": evaluators.f1_score(gold, predicted, zero_division=0) if labels == 2 else None,
            "f1_macro": evaluators.f1_score(gold, predicted, average="macro", zero_division=0),
            "matthews": evaluators.matthews_corrcoef(gold, predicted),
        }
        assert found == pytest.approx({name: expected[name] for name in metrics}, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("corner", ["random", "all right", "none gold", "none predicted", "nothing", "one absent"])
def test_multi_label_metrics_equal_scikit_learn(corner):
    rng = np.random.default_rng(5)
    gold, logits = rng.random((60, 4)) < 0.4, rng.normal(0, 1, (60, 4))
    if corner in ("none gold", "nothing"):
        gold[:] = False
    if corner == "one absent":
        gold[:, 2], logits[:, 2] = False, -1.0
    if corner in ("none predicted", "nothing"):
        logits = -np.abs(logits)
    if corner == "all right":
        logits = np.where(gold, 1.0, -1.0)
    found = task_metrics(task("multi_label", tuple("abcd")), torch.as_tensor(logits), torch.as_tensor(gold).double())
    predicted = logits > 0
    assert found == pytest.approx(
        {
            "f1_micro": evaluators.f1_score(gold, predicted, average="micro", zero_division=0),
            "f1_macro": evaluators.f1_score(gold, predicted, average="macro", zero_division=0),
            "accuracy": evaluators.accuracy_score(gold, predicted),
        },
        abs=1e-12,
    )


def test_regression_metrics_equal_scipy():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 26, 200) / 5  # ties, as in STS-B
    scores = np.round(gold + rng.normal(0, 1, 200), 1)
    found = task_metrics(task("regression"), torch.as_tensor(scores)[:, None], torch.as_tensor(gold))
    assert found == pytest.approx(
        {
            "pearson": stats.pearsonr(scores, gold)[0],
            "spearman": stats.spearmanr(scores, gold)[0],
            "mse": evaluators.mean_squared_error(gold, scores),
        },
        abs=1e-9,
    )
    alike = task_metrics(task("regression"), torch.ones(200, 1), torch.as_tensor(gold))
    assert (alike["pearson"], alike["spearman"]) == (0.0, 0.0)


def test_metrics_of_selected_rows():
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 50, (80,), generator=rng)
    labelled = task("classification", ("a", "b", "c"))
    logits, gold = torch.randn(50, 3, generator=rng), torch.randint(0, 3, (50,), generator=rng).double()
    for name, value in task_metrics(labelled, logits[rows], gold[rows]).items():
        assert metric_of(labelled, name, logits, gold)(rows.numpy()) == pytest.approx(value)
    sets, has = task("multi_label", ("a", "b", "c")), torch.randint(0, 2, (50, 3), generator=rng).double()
    for name, value in task_metrics(sets, logits[rows], has[rows]).items():
        assert metric_of(sets, name, logits, has)(rows.numpy()) == pytest.approx(value)
    scored, scores = task("regression"), torch.randn(50, 1, generator=rng)
    for name, value in task_metrics(scored, scores[rows], gold[rows]).items():
        assert metric_of(scored, name, scores, gold)(rows.numpy()) == pytest.approx(value)


def test_predictions_are_in_the_order_of_the_rows():
    kept = Predictions()
    kept.update(torch.tensor([2, 0]), torch.tensor([[2.0], [0.0]]), torch.tensor([20, 0]))
    kept.update(torch.tensor([1]), torch.tensor([[1.0]]), None)
    rows, logits, labels = kept.compute()
    assert (rows.tolist(), logits[:, 0].tolist()) == ([0, 1, 2], [0, 1, 2])
    assert labels[[0, 2]].tolist() == [0, 20]
    assert labels[1].isnan()


def test_written_predictions(tmp_path):
    rows = Rows((["a", "b"],), ["no", "yes"], ["line 1", "line 2"], "a.tsv", "key")
    path = tmp_path / "predictions.tsv"
    logits = torch.tensor([[0.0, 0.0], [0.0, np.log(3)]])
    write_predictions(path, task("classification", ("no", "yes")), rows, torch.tensor([0, 1]), logits)
    assert path.read_text() == (
        "index\tprediction\tlabel\tp(no)\tp(yes)\n0\tno\tno\t0.5000\t0.5000\n1\tyes\tyes\t0.2500\t0.7500\n"
    )
    sets = Rows((["a", "b"],), ["yes;no", ""], ["line 1", "line 2"], "a.tsv", "key", sets=[("yes", "no"), ()])
    both = Task("t", "multi_label", ("no", "yes"), ("f1_micro",), "f1_micro", "max", separator=";")
    write_predictions(path, both, sets, torch.tensor([0, 1]), torch.tensor([[np.log(3), 0.5], [-1.0, -np.log(3)]]))
    assert path.read_text().splitlines() == [
        "index\tprediction\tlabel\tp(no)\tp(yes)",
        "0\tno;yes\tno;yes\t0.7500\t0.6225",
        "1\t\t\t0.2689\t0.2500",
    ]
    unlabelled = Rows((["a"],), None, ["line 1"], "a.tsv", "key")
    write_predictions(path, task("regression"), unlabelled, torch.tensor([0]), torch.tensor([[2.5]]))
    assert path.read_text() == "index\tprediction\n0\t2.5000\n"
