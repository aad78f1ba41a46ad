"""Submission files of GLUE: names, header, and labels in the spelling of the server."""

import math

import pytest

from potstill.data.tasks.splits import task_of
from potstill.errors import DataError, LabelError
from potstill.evaluation.glue import BENCHMARKS
from potstill.evaluation.submissions import FILES, submission_file, write_submission

# Spelling of the server for the labels 0, 1, ... of each option of conf/benchmark/.
SPELLED = {
    "cola": ["0", "1"],
    "sst2": ["0", "1"],
    "mrpc": ["0", "1"],
    "qqp": ["0", "1"],
    "wnli": ["0", "1"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
}


def predictions_in(path):
    return [line.split("\t")[1] for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize("task", SPELLED)
def test_labels_have_the_spelling_of_the_server(task, compose_config, tmp_path):
    labels = task_of(compose_config("objective=finetune", f"benchmark={task}").benchmark).labels
    for predictions in (labels, SPELLED[task]):
        assert predictions_in(write_submission(tmp_path, task, predictions)) == SPELLED[task]


def test_scores_are_clipped(tmp_path):
    path = write_submission(tmp_path, "stsb", [-0.25, 0.0, 2.34567, 5.5, math.inf])
    assert predictions_in(path) == ["0.000", "0.000", "2.346", "5.000", "5.000"]


def test_the_format_of_a_file(tmp_path):
    path = write_submission(tmp_path, "qnli", ["not_entailment", "entailment"])
    assert path == tmp_path / "QNLI.tsv"
    assert path.read_text() == "index\tprediction\n0\tnot_entailment\n1\tentailment\n"


def test_each_task_has_a_file_and_mnli_two():
    assert tuple(FILES) == BENCHMARKS
    names = [submission_file(task) for task in BENCHMARKS] + [submission_file("mnli", "mismatched")]
    single = {"CoLA", "SST-2", "MRPC", "STS-B", "QQP", "QNLI", "RTE", "WNLI"}
    assert set(names) == {f"{name}.tsv" for name in single | {"MNLI-m", "MNLI-mm"}}
    assert len(names) == 10


@pytest.mark.parametrize(
    ("task", "predictions", "error", "named"),
    [
        ("lcqmc", ["same"], DataError, "^benchmark=lcqmc"),
        ("cola", ["acceptable", "fine"], LabelError, "^cola, row 1: 'fine' .*unacceptable, acceptable"),
        ("stsb", [1.0, math.nan], LabelError, "^stsb, row 1: 'nan'"),
        ("stsb", ["high"], LabelError, "^stsb, row 0: 'high'"),
    ],
)
def test_invalid_predictions_are_rejected(task, predictions, error, named, tmp_path):
    with pytest.raises(error, match=named):
        write_submission(tmp_path, task, predictions)
    assert not list(tmp_path.iterdir())


def test_only_mnli_has_a_mismatched_set():
    with pytest.raises(DataError, match=r"^benchmark=sst2, .*'mismatched'"):
        submission_file("sst2", "mismatched")
