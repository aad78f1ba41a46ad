"""Labels, features and evaluators of a benchmark's parts, for each kind of task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from potstill.config.benchmarks import SpansConfig, TaskBenchmarkConfig, TokensConfig
from potstill.config.data import TaskDataConfig
from potstill.data.common.progress import counting
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.tasks.columns import Sentences
from potstill.data.tasks.datamodule import TaskSet
from potstill.data.tasks.entities import (
    BIO,
    BIOES,
    OUTSIDE,
    are_plain,
    converted,
    inside,
    scheme_of,
    split_tag,
    tag_labels,
    tag_numbers,
    unknown_tags,
)
from potstill.data.tasks.features import Features, features_of, remembered
from potstill.data.tasks.labels import (
    CLASSIFICATION,
    MAX_LABELS,
    MULTI_LABEL,
    TOKENS,
    Task,
    encode_labels,
    labels_of,
    other_spellings,
    with_known_labels,
)
from potstill.data.tasks.preflight import oddities, refuse_unknown, warnings_of
from potstill.data.tasks.questions import Questions
from potstill.data.tasks.readers import Rows
from potstill.data.tasks.sources import PartSource
from potstill.data.tasks.splits import SQUAD_V2
from potstill.data.tasks.token_features import TokenFeatures, token_features, token_labels
from potstill.data.tasks.windows import Windows, targets_of, windows_of
from potstill.errors import DataError
from potstill.evaluation.evaluators import EntityEvaluator, Evaluator, LabelEvaluator, SpanEvaluator

log = logging.getLogger(__name__)

Part = Rows | Sentences | Questions


class Prepared(NamedTuple):
    """A part as a model reads it, and what evaluators predictions of it."""

    set: TaskSet
    evaluator: Evaluator


def read_joined(sources: Sequence[PartSource]) -> Part:
    """The rows of several sources of one kind, concatenated.

    Raises:
        DataError: one cannot be used, or they do not go together.
    """
    parts = [source.read() for source in sources]
    return parts[0] if len(parts) == 1 else type(parts[0]).joined(parts)


def with_labels_of(task: Task, train: Part, benchmark: TaskBenchmarkConfig) -> Task:
    """The task of a benchmark, its labels those of the training part where they are not known yet.

    Raises:
        DataError: the part has no labels that a model could learn.
    """
    if task.labels:
        return task
    if isinstance(train, Rows) and task.kind in (CLASSIFICATION, MULTI_LABEL):
        return task.with_labels(labels_of(train))
    if isinstance(train, Sentences) and isinstance(benchmark, TokensConfig):
        return task.with_labels(_labels_of_tags(train, benchmark.scheme))
    return task


def _labels_of_tags(train: Sentences, scheme: str | None) -> tuple[str, ...]:
    tags = train.tags or []
    plain = are_plain(tag for own in tags for tag in own)
    if plain and scheme is not None:
        raise DataError(
            f"benchmark.scheme={scheme}: the tags of '{train.name}' have no prefixes such as B- and I-; null"
        )
    labels = tag_labels(tags, scheme or (BIOES if not plain and scheme_of(tags) == BIOES else BIO))
    if len(labels) < 2:
        only = labels[0] if labels else "O"
        raise DataError(f"{train.key}: '{train.name}' has no tag but {only}; name their column by benchmark.tag_column")
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"{train.key}: '{train.name}' has {len(labels)} different tags, at most {MAX_LABELS} are expected; name "
            "their column by benchmark.tag_column"
        )
    return labels


def with_own_labels(task: Task, labels: Sequence[str]) -> Task:
    """The task, its labels those of a model where they are not known yet; tags are put into letters of BIOES."""
    if task.labels or task.kind not in (CLASSIFICATION, MULTI_LABEL, TOKENS):
        return task
    if task.kind == TOKENS and not are_plain(labels):
        pairs = [split_tag(label) for label in labels]
        labels = [f"{prefix}-{kind}" if kind else prefix for prefix, kind in pairs]
    return task.with_labels(tuple(labels))


def check_labels(train: Part, *others: Part, task: Task) -> None:
    """Refuse unknown labels before models are loaded and texts tokenised.

    Raises:
        DataError: a label, or a tag that is trained on, is none of the task's.
    """
    for part in (train, *others):
        if isinstance(part, Rows):
            encode_labels(part, task)
        elif isinstance(part, Sentences):
            _in_scheme(part, task)
    if isinstance(train, Sentences) and (unknown := unknown_tags(_in_scheme(train, task).tags or (), task.labels)):
        raise DataError(
            f"{train.key}: '{train.name}' has the tag {next(iter(unknown))}, {task.name} has {', '.join(task.labels)}; "
            "give others by benchmark.labels, or null for the training file's"
        )


def _in_scheme(sentences: Sentences, task: Task) -> Sentences:
    """Tags in the scheme of the task's labels.

    Raises:
        DataError: the labels have prefixes and the tags none, or the other way round, or not one is a label.
    """
    found = {tag for tags in sentences.tags or () for tag in tags} - {OUTSIDE}
    if sentences.tags is None or not found:
        return sentences
    if are_plain(found) == task.plain:
        in_scheme = sentences if task.plain else _converted(sentences, task)
        if any(tag != OUTSIDE and tag in task.labels for tags in in_scheme.tags or () for tag in tags):
            return in_scheme
    raise DataError(
        f"{sentences.key}: '{sentences.name}' has none of the tags of {task.name}: the file has "
        f"{', '.join(sorted(found)[:10])}, the labels are {', '.join(task.labels[:10])}; give those of the model, in "
        "its order and in the spelling of the file, by benchmark.labels"
    )


def _converted(sentences: Sentences, task: Task) -> Sentences:
    assert sentences.tags is not None
    scheme = BIOES if any(label[:2] in ("E-", "S-") for label in task.labels) else BIO
    return replace(sentences, tags=[converted(tags, scheme) for tags in sentences.tags])


@dataclass
class Preparer:
    """Prepares parts, tells what is odd about them, and counts it.

    Attributes:
        data: the keys of `data`.
        benchmark: the benchmark's.
        task: with its labels.
        vocabulary: of the tokenizer.
        length: most tokens of a sequence.
        counts: of all parts prepared, by part and name.
    """

    data: TaskDataConfig
    benchmark: TaskBenchmarkConfig
    task: Task
    vocabulary: Vocabulary
    length: int

    def __post_init__(self) -> None:
        self.counts: dict[str, int] = {}

    def part(self, name: str, read: Part, train: Part | None = None) -> Prepared:
        """Features, labels and evaluator of a part; what it has in common with `train` is counted too.

        Raises:
            DataError: labels are unknown, or the cache cannot be used.
        """
        prepare: dict[type, Callable[[str, Any, Any], Prepared]] = {
            Rows: self._rows,
            Sentences: self._sentences,
            Questions: self._questions,
        }
        return prepare[type(read)](name, read, train)

    def _rows(self, name: str, rows: Rows, train: Rows | None) -> Prepared:
        rows = with_known_labels(rows, self.task)
        labels = encode_labels(rows, self.task)
        if spellings := other_spellings(rows, self.task):
            log.info("%s: labels are read as %s", rows.name, spellings)
        with counting(f"tokenising {rows.name}") as progress:
            features = features_of(rows, self.vocabulary, max_length=self.length, cache=self._cache, progress=progress)
        refuse_unknown(rows.name, features.ids, self.vocabulary, self.data.max_unknown)
        texts = list(zip(*rows.texts, strict=True))
        known = None if train is None else zip(*train.texts, strict=True)
        counts = oddities(texts, features.ids, self.vocabulary, known)
        counts |= {"truncated": int(np.count_nonzero(features.truncated)), "broken": rows.broken}
        self._tell(name, rows.name, counts)
        return Prepared(TaskSet(features, labels), LabelEvaluator(self.task, rows))

    def _sentences(self, name: str, sentences: Sentences, train: Sentences | None) -> Prepared:
        assert isinstance(self.benchmark, TokensConfig)
        sentences, too_long = _in_scheme(sentences, self.task), self.benchmark.too_long
        unknown = unknown_tags(sentences.tags or (), self.task.labels)
        with counting(f"tokenising {sentences.name}") as progress:
            features = remembered(
                TokenFeatures,
                lambda: token_features(
                    sentences.words, self.vocabulary, max_length=self.length, too_long=too_long, progress=progress
                ),
                self._cache,
                sentences.words,
                self.vocabulary,
                {"max_length": self.length, "too_long": too_long, "kind": "tagged"},
            )
        refuse_unknown(sentences.name, features.ids, self.vocabulary, self.data.max_unknown)
        counts = oddities(sentences.words, features.ids, self.vocabulary, None if train is None else train.words)
        counts |= {"windows": len(features), "truncated": features.cut, "blank": features.blank}
        counts |= {"shortened": features.shortened, "unknown_tags": sum(unknown.values())}
        self._tell(name, sentences.name, counts)
        labels, every = None, name == "train" and self.benchmark.label_all_tokens
        if sentences.tags is not None:
            later = tag_numbers(map(inside, sentences.tags), self.task.labels) if every else None
            labels = token_labels(features, tag_numbers(sentences.tags, self.task.labels), later)
        types = np.zeros(len(features.ids), np.uint8)
        flat = Features(features.ids, types, features.lengths, np.zeros(len(features), np.bool_))
        evaluator = EntityEvaluator(self.task, sentences, features)
        return Prepared(TaskSet(flat, labels, features.words_of_all if every else features.words), evaluator)

    def _questions(self, name: str, questions: Questions, train: Questions | None) -> Prepared:
        asked, bench = questions.items, self.benchmark
        assert isinstance(bench, SpansConfig)
        options = {
            "max_length": self.length, "stride": bench.stride, "max_question_length": bench.max_question_length,
        }  # fmt: skip
        texts = [(question.question, question.context) for question in asked]
        with counting(f"tokenising {questions.name}") as progress:
            windows = remembered(
                Windows,
                lambda: windows_of(asked, self.vocabulary, **options, progress=progress),
                self._cache,
                texts,
                self.vocabulary,
                {**options, "kind": "questions"},
            )
        known = None if train is None else ((item.question, item.context) for item in train.items)
        refuse_unknown(questions.name, windows.ids, self.vocabulary, self.data.max_unknown)
        counts = oddities(texts, windows.ids, self.vocabulary, known)
        counts |= {"windows": len(windows), "truncated": int(np.count_nonzero(windows.cut))}
        found = questions.counts
        counts |= {"unanswerable": found.unanswerable, "misplaced": found.misplaced, "skipped": found.skipped}
        self._tell(name, questions.name, counts)
        if found.unanswerable and questions.labelled and bench.answer_metric != SQUAD_V2:
            log.warning(
                "%s: %d of %d questions have no answer, and benchmark.answer_metric=%s counts any answer to them as "
                "wrong; benchmark.answer_metric=squad_v2 has figures of its own for them",
                questions.name, found.unanswerable, found.questions, bench.answer_metric,
            )  # fmt: skip
        types = windows.types
        flat = Features(windows.ids, types, windows.lengths, windows.cut[windows.question])
        evaluator = SpanEvaluator(
            asked, windows, script=bench.answer_metric, n_best=bench.n_best,
            max_answer_length=bench.max_answer_length, null_threshold=bench.null_threshold,
            labelled=questions.labelled,
        )  # fmt: skip
        return Prepared(TaskSet(flat, targets_of(windows, asked).astype(np.int64)), evaluator)

    @property
    def _cache(self) -> Path:
        return Path(self.data.cache).expanduser()

    def _tell(self, name: str, called: str, counts: dict[str, int]) -> None:
        shown = ", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in counts.items())
        log.info("%s: %s", called, shown)
        for line in warnings_of(called, counts, self.length, self.vocabulary.path, self.task.kind):
            log.warning("%s", line)
        self.counts |= {f"{name}_{key}": count for key, count in counts.items()}
