"""Students of step-by-step distillation and their data from configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import rationale_part
from potstill.config.data import ArithmeticDataConfig, RationaleDataConfig, data_of
from potstill.config.objectives import step_by_step_of
from potstill.data.common.progress import counting
from potstill.data.common.tokenizers import Vocabulary, describe, load_backend
from potstill.data.rationales.arithmetic import arithmetic_tokenizer
from potstill.data.rationales.datamodule import TEST, VALID, WATCHED, RationaleDataModule, RationaleSequences
from potstill.data.rationales.features import EXPLAIN as EXPLAIN_PREFIX
from potstill.data.rationales.features import PREDICT as PREDICT_PREFIX
from potstill.data.rationales.features import RationaleFeatures, rationale_features
from potstill.data.rationales.rows import EXPLAIN, PREDICT, RationaleRows
from potstill.data.rationales.sets import allowed_labels, set_of
from potstill.data.rationales.soft_labels import aligned
from potstill.data.rationales.splits import STANDARD, Parts, evaluated_part, training_parts
from potstill.data.tasks.preflight import refuse_unknown
from potstill.errors import DataError
from potstill.evaluation.rationales import llm_accuracy
from potstill.evaluation.step_by_step import RationaleEvaluator
from potstill.methods.common.data import batch_settings, vocabulary_of
from potstill.methods.common.models import build_optimization, check_vocabulary
from potstill.models.load import keep_tokenizer
from potstill.models.preparing import set_checkpointing, set_dropout
from potstill.models.seq2seq import load_seq2seq, prefixes_of, remember_prefixes, seq2seq_from_config
from potstill.models.specs import read_settings
from potstill.objectives.task_prefix import TaskPrefixObjective
from potstill.training.task_prefix import Decoding, TaskPrefix

log = logging.getLogger(__name__)


@dataclass
class RationaleTraining:
    """The parts of a student's training run."""

    module: TaskPrefix
    data: RationaleDataModule
    vocabulary: Vocabulary
    figures: dict[str, float]
    teacher_parameters: int | None = None


@dataclass
class RationaleEvaluation:
    """A single student, and what it is evaluated on."""

    module: TaskPrefix
    data: RationaleDataModule


def build_rationale_training(config: TrainConfig) -> RationaleTraining:
    """Rows, tokenizer, student, features and module of a training run; what can fail early comes first.

    Raises:
        PotstillError: files, tokenizer or student that cannot be used, or that do not fit each other.
    """
    objective, own = step_by_step_of(config), data_of(config, RationaleDataConfig)
    standard, weight = objective.mode == STANDARD, objective.soft_weight
    vocabulary = _vocabulary(config)
    backend = load_backend(vocabulary.path)
    separator = None if vocabulary.end_id is None else backend.id_to_token(vocabulary.end_id)
    parts = training_parts(own, standard=standard, seed=config.seed, separator=separator, soft_labels=weight > 0)
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    student = _build_student(config, vocabulary)
    check_vocabulary(vocabulary, "the student", student)
    if config.student.dropout is not None:
        set_dropout(student, config.student.dropout)
    if config.student.checkpointing is not None:
        set_checkpointing(student, config.student.checkpointing)
    optimization = build_optimization(config, student)
    prefixes = {PREDICT: "" if standard else PREDICT_PREFIX}
    prefixes |= {} if standard else {EXPLAIN: EXPLAIN_PREFIX}
    prefixes |= {task: prefix for task, prefix in _given(own).items() if task in prefixes}
    preparer = _Preparer(own, vocabulary, backend, prefixes)
    train = preparer.sequences("train", parts.train, evaluated=False, soft=weight > 0)
    held_out = {VALID: parts.valid, **({TEST: parts.test} if parts.test is not None else {})}
    evaluation = {name: preparer.sequences(name, rows) for name, rows in held_out.items()}
    if own.watch_test and TEST in evaluation:
        evaluation[WATCHED], held_out[WATCHED] = evaluation[TEST], held_out[TEST]
    data = RationaleDataModule(train, evaluation, pad_id=vocabulary.pad_id, settings=batch_settings(config))
    remember_prefixes(student, prefixes)
    module = TaskPrefix(
        student,
        TaskPrefixObjective(
            objective.alpha, explains=not standard, soft_weight=weight, temperature=objective.temperature
        ),
        {name: preparer.evaluator(rows) for name, rows in held_out.items()},
        _decoding(own),
        optimization,
    )
    figures = _llm_figures(own, parts) if own.labels == "llm" else {}
    return RationaleTraining(module, data, vocabulary, {**preparer.counts, **figures})


def build_rationale_evaluation(config: EvaluateConfig, model: str) -> RationaleEvaluation:
    """A student and the rows that it is evaluated on, with the prefixes of its configuration and its own tokenizer.

    Raises:
        PotstillError: a student or files that cannot be used.
    """
    own = data_of(config, RationaleDataConfig)
    given = ("model", model) if own.tokenizer is None else ("data.tokenizer", own.tokenizer)
    vocabulary = vocabulary_of(*given)
    backend = load_backend(vocabulary.path)
    separator = None if vocabulary.end_id is None else backend.id_to_token(vocabulary.end_id)
    part = VALID if rationale_part(config.benchmark) == "eval" else TEST
    rows = evaluated_part(own, part, separator, seed=config.seed)
    student = load_seq2seq("model", model)
    check_vocabulary(vocabulary, "model", student)
    # A student without a second task cannot explain; other models are evaluated on both tasks.
    remembered = prefixes_of(read_settings("model", model))
    if PREDICT not in remembered:
        remembered = {PREDICT: PREDICT_PREFIX, EXPLAIN: EXPLAIN_PREFIX}
    prefixes = {task: prefix for task, prefix in remembered.items() if task in (PREDICT, EXPLAIN)}
    preparer = _Preparer(own, vocabulary, backend, prefixes | _given(own))
    data = RationaleDataModule(
        None, {VALID: preparer.sequences(part, rows)}, pad_id=vocabulary.pad_id, settings=batch_settings(config)
    )
    objective = TaskPrefixObjective(explains=EXPLAIN in preparer.prefixes)
    module = TaskPrefix(student, objective, {VALID: preparer.evaluator(rows)}, _decoding(own))
    return RationaleEvaluation(module, data)


@dataclass
class _Preparer:
    """Prepares parts and counts what is odd about them.

    Attributes:
        data: the keys of `data`.
        vocabulary: of the tokenizer.
        backend: the tokenizer.
        prefixes: by task; without one there is no second task.
        counts: of all parts prepared, by part and name.
    """

    data: RationaleDataConfig
    vocabulary: Vocabulary
    backend: Tokenizer
    prefixes: dict[str, str]
    counts: dict[str, float] = field(default_factory=dict)

    def sequences(
        self, name: str, rows: RationaleRows, *, evaluated: bool = True, soft: bool = False
    ) -> RationaleSequences:
        explains = EXPLAIN in self.prefixes
        with counting(f"tokenising {rows.name}") as progress:
            features = rationale_features(
                rows,
                self.vocabulary,
                cache=Path(self.data.cache).expanduser(),
                predict_prefix=self.prefixes[PREDICT],
                explain_prefix=self.prefixes.get(EXPLAIN, EXPLAIN_PREFIX),
                max_input_length=self.data.max_input_length,
                max_target_length=self.data.max_target_length,
                explain_all=evaluated and self.data.output_rationale,
                progress=progress,
            )
        refuse_unknown(rows.name, features.predict.ids, self.vocabulary, self.data.max_unknown)
        unknown = self._unknown(rows, features, evaluated)
        self._tell(name, rows, features, explains, unknown)
        restricted = evaluated and self.data.restricted_decoding
        if restricted and not any(rows.choices):
            raise DataError(
                f"data.restricted_decoding=true: '{rows.name}' has no choices to choose from; give rows with "
                "'choices', or data.restricted_decoding=false"
            )
        if not soft:
            return RationaleSequences(features, explains, self._choices(rows) if restricted else None)
        likely = [aligned(own, allowed_labels(choices)) for own, choices in zip(rows.soft, rows.choices, strict=True)]
        self.counts[f"{name}_soft"] = len(likely) - likely.count(None)
        log.info("%s: %d rows have label probabilities", name, self.counts[f"{name}_soft"])
        return RationaleSequences(features, explains, self._choices(rows), soft=likely)

    def evaluator(self, rows: RationaleRows) -> RationaleEvaluator:
        backend = self.backend

        def decode(ids: Sequence[Sequence[int]]) -> list[str]:
            return [text.strip() for text in backend.decode_batch(list(ids), skip_special_tokens=True)]

        encoded = [encoding.ids for encoding in backend.encode_batch(rows.labels)]
        # Without its unknown tokens a label is a shorter one, at worst the empty text.
        gold = [
            label if self.vocabulary.unk_id in ids else text
            for label, ids, text in zip(rows.labels, encoded, decode(encoded), strict=True)
        ]
        return RationaleEvaluator(rows, set_of(self.data), gold, decode)

    def _choices(self, rows: RationaleRows) -> list[list[list[int]]]:
        allowed = [allowed_labels(choices) or [] for choices in rows.choices]
        texts = sorted({text for own in allowed for text in own})
        ids = {text: made.ids for text, made in zip(texts, self.backend.encode_batch(texts), strict=True)}
        return [[ids[text] for text in own] for own in allowed]

    def _unknown(self, rows: RationaleRows, features: RationaleFeatures, evaluated: bool) -> NDArray[np.int64]:
        """The rows whose labels the tokenizer cannot write: some of it is the unknown token."""
        ids, lengths, unknown = features.labels.ids, features.labels.lengths, self.vocabulary.unk_id
        found = np.unique(np.repeat(np.arange(len(rows)), lengths)[ids == (-1 if unknown is None else unknown)])
        if len(found) == len(rows) and not evaluated:
            raise DataError(
                f"data.tokenizer: '{self.vocabulary.path}' cannot write the labels of '{rows.name}': all hold tokens "
                f"that it does not know, as {rows.labels[0]!r:.60} does; give the tokenizer of a student that has "
                "them, such as mT5's"
            )
        return found

    def _tell(
        self, name: str, rows: RationaleRows, features: RationaleFeatures, explains: bool, unknown: NDArray[np.int64]
    ) -> None:
        cut = {f"{column}_cut": count for column, count in features.cut().items()}
        if not explains:
            cut = {column: count for column, count in cut.items() if column in ("predict_cut", "labels_cut")}
        counts = {"rows": len(rows), **rows.counts, **cut, "labels_unknown": len(unknown)}
        shown = ", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in counts.items())
        log.info("%s (%s): %s", name, rows.name, shown)
        for column, key, limit in (
            ("predict_cut", "data.max_input_length", self.data.max_input_length),
            ("labels_cut", "data.max_target_length", self.data.max_target_length),
            ("rationales_cut", "data.max_target_length", self.data.max_target_length),
        ):
            if counts.get(column):
                log.warning("%s: %d %s at %s=%d", name, counts[column], column.replace("_", " "), key, limit)
        if len(unknown):
            log.warning(
                "%s: %d labels hold tokens that data.tokenizer does not know, the first is %r; they cannot be written",
                name, len(unknown), rows.labels[unknown[0]],
            )  # fmt: skip
        self.counts |= {f"{name}_{key}": count for key, count in counts.items()}


def _llm_figures(data: RationaleDataConfig, parts: Parts) -> dict[str, float]:
    """How often the LLM's own labels are right, which a student of them can hardly surpass."""
    figures = {}
    for name, rows in (("train", parts.read), ("test", parts.test)):
        if rows is not None and any(label is not None for label in rows.llm_labels):
            figures[f"llm_{name}_accuracy"] = llm_accuracy(set_of(data), rows)
            log.info("the LLM's own accuracy on %s: %.2f %%", name, 100 * figures[f"llm_{name}_accuracy"])
    return figures


def _given(data: RationaleDataConfig) -> dict[str, str]:
    """The prefixes that the user gives."""
    both = {PREDICT: data.predict_prefix, EXPLAIN: data.explain_prefix}
    return {task: prefix for task, prefix in both.items() if prefix is not None}


def _decoding(data: RationaleDataConfig) -> Decoding:
    return Decoding(data.generation_max_length, data.output_rationale, data.restricted_decoding)


def _vocabulary(config: TrainConfig) -> Vocabulary:
    """The tokenizer of `data.tokenizer`, else of the student, else of the generated problems."""
    data = config.data
    if data.tokenizer is not None:
        return vocabulary_of("data.tokenizer", data.tokenizer, saved=True)
    if isinstance(data, ArithmeticDataConfig) and not config.student.model:
        prefixes = {PREDICT: PREDICT_PREFIX, EXPLAIN: EXPLAIN_PREFIX} | _given(data)
        cache = Path(data.cache).expanduser()
        folder = arithmetic_tokenizer(data.generated, tuple(prefixes.values()), cache)
        keep_tokenizer(f"data.cache={cache}", folder)
        return describe(folder)
    return vocabulary_of("student.model", str(config.student.model), saved=True)


def _build_student(config: TrainConfig, vocabulary: Vocabulary) -> PreTrainedModel:
    if config.student.model:
        return load_seq2seq("student.model", config.student.model, attention=config.student.attention)
    settings: Any = config.student.config
    return seq2seq_from_config(
        settings,
        vocab_size=vocabulary.size,
        pad_token_id=vocabulary.pad_id,
        eos_token_id=vocabulary.end_id,
        attention=config.student.attention,
    )
