"""What is compared with what; whole evaluations are in tests/integration/test_evaluate.py."""

from types import SimpleNamespace

import pytest
import torch

from potstill.data.tasks.readers import Rows
from potstill.data.tasks.splits import MAIN, task_of
from potstill.evaluation.evaluators import LabelEvaluator
from potstill.evaluation.rows import add_differences
from potstill.methods.task import evaluation as task_evaluation

ROWS = Rows((["a", "b", "c", "d"],), ["0", "1", "0", "1"], [f"line {n}" for n in range(4)], "dev", "benchmark.eval")


@pytest.fixture
def row_of(compose_config, monkeypatch, tmp_path):
    """The row of a model that was evaluated on the rows of these numbers."""
    config = compose_config("model=[a,b]", "benchmark=sst2", name="evaluate")
    monkeypatch.setattr(task_evaluation, "evaluation_trainer", lambda *_: SimpleNamespace(validate=lambda *_, **__: []))
    monkeypatch.setattr(task_evaluation, "sized", lambda row, *_: row)

    def evaluated(*numbers):
        seen = torch.tensor(numbers)
        predicted = (seen, torch.eye(2)[seen % 2], (seen % 2).double())
        module = SimpleNamespace(
            evaluators={MAIN: LabelEvaluator(task_of(config.benchmark), ROWS)},
            student=None,
            predicted=lambda _: predicted,
        )
        evaluation = SimpleNamespace(module=module, data=None, tokenizer="")
        monkeypatch.setattr(task_evaluation, "build_task_evaluation", lambda *_: evaluation)
        monkeypatch.setattr(task_evaluation, "add_latencies", lambda rows: None)
        (row,) = task_evaluation.evaluate(config, {"name": "model"}, tmp_path)
        return row

    return evaluated


@pytest.mark.parametrize(("theirs", "paired"), [((0, 2, 3), True), ((0, 1, 3), False), ((0, 2), False)])
def test_only_models_that_were_judged_on_the_same_rows_are_paired(theirs, paired, row_of):
    """With trainer.limit_val_batches a model's tokenizer decides which rows there are."""
    first, second = row_of(0, 2, 3), row_of(*theirs)
    add_differences([first, second], "test/accuracy")
    assert ("test/accuracy_difference" in second.metrics) is paired
