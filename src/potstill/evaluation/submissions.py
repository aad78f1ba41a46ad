"""Files for GLUE's test server: one per test set, with `index` and `prediction` in the server's spelling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from potstill.errors import DataError
from potstill.evaluation.glue import TASKS
from potstill.reporting.tables import write_table

MISMATCHED = "mismatched"  # the second test set of MNLI
REGRESSION_TASK = "stsb"
SCORES = (0.0, 5.0)  # the scale of STS-B

MISMATCHED_FILE = "MNLI-mm.tsv"
FILES = {task.benchmark: f"{task.title}.tsv" for task in TASKS} | {"mnli": "MNLI-m.tsv"}

# Spelling of the server for each label of a benchmark.
SPELLINGS: dict[str, dict[str, str]] = {
    "cola": {"unacceptable": "0", "acceptable": "1"},
    "sst2": {"negative": "0", "positive": "1"},
    "mrpc": {"not_equivalent": "0", "equivalent": "1"},
    "qqp": {"not_duplicate": "0", "duplicate": "1"},
    "mnli": {name: name for name in ("entailment", "neutral", "contradiction")},
    "qnli": {name: name for name in ("entailment", "not_entailment")},
    "rte": {name: name for name in ("entailment", "not_entailment")},
    "wnli": {"not_entailment": "0", "entailment": "1"},
}


def submission_file(task: str, part: str = "") -> str:
    """The name of the file of a test set.

    Args:
        task: the benchmark's name, such as `sst2`.
        part: `mismatched` for MNLI's second set, otherwise empty.

    Raises:
        DataError: not a test set of GLUE.
    """
    if (task, part) == ("mnli", MISMATCHED):
        return MISMATCHED_FILE
    if task not in FILES or part:
        raise DataError(
            f"benchmark={task}, part '{part}': one of {', '.join(FILES)}, or mnli with {MISMATCHED}"
        )
    return FILES[task]


def submission_rows(task: str, predictions: Sequence[str | float]) -> list[tuple[int, str]]:
    """The rows of a submission: indices from 0, and predictions in the server's spelling.

    Args:
        task: the benchmark's name.
        predictions: in the order of the test file: labels, in either spelling, or scores of STS-B, which are clipped.

    Raises:
        DataError: an invalid prediction, with its row.
    """
    submission_file(task)
    if task == REGRESSION_TASK:
        return [(index, _score(index, prediction)) for index, prediction in enumerate(predictions)]
    return [(index, _label(task, index, prediction)) for index, prediction in enumerate(predictions)]


def write_submission(folder: Path, task: str, predictions: Sequence[str | float], part: str = "") -> Path:
    """Write the file of a test set into `folder`, and return its path; raises as `submission_rows`."""
    path = folder / submission_file(task, part)
    write_table(path, ("index", "prediction"), submission_rows(task, predictions), delimiter="\t")
    return path


def _label(task: str, index: int, prediction: str | float) -> str:
    spellings = SPELLINGS[task]
    spelled = spellings.get(str(prediction), str(prediction))
    if spelled not in spellings.values():
        raise DataError(f"{task}, row {index}: '{prediction}' is not a label; one of {', '.join(spellings)}")
    return spelled


def _score(index: int, prediction: str | float) -> str:
    try:
        value = float(prediction)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise DataError(f"{REGRESSION_TASK}, row {index}: '{prediction}' is not a number from 0 to 5")
    return f"{min(max(value, SCORES[0]), SCORES[1]):.3f}"
