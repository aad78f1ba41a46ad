"""Files for GLUE's test server: one per test set, with `index` and `prediction` in the server's spelling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from potstill.errors import DataError, LabelError
from potstill.evaluation.glue import TASKS
from potstill.reporting.tables import write_table

MISMATCHED = "mismatched"  # the second test set of MNLI
REGRESSION_TASK = "stsb"
SCORES = (0.0, 5.0)  # the scale of STS-B

FILES = {task.benchmark: f"{task.title}.tsv" for task in TASKS} | {"mnli": "MNLI-m.tsv"}

# Spelling of the server for each label of a benchmark.
SPELLINGS: dict[str, dict[str, str]] = {
    "cola": {"unacceptable": "0", "acceptable": "1"},
    "sst2": {"negative": "0", "positive": "1"},
    "mrpc": {"not_equivalent": "0", "equivalent": "1"},
    "qqp": {"not_duplicate": "0", "duplicate": "1"},
    "mnli": {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"},
    "qnli": {"entailment": "entailment", "not_entailment": "not_entailment"},
    "rte": {"entailment": "entailment", "not_entailment": "not_entailment"},
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
        return "MNLI-mm.tsv"
    if task not in FILES or part:
        raise DataError(f"benchmark={task}, part '{part}': one of {', '.join(FILES)}, or mnli with {MISMATCHED}")
    return FILES[task]


def write_submission(folder: Path, task: str, predictions: Sequence[str | float], part: str = "") -> Path:
    """Write the file of a test set into `folder`: indices from 0, and predictions in the server's spelling.

    Args:
        folder: of the file.
        task: the benchmark's name.
        predictions: in the order of the test file: labels, in either spelling, or scores of STS-B, which are clipped.
        part: as for `submission_file`.

    Returns:
        The path of the file.

    Raises:
        DataError: not a test set of GLUE.
        LabelError: an invalid prediction, with its row.
    """
    path = folder / submission_file(task, part)
    spelled = _score if task == REGRESSION_TASK else partial(_label, SPELLINGS[task])
    rows = []
    for index, prediction in enumerate(predictions):
        try:
            rows.append((index, spelled(prediction)))
        except LabelError as error:
            raise LabelError(f"{task}, row {index}: {error}") from None
    write_table(path, ("index", "prediction"), rows, delimiter="\t")
    return path


def _label(spellings: Mapping[str, str], prediction: str | float) -> str:
    spelled = spellings.get(str(prediction), str(prediction))
    if spelled not in spellings.values():
        raise LabelError(f"'{prediction}' is not a label; one of {', '.join(spellings)}")
    return spelled


def _score(prediction: str | float) -> str:
    try:
        value = float(prediction)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise LabelError(f"'{prediction}' is not a number from 0 to 5")
    return f"{min(max(value, SCORES[0]), SCORES[1]):.3f}"
