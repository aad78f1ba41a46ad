"""Scores of GLUE and their macro average, compared with the leaderboard."""

import pytest

from potstill.data.tasks.splits import task_of
from potstill.evaluation.glue import BENCHMARKS, TASKS, macro_average, task_points, task_score

# BERT-large's row of the leaderboard (test sets): its average there is 80.5.
BERT_LARGE = {
    "cola": {"matthews": 60.5},
    "sst2": {"accuracy": 94.9},
    "mrpc": {"f1": 89.3, "accuracy": 85.4},
    "stsb": {"pearson": 87.6, "spearman": 86.5},
    "qqp": {"f1": 72.1, "accuracy": 89.3},
    "mnli": {"accuracy": 86.7, "accuracy_mismatched": 85.9},
    "qnli": {"accuracy": 92.7},
    "rte": {"accuracy": 70.1},
    "wnli": {"accuracy": 65.1},
}


def scores_of(table):
    found = {}
    for task in TASKS:
        if task.benchmark in table:
            figures = {f"test/{name}": value / 100 for name, value in table[task.benchmark].items()}
            found[task.benchmark] = task_score(task_points(task, figures))
    return found


def test_the_average_equals_the_leaderboard():
    name, average = macro_average(scores_of(BERT_LARGE))
    assert name == "average"
    assert round(average, 1) == 80.5


def test_the_average_without_a_task_has_another_name():
    table = {task: row for task, row in BERT_LARGE.items() if task != "wnli"}
    name, average = macro_average(scores_of(table))
    assert name == "average_of_present"
    assert average == pytest.approx((80.5222 * 9 - 65.1) / 8, abs=1e-3)


def test_other_benchmarks_do_not_count():
    assert macro_average({"cola": 10.0, "lcqmc": 90.0}) == ("average_of_present", 10.0)


def test_a_task_without_one_of_its_metrics_has_no_points():
    mnli = next(task for task in TASKS if task.benchmark == "mnli")
    assert task_points(mnli, {"val/accuracy": 0.8}) is None
    assert task_points(mnli, {"val/accuracy": 0.8, "test/accuracy_mismatched": 0.7}) is None
    points = task_points(mnli, {"val/accuracy": 0.8, "val/accuracy_mismatched": 0.7, "val/loss": 1.0})
    assert points == {"accuracy": pytest.approx(80.0), "accuracy_mismatched": pytest.approx(70.0)}


@pytest.mark.parametrize("task", TASKS, ids=BENCHMARKS)
def test_the_options_have_the_metrics_of_glue(task, compose_config):
    benchmark = compose_config("objective=finetune", f"benchmark={task.benchmark}").benchmark
    measured = [*task_of(benchmark).metrics]
    measured += [f"{metric}_{further.name}" for further in benchmark.further for metric in benchmark.metrics]
    assert set(task.metrics) <= set(measured)
    assert benchmark.subfolder == task.title
