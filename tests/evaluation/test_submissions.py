"""GLUE's submission files: names, header, and labels as the server spells them."""

import math

import pytest

from potstill.data.tasks.splits import task_of
from potstill.errors import DataError
from potstill.evaluation.glue import BENCHMARKS
from potstill.evaluation.submissions import (
    FILES,
    SPELLINGS,
    submission_file,
    submission_rows,
    write_submission,
)

# What the server wants for the labels 0, 1, ... of each option of conf/benchmark/.
WANTED = {
    "cola": ["0", "1"],
    "sst2": ["0", "1"],
    "mrpc": ["0", "1"],
    "qqp": ["0", "1"],
    "wnli": ["0", "1"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
}


@pytest.mark.parametrize("task", WANTED)
def test_labels_of_the_benchmark_are_those_of_the_server(task, compose_config):
    labels = task_of(compose_config("objective=finetune", f"benchmark={task}").benchmark).labels
    assert [spelled for _, spelled in submission_rows(task, labels)] == WANTED[task]
    assert [spelled for _, spelled in submission_rows(task, WANTED[task])] == WANTED[task]


def test_wnli_and_rte_number_entailment_differently():
    assert SPELLINGS["wnli"]["entailment"] == "1"
    assert submission_rows("rte", ["entailment"]) == [(0, "entailment")]


def test_scores_are_clipped():
    scores = [-0.25, 0.0, 2.34567, 5.5, math.inf]
    assert [score for _, score in submission_rows("stsb", scores)] == [
        "0.000",
        "0.000",
        "2.346",
        "5.000",
        "5.000",
    ]


def test_the_file(tmp_path):
    path = write_submission(tmp_path, "qnli", ["not_entailment", "entailment"])
    assert path == tmp_path / "QNLI.tsv"
    assert path.read_text() == "index\tprediction\n0\tnot_entailment\n1\tentailment\n"


def test_every_task_has_a_file_and_mnli_two():
    assert tuple(FILES) == BENCHMARKS
    names = [submission_file(task) for task in BENCHMARKS] + [submission_file("mnli", "mismatched")]
    single = {"CoLA", "SST-2", "MRPC", "STS-B", "QQP", "QNLI", "RTE", "WNLI"}
    assert set(names) == {f"{name}.tsv" for name in single | {"MNLI-m", "MNLI-mm"}}
    assert len(names) == 10


@pytest.mark.parametrize(
    ("task", "predictions", "named"),
    [
        ("lcqmc", ["same"], "benchmark=lcqmc"),
        ("cola", ["acceptable", "fine"], "cola, row 1: 'fine' .*unacceptable, acceptable"),
        ("stsb", [1.0, math.nan], "stsb, row 1: 'nan'"),
        ("stsb", ["high"], "stsb, row 0: 'high'"),
    ],
)
def test_what_the_server_would_refuse(task, predictions, named, tmp_path):
    with pytest.raises(DataError, match=named):
        write_submission(tmp_path, task, predictions)
    assert not list(tmp_path.iterdir())


def test_mismatched_is_of_mnli_alone():
    with pytest.raises(DataError, match="part 'mismatched'"):
        submission_file("sst2", "mismatched")
