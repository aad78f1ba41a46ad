"""Predictions of a task model as a TSV table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from potstill.data.tasks.labels import MULTI_LABEL, REGRESSION, Task, encode_labels, label_names
from potstill.data.tasks.readers import Rows
from potstill.evaluation.metrics import present
from potstill.runtime.atomic import write_whole


def write_predictions(path: Path, task: Task, rows: Rows, numbers_N: Tensor, logits_NC: Tensor) -> None:
    """Write a TSV file: `index` (from 0), `prediction`, `label` if there are labels, and the probability of each label.

    Labels have the names of the task, whatever their spelling in the rows. Cells with a tab, a line end or a quote are
    quoted as for the csv module and pandas. Sets of labels are joined by the task's separator, and their probabilities
    are independent. A regression only has `index`, `prediction` and `label`.

    Args:
        path: of the file.
        task: with the names of the labels.
        rows: of the set, with their labels as written.
        numbers_N: `(n,)` indices of the predicted rows.
        logits_NC: `(n, labels)`, or `(n, 1)` scores.
    """
    numbers = numbers_N.tolist()
    columns: dict[str, list[str]] = {"index": [str(number) for number in numbers]}
    if task.kind == REGRESSION:
        columns["prediction"] = [f"{score:.4f}" for score in logits_NC[:, 0].tolist()]
    elif task.kind == MULTI_LABEL:
        columns["prediction"] = _joined(task, present(logits_NC).tolist())
    else:
        columns["prediction"] = [task.labels[number] for number in logits_NC.argmax(-1).tolist()]
    if rows.sets is not None and (encoded := encode_labels(rows, task)) is not None:
        columns["label"] = _joined(task, encoded[numbers])
    elif rows.labels is not None:
        names = {} if task.kind == REGRESSION else label_names(rows, task)
        written = [rows.labels[number].strip() for number in numbers]
        columns["label"] = [names.get(label, label) for label in written]
    if task.kind != REGRESSION:
        logits = logits_NC.double()
        shares = (logits.sigmoid() if task.kind == MULTI_LABEL else logits.softmax(-1)).T.tolist()
        columns |= {
            f"p({label})": [f"{share:.4f}" for share in own]
            for label, own in zip(task.labels, shares, strict=True)
        }
    lines = [columns, *zip(*columns.values(), strict=True)]
    write_whole(path, "".join("\t".join(map(_quoted, cells)) + "\n" for cells in lines))


def _joined(task: Task, sets: Iterable[Iterable[int]]) -> list[str]:
    """The names of the labels of each row, from multi-hot rows."""
    return [
        task.separator.join(name for name, has in zip(task.labels, own, strict=True) if has) for own in sets
    ]


def _quoted(cell: str) -> str:
    # csv.writer quotes a carriage return in new versions of Python only.
    return '"' + cell.replace('"', '""') + '"' if re.search(r'[\t\r\n"]', cell) else cell
