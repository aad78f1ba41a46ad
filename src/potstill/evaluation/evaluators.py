"""Evaluators of each kind of task: what they keep of a batch, metrics of a whole set, and files of predictions."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from potstill.data.tasks.columns import Sentences
from potstill.data.tasks.datamodule import TaskBatch
from potstill.data.tasks.entities import OUTSIDE
from potstill.data.tasks.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION, Task, encode_labels, label_names
from potstill.data.tasks.questions import Question
from potstill.data.tasks.readers import Rows
from potstill.data.tasks.token_features import TokenFeatures
from potstill.data.tasks.windows import Windows
from potstill.evaluation.answer_metrics import answer_scores, squad_v2
from potstill.evaluation.answers import Found, find_answers
from potstill.evaluation.bootstrap import Metric
from potstill.evaluation.entities import EntityScores, entity_scores, micro
from potstill.evaluation.metrics import metric_of, present, task_metrics
from potstill.objectives.task import NEVER, distributions_of, ends_of, label_loss
from potstill.runtime.atomic import write_whole
from potstill.runtime.json_text import json_text

Kept = tuple[Tensor, Tensor, Tensor | None]
Ints = NDArray[np.int64]


class Evaluator(Protocol):
    """Evaluates a set whose units are rows, words or windows; methods get all predicted units, in order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a unit's logits."""

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a unit's labels."""

    @property
    def labelled(self) -> bool:
        """Whether the set has labels."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all possible metrics."""

    def keep(self, logits: Tensor, batch: TaskBatch) -> Kept:
        """Indices, logits and labels of the units of a batch."""

    def metrics(self, numbers: Tensor, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """All metrics, and the mean `loss`."""

    def metric(self, name: str, numbers: Tensor, logits: Tensor, labels: Tensor) -> tuple[Metric, Ints]:
        """A metric as a function of example indices, for the bootstrap, and the ids of these examples.

        The examples may depend on a model's tokenizer; those of two models are the same if their ids are.
        """

    def write(self, stem: Path, numbers: Tensor, logits: Tensor) -> Path:
        """Write the predictions atomically to a file of this name, with a suffix."""


class LabelEvaluator:
    """Evaluates classifications, of single labels or sets, and regressions by row; writes a `.tsv` table."""

    def __init__(self, task: Task, rows: Rows):
        self.task, self.rows = task, rows
        self.shape: tuple[int, ...] = (max(task.outputs, 1),)
        self.labelled = rows.labels is not None
        sets = task.kind == MULTI_LABEL and self.labelled
        self.label_shape: tuple[int, ...] = self.shape if sets else ()
        self.names: tuple[str, ...] = (*task.metrics, "loss")

    def keep(self, logits: Tensor, batch: TaskBatch) -> Kept:
        """See `Evaluator`."""
        return batch.rows, logits, batch.labels

    def metrics(self, numbers: Tensor, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """See `Evaluator`."""
        distributions = distributions_of(self.task.kind, logits.double())
        loss = float(label_loss(self.task.kind, distributions, labels.flatten())) / labels.numel()
        return {**task_metrics(self.task, logits, labels), "loss": loss}

    def metric(self, name: str, numbers: Tensor, logits: Tensor, labels: Tensor) -> tuple[Metric, Ints]:
        """See `Evaluator`; the examples are rows."""
        return metric_of(self.task, name, logits, labels), numbers.cpu().numpy()

    def write(self, stem: Path, numbers: Tensor, logits: Tensor) -> Path:
        """See `Evaluator`."""
        path = stem.with_name(f"{stem.name}.tsv")
        write_predictions(path, self.task, self.rows, numbers, logits)
        return path


class EntityEvaluator:
    """Evaluates named entities and plain tags by word of a window; writes word, tag and predicted tag, `.txt`."""

    def __init__(self, task: Task, sentences: Sentences, features: TokenFeatures):
        self.task, self.sentences = task, sentences
        self.shape: tuple[int, ...] = (task.outputs,)
        self.label_shape: tuple[int, ...] = ()
        self.labelled = sentences.tags is not None
        kinds = sorted({label.partition("-")[2] for label in task.labels if label != OUTSIDE})
        entities = () if task.plain else ("f1", "precision", "recall", *(f"f1_{kind}" for kind in kinds))
        self.names: tuple[str, ...] = (*entities, "accuracy", "loss")
        self._sentence = np.repeat(np.arange(len(sentences)), features.counts)  # of each word

    def keep(self, logits: Tensor, batch: TaskBatch) -> Kept:
        """See `Evaluator`."""
        assert batch.words is not None
        first = batch.words >= 0
        return batch.words[first], logits[first], None if batch.labels is None else batch.labels[first]

    def metrics(self, numbers: Tensor, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """`f1`, `precision` and `recall` of entities, `f1_<type>`, and `accuracy` of tags, over predicted sentences.

        Plain tags only have the accuracy.
        """
        _, gold, predicted = self._tags(numbers, logits)
        same = [a == b for one, other in zip(gold, predicted, strict=True) for a, b in zip(one, other, strict=True)]
        known = int((labels >= 0).sum())
        figures = {
            "accuracy": sum(same) / len(same),
            "loss": float(label_loss(CLASSIFICATION, logits.double(), labels)) / max(known, 1),
        }
        if self.task.plain:
            return figures
        scores = entity_scores(gold, predicted)
        whole = micro(scores.values())
        return {
            "f1": whole.f1,
            "precision": whole.precision,
            "recall": whole.recall,
            **{f"f1_{kind}": own.f1 for kind, own in scores.items()},
            **figures,
        }

    def metric(self, name: str, numbers: Tensor, logits: Tensor, labels: Tensor) -> tuple[Metric, Ints]:
        """See `Evaluator`; the examples are sentences."""
        chosen, gold, predicted = self._tags(numbers, logits)
        if name == "accuracy":
            right = np.array(
                [
                    (sum(a == b for a, b in zip(one, other, strict=True)), len(one))
                    for one, other in zip(gold, predicted, strict=True)
                ]
            )
            return (lambda rows: float(np.divide(*right[rows].sum(0)))), chosen
        pairs = zip(gold, predicted, strict=True)
        by_sentence = [micro(entity_scores([one], [other]).values()) for one, other in pairs]
        counts = np.array([(own.correct, own.predicted, own.gold) for own in by_sentence])
        return (lambda rows: getattr(EntityScores(*counts[rows].sum(0).tolist()), name)), chosen

    def write(self, stem: Path, numbers: Tensor, logits: Tensor) -> Path:
        """See `Evaluator`; in the format of CoNLL's evaluation script."""
        path = stem.with_name(f"{stem.name}.txt")
        chosen, predicted = self._predicted(numbers, logits)
        words = [self.sentences.words[sentence] for sentence in chosen.tolist()]
        # Words with spaces need tabs between the columns; line ends are replaced.
        blank = any(re.search(r"\s", word) or not word for own in words for word in own)
        lines = []
        for sentence, tags in zip(chosen.tolist(), predicted, strict=True):
            columns = [[" ".join(word.split()) or "_" for word in self.sentences.words[sentence]], tags]
            if self.sentences.tags is not None:
                columns.insert(1, self.sentences.tags[sentence])
            lines += [*(("\t" if blank else " ").join(cells) for cells in zip(*columns, strict=True)), ""]
        write_whole(path, "\n".join(lines))
        return path

    def _tags(self, numbers: Tensor, logits: Tensor) -> tuple[Ints, list[list[str]], list[list[str]]]:
        """Predicted sentences, their gold tags and predicted tags."""
        assert self.sentences.tags is not None
        chosen, predicted = self._predicted(numbers, logits)
        return chosen, [self.sentences.tags[sentence] for sentence in chosen.tolist()], predicted

    def _predicted(self, numbers: Tensor, logits: Tensor) -> tuple[Ints, list[list[str]]]:
        """Predicted sentences and the tags of all their words; `O` for words outside of all windows."""
        seen = numbers.cpu().numpy()
        tags = np.full(len(self._sentence), OUTSIDE, dtype=object)
        tags[seen] = np.array(self.task.labels, dtype=object)[logits.argmax(-1).cpu().numpy()]
        chosen = np.unique(self._sentence[seen])
        starts = np.searchsorted(self._sentence, chosen)
        ends = np.searchsorted(self._sentence, chosen, side="right")
        return chosen, [tags[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


class SpanEvaluator:
    """Evaluates extractive answers by window; writes the answers by question, `.json`.

    Args:
        questions: of the set.
        windows: of their contexts.
        script: of the metrics: `squad`, `squad_v2` or `cmrc`.
        n_best: number of answers kept per question.
        max_answer_length: in tokens.
        null_threshold: "no answer" is predicted if its score exceeds the best answer's by more; None for never.
        labelled: whether the questions have gold answers.
    """

    label_shape: tuple[int, ...] = (2,)

    def __init__(
        self,
        questions: Sequence[Question],
        windows: Windows,
        *,
        script: str,
        n_best: int,
        max_answer_length: int,
        null_threshold: float | None,
        labelled: bool = True,
    ):
        self.labelled = labelled
        ends = ("em", "f1")
        parts = ("has_ans", "no_ans", "best") if script == "squad_v2" else ()
        more = (
            *(f"{part}_{end}" for part in parts for end in ends),
            *(f"best_{end}_threshold" for end in ends if parts),
        )
        self.names: tuple[str, ...] = (*ends, *more, "loss")
        self.questions, self.windows = questions, windows
        self.script, self.n_best, self.longest = script, n_best, max_answer_length
        self.threshold = null_threshold
        self.shape: tuple[int, ...] = (2, int(windows.lengths.max()))

    def keep(self, logits: Tensor, batch: TaskBatch) -> Kept:
        """See `Evaluator`."""
        ends = ends_of(logits, batch.attention_mask)
        return batch.rows, pad(ends, (0, self.shape[1] - ends.shape[-1]), value=NEVER), batch.labels

    def metrics(self, numbers: Tensor, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """`em` and `f1` by the script of the task, over questions with a predicted window."""
        found = self._found(numbers, logits)
        texts = [own.text(self.threshold) for own in found]
        references = self._references(found)
        loss = float(label_loss(CLASSIFICATION, logits.flatten(0, 1).double(), labels.flatten())) / labels.numel()
        if self.script == "squad_v2":
            best = [own.text() for own in found]
            differences = [own.difference for own in found]
            return {**squad_v2(texts, references, differences=differences, best=best), "loss": loss}
        scores = answer_scores(self.script, texts, references)
        return {**{name: float(own.mean()) for name, own in scores.items()}, "loss": loss}

    def metric(self, name: str, numbers: Tensor, logits: Tensor, labels: Tensor) -> tuple[Metric, Ints]:
        """See `Evaluator`; the examples are questions."""
        found = self._found(numbers, logits)
        texts = [own.text(self.threshold) for own in found]
        scores = answer_scores(self.script, texts, self._references(found))[name]
        return (lambda rows: float(scores[rows].mean())), np.array([own.question for own in found])

    def write(self, stem: Path, numbers: Tensor, logits: Tensor) -> Path:
        """See `Evaluator`: answers by id, for the published scripts, and the n best of each in a second file.

        With questions that may have no answer also `<stem>_null_odds.json`: by how much the score of no answer exceeds
        that of the best one, as SQuAD 2.0's script reads it. Repeated ids get the suffix `#2` and so on.
        """
        path = stem.with_name(f"{stem.name}.json")
        found, names = self._found(numbers, logits), self._names()
        answers = {names[own.question]: own.text(self.threshold) for own in found}
        best = {
            names[own.question]: {
                "null": own.null,
                "answers": [{"text": one.text, "start": one.start, "score": one.score} for one in own.candidates],
            }
            for own in found
        }
        files: dict[str, dict[str, Any]] = {"": answers, "_nbest": best}
        if self.script == "squad_v2":
            files["_null_odds"] = {
                names[own.question]: min(own.difference, sys.float_info.max)  # of a context without a token
                for own in found
            }
        for end, content in files.items():
            write_whole(stem.with_name(f"{stem.name}{end}.json"), json_text(content, indent=1, ensure_ascii=False))
        return path

    def _found(self, numbers: Tensor, logits: Tensor) -> list[Found]:
        start_NL, end_NL = logits.float().cpu().numpy().swapaxes(0, 1)
        rows = numbers.cpu().numpy()
        return find_answers(
            start_NL, end_NL, self.windows, self.questions,
            rows_N=rows, n_best=self.n_best, max_answer_length=self.longest,
        )  # fmt: skip

    def _references(self, found: list[Found]) -> list[tuple[str, ...]]:
        return [self.questions[own.question].references for own in found]

    def _names(self) -> list[str]:
        seen: dict[str, int] = {}
        names = []
        for question in self.questions:
            count = seen[question.id] = seen.get(question.id, 0) + 1
            names.append(question.id if count == 1 else f"{question.id}#{count}")
        return names


def empty_of(evaluator: Evaluator, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors of the right shapes and types, for a rank without a batch."""
    none = torch.zeros(0, device=device)
    return none.long(), none.new_zeros(0, *evaluator.shape), none.new_zeros(0, *evaluator.label_shape)


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
            f"p({label})": [f"{share:.4f}" for share in own] for label, own in zip(task.labels, shares, strict=True)
        }
    lines = [columns, *zip(*columns.values(), strict=True)]
    write_whole(path, "".join("\t".join(map(_quoted, cells)) + "\n" for cells in lines))


def _joined(task: Task, sets: Iterable[Iterable[int]]) -> list[str]:
    """The names of the labels of each row, from multi-hot rows."""
    return [task.separator.join(name for name, has in zip(task.labels, own, strict=True) if has) for own in sets]


def _quoted(cell: str) -> str:
    # csv.writer quotes a carriage return in new versions of Python only.
    return '"' + cell.replace('"', '""') + '"' if re.search(r'[\t\r\n"]', cell) else cell
