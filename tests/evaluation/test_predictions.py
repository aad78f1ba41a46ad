import csv

import pandas
import torch

from potstill.data.tasks.labels import Task
from potstill.data.tasks.readers import Rows
from potstill.evaluation.evaluators import write_predictions

LABELS = ("a\tb", "c\nd", "e\rf", 'say "g"', "plain, too")


def test_labels_with_special_characters_are_read_back(tmp_path):
    path, count = tmp_path / "predictions.tsv", len(LABELS)
    rows = Rows((["x"] * count,), list(LABELS), [str(n) for n in range(count)], "rows", "benchmark.eval_file")
    task = Task("own", "classification", LABELS, ("accuracy",), "accuracy", "max")
    write_predictions(path, task, rows, torch.arange(count), torch.eye(count))
    with path.open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream, delimiter="\t"))
    assert [row["prediction"] for row in table] == [row["label"] for row in table] == list(LABELS)
    assert list(table[0]) == ["index", "prediction", "label", *(f"p({label})" for label in LABELS)]
    frame = pandas.read_csv(path, sep="\t")
    assert frame["prediction"].tolist() == frame["label"].tolist() == list(LABELS)
    assert frame.columns.tolist() == list(table[0])


def test_labels_have_the_names_of_the_task(tmp_path):
    path = tmp_path / "predictions.tsv"
    rows = Rows((["x", "y"],), ["1", "00"], ["row 1", "row 2"], "rows", "benchmark.eval_file")
    task = Task("own", "classification", ("0.0", "1.0"), ("accuracy",), "accuracy", "max")
    write_predictions(path, task, rows, torch.arange(2), torch.eye(2))
    assert [line.split("\t")[1:3] for line in path.read_text().splitlines()[1:]] == [["0.0", "1.0"], ["1.0", "0.0"]]
