"""Scores per class of a task, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from potstill.evaluation.metrics import present
from potstill.reporting.report import Table


def class_table(names: Sequence[str], logits_NC: Tensor, labels_N: Tensor) -> Table:
    """Rows, precision, recall and F1 of each label of a classification.

    The precision of a label that is never predicted, and the recall of one that never occurs, are None.

    Args:
        names: of the labels.
        logits_NC: `(rows, labels)`.
        labels_N: `(rows,)` indices of the gold labels, or `(rows, labels)` multi-hot.
    """
    if labels_N.ndim == 2:
        predicted_NC, gold_NC = present(logits_NC), labels_N.bool()
    else:
        predicted_NC, gold_NC = (one_hot(own, len(names)).bool() for own in (logits_NC.argmax(-1), labels_N.long()))
    hits, gold, predicted = (predicted_NC & gold_NC).sum(0), gold_NC.sum(0), predicted_NC.sum(0)
    f1 = 2 * hits / (gold + predicted)
    rows = [
        [name, int(gold[n]), *(_number(share[n]) for share in (hits / predicted, hits / gold, f1))]
        for n, name in enumerate(names)
    ]
    return Table("Classes", ["class", "rows", "precision", "recall", "f1"], rows)


def entity_table(metrics: Mapping[str, float]) -> Table | None:
    """F1 per entity type, from `val/f1_<type>`; None without entities."""
    prefix = "val/f1_"
    rows = [[name.removeprefix(prefix), value] for name, value in metrics.items() if name.startswith(prefix)]
    return Table("Classes", ["class", "f1"], rows) if rows else None


def _number(value: Tensor) -> float | None:
    return None if torch.isnan(value) else float(value)
