"""Students of step-by-step distillation and their data from configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import rationale_part
from potstill.config.data import ArithmeticDataConfig, RationaleDataConfig, data_of
from potstill.config.objectives.step_by_step import step_by_step_of
from potstill.data.common.progress import counting
from potstill.data.common.tokenizers import Vocabulary, describe
from potstill.data.rationales.arithmetic import arithmetic_tokenizer
from potstill.data.rationales.datamodule import TEST, VALID, WATCHED, RationaleDataModule, RationaleSequences
from potstill.data.rationales.features import EXPLAIN as EXPLAIN_PREFIX
from potstill.data.rationales.features import PREDICT as PREDICT_PREFIX
from potstill.data.rationales.features import RationaleFeatures, rationale_features
from potstill.data.rationales.forms import Form, chat_frame
from potstill.data.rationales.rows import EXPLAIN, PREDICT, RationaleRows
from potstill.data.rationales.sets import allowed_labels, set_of
from potstill.data.rationales.soft_labels import aligned
from potstill.data.rationales.splits import ONE_TARGET, STANDARD, Parts, evaluated_part, training_parts
from potstill.data.tasks.preflight import refuse_unknown
from potstill.errors import ConfigError, DataError, ModelError, TokenizerError
from potstill.evaluation.rationales import llm_accuracy
from potstill.evaluation.step_by_step import RationaleEvaluator
from potstill.methods.common.data import batch_settings, vocabulary_of
from potstill.methods.common.models import build_optimization, check_vocabulary, prepare_student
from potstill.models.asked import Asked, asked_of
from potstill.models.backbone import backbone_of
from potstill.models.load import keep_tokenizer, load_language_model, load_tokenizer
from potstill.models.seq2seq import load_seq2seq, seq2seq_from_config
from potstill.models.specs import SEQ2SEQ, read_settings
from potstill.models.students import student_from_config
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
    weight, explains = objective.soft_weight, objective.mode not in (STANDARD, ONE_TARGET)
    vocabulary = _vocabulary(config)
    prefixes = {PREDICT: PREDICT_PREFIX, EXPLAIN: EXPLAIN_PREFIX} if explains else {PREDICT: ""}
    prefixes |= {task: prefix for task, prefix in _given(own).items() if task in prefixes}
    separator = (own.explain_prefix or EXPLAIN_PREFIX).strip() if objective.mode == ONE_TARGET else None
    form = _form(own, vocabulary, not _is_seq2seq(config), own.chat, separator)
    parts = training_parts(own, mode=objective.mode, seed=config.seed, separator=_between(form), soft_labels=weight > 0)
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    student = _build_student(config, form)
    check_vocabulary(vocabulary, "the student", student)
    prepare_student(config.student, student)
    optimization = build_optimization(config, student)
    preparer = _Preparer(own, form, prefixes, student)
    train = preparer.sequences("train", parts.train, evaluated=False, soft=weight > 0)
    if own.shuffle_rationales:
        preparer.counts["train_rationales_shuffled"] = len(parts.train)
    held_out = {VALID: parts.valid, **({TEST: parts.test} if parts.test is not None else {})}
    evaluation = {name: preparer.sequences(name, rows) for name, rows in held_out.items()}
    if own.watch_test and TEST in evaluation:
        evaluation[WATCHED], held_out[WATCHED] = evaluation[TEST], held_out[TEST]
    data = RationaleDataModule(train, evaluation, pad_id=vocabulary.pad_id, settings=batch_settings(config))
    Asked(prefixes, form.chat is not None, separator).remember(student.config)
    module = TaskPrefix(
        student,
        TaskPrefixObjective(objective.alpha, explains=explains, soft_weight=weight, temperature=objective.temperature),
        {name: preparer.evaluator(rows) for name, rows in held_out.items()},
        _decoding(own, form),
        optimization,
    )
    figures = _llm_figures(own, parts) if own.labels == "llm" else {}
    return RationaleTraining(module, data, vocabulary, {**preparer.counts, **figures})


def build_rationale_evaluation(config: EvaluateConfig, model: str) -> RationaleEvaluation:
    """A student and the rows that it is evaluated on, asked as its configuration says, with its own tokenizer.

    Raises:
        PotstillError: a student or files that cannot be used.
    """
    own = data_of(config, RationaleDataConfig)
    given = ("model", model) if own.tokenizer is None else ("data.tokenizer", own.tokenizer)
    vocabulary = vocabulary_of(*given)
    settings = read_settings("model", model)
    # A student without a second task cannot explain; other models are evaluated on both tasks.
    asked = asked_of(settings, PREDICT) or Asked({PREDICT: PREDICT_PREFIX, EXPLAIN: EXPLAIN_PREFIX})
    prefixes = {task: prefix for task, prefix in asked.prefixes.items() if task in (PREDICT, EXPLAIN)}
    separator = asked.separator
    if separator is not None:
        separator, prefixes = own.explain_prefix or separator, {PREDICT: prefixes[PREDICT]}
    elif own.explain_prefix is not None:
        prefixes[EXPLAIN] = own.explain_prefix
    if own.predict_prefix is not None:
        prefixes[PREDICT] = own.predict_prefix
    seq2seq = settings.get("model_type") in SEQ2SEQ
    form = _form(own, vocabulary, not seq2seq, asked.chat if own.chat is None else own.chat, separator)
    part = VALID if rationale_part(config.benchmark) == "eval" else TEST
    rows = evaluated_part(own, part, _between(form), seed=config.seed)
    student = load_seq2seq("model", model) if seq2seq else load_language_model("model", model, need_head=True)
    check_vocabulary(vocabulary, "model", student)
    _end_texts(student, form)
    preparer = _Preparer(own, form, prefixes, student)
    data = RationaleDataModule(
        None, {VALID: preparer.sequences(part, rows)}, pad_id=vocabulary.pad_id, settings=batch_settings(config)
    )
    objective = TaskPrefixObjective(explains=EXPLAIN in preparer.prefixes)
    module = TaskPrefix(student, objective, {VALID: preparer.evaluator(rows)}, _decoding(own, form))
    return RationaleEvaluation(module, data)


def _form(
    data: RationaleDataConfig, vocabulary: Vocabulary, prompts: bool, chat: bool | None, separator: str | None
) -> Form:
    """The form of inputs and targets.

    Raises:
        TokenizerError: the tokenizer of a decoder-only student has no end token, or none for the separator.
        ConfigError: a chat template is wanted, and the tokenizer has none or one that cannot be used.
    """
    form = Form(vocabulary, vocabulary.end_id, separator=separator)
    if prompts:
        tokenizer = load_tokenizer(vocabulary.path)
        end_id = vocabulary.end_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        if end_id is None:
            raise TokenizerError(
                f"data.tokenizer: '{vocabulary.path}' has no end token (eos_token), so a student could not learn to "
                "stop; give its tokenizer_config.json one that the model knows"
            )
        if chat and not tokenizer.chat_template:
            raise ConfigError(
                f"data.chat=true: the tokenizer '{vocabulary.path}' has no chat template; data.chat=false"
            )
        frame = None
        if tokenizer.chat_template and chat is not False:
            frame = chat_frame(tokenizer, f"data.chat={'null' if data.chat is None else str(data.chat).lower()}")
        form = Form(vocabulary, end_id, True, frame, separator)
    _ = form.separator_ids  # raises where the tokenizer cannot write it
    return form


def _between(form: Form) -> str | None:
    """Between premise and hypothesis: the tokenizer's end token, as published; in a prompt a line break."""
    if form.prompts:
        return "\n"
    return None if form.end_id is None else form.backend.id_to_token(form.end_id)


@dataclass
class _Preparer:
    """Prepares parts and counts what is odd about them.

    Attributes:
        data: the keys of `data`.
        form: of inputs and targets.
        prefixes: by task; without one there is no second task.
        student: whose positions are the limit of a prompt with its target.
        counts: of all parts prepared, by part and name.
    """

    data: RationaleDataConfig
    form: Form
    prefixes: dict[str, str]
    student: PreTrainedModel
    counts: dict[str, float] = field(default_factory=dict)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.form.vocabulary

    @property
    def backend(self) -> Tokenizer:
        return self.form.backend

    @cached_property
    def max_input_length(self) -> int:
        """Tokens of an input; a prompt leaves positions for a target.

        Raises:
            ModelError: there are none left.
        """
        if not self.form.prompts:
            return self.data.max_input_length
        positions, target = backbone_of(self.student).max_length, self.data.max_target_length
        longest = max(target, self.data.generation_max_length)
        if positions - longest < 1:
            key = "max_target_length" if longest == target else "generation_max_length"
            raise ModelError(
                f"data.{key}={longest}: the student has {positions} positions for a prompt and its target; "
                f"use less than {positions}"
            )
        return min(self.data.max_input_length, positions - longest)

    def sequences(
        self, name: str, rows: RationaleRows, *, evaluated: bool = True, soft: bool = False
    ) -> RationaleSequences:
        explains = EXPLAIN in self.prefixes
        with counting(f"tokenising {rows.name}") as progress:
            features = rationale_features(
                rows,
                self.vocabulary,
                cache=Path(self.data.cache).expanduser(),
                form=self.form,
                predict_prefix=self.prefixes[PREDICT],
                explain_prefix=self.prefixes.get(EXPLAIN, EXPLAIN_PREFIX),
                max_input_length=self.max_input_length,
                max_target_length=self.data.max_target_length,
                explain_all=evaluated and self.data.output_rationale,
                progress=progress,
            )
        refuse_unknown(rows.name, features.predict.ids, self.vocabulary, self.data.max_unknown)
        unknown = self._unknown(rows, evaluated)
        self._tell(name, rows, features, explains, unknown)
        restricted = evaluated and self.data.restricted_decoding
        if restricted and not any(rows.choices):
            raise DataError(
                f"data.restricted_decoding=true: '{rows.name}' has no choices to choose from; give rows with "
                "'choices', or data.restricted_decoding=false"
            )
        # A prompt and its target are one sequence; of an encoder-decoder the target is what a rationale makes long.
        padded_by = "rationales" if explains else None if self.form.prompts or not self.form.separator else "labels"
        if not soft:
            choices = self._choices(rows) if restricted else None
            return RationaleSequences(features, explains, choices, padded_by=padded_by)
        likely = [aligned(own, allowed_labels(choices)) for own, choices in zip(rows.soft, rows.choices, strict=True)]
        self.counts[f"{name}_soft"] = len(likely) - likely.count(None)
        log.info("%s: %d rows have label probabilities", name, self.counts[f"{name}_soft"])
        return RationaleSequences(features, explains, self._choices(rows), soft=likely, padded_by=padded_by)

    def evaluator(self, rows: RationaleRows) -> RationaleEvaluator:
        backend = self.backend

        def decode(ids: Sequence[Sequence[int]]) -> list[str]:
            return [text.strip() for text in backend.decode_batch(list(ids), skip_special_tokens=True)]

        encoded = self._bare(rows.labels)
        # Without its unknown tokens a label is a shorter one, at worst the empty text.
        gold = [
            label if self.vocabulary.unk_id in ids else text
            for label, ids, text in zip(rows.labels, encoded, decode(encoded), strict=True)
        ]
        return RationaleEvaluator(rows, set_of(self.data), gold, decode)

    def _choices(self, rows: RationaleRows) -> list[list[list[int]]]:
        allowed = [allowed_labels(choices) or [] for choices in rows.choices]
        ids = {text: self.form.choice(text) for text in {text for own in allowed for text in own}}
        return [[ids[text] for text in own] for own in allowed]

    def _bare(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def _unknown(self, rows: RationaleRows, evaluated: bool) -> list[int]:
        """The rows whose labels the tokenizer cannot write: some of it is the unknown token."""
        unknown = self.vocabulary.unk_id
        found = [row for row, ids in enumerate(self._bare(rows.labels)) if unknown is not None and unknown in ids]
        if len(found) == len(rows) and not evaluated:
            raise DataError(
                f"data.tokenizer: '{self.vocabulary.path}' cannot write the labels of '{rows.name}': all hold tokens "
                f"that it does not know, as {rows.labels[0]!r:.60} does; give the tokenizer of a student that has "
                "them, such as mT5's"
            )
        return found

    def _tell(
        self, name: str, rows: RationaleRows, features: RationaleFeatures, explains: bool, unknown: list[int]
    ) -> None:
        cut = {f"{column}_cut": count for column, count in features.cut().items()}
        if not explains:
            cut = {column: count for column, count in cut.items() if column in ("predict_cut", "labels_cut")}
        counts = {"rows": len(rows), **rows.counts, **cut, "labels_unknown": len(unknown)}
        shown = ", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in counts.items())
        log.info("%s (%s): %s", name, rows.name, shown)
        for column, key, limit in (
            ("predict_cut", "data.max_input_length", self.max_input_length),
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


def _decoding(data: RationaleDataConfig, form: Form) -> Decoding:
    return Decoding(
        data.generation_max_length, data.output_rationale, data.restricted_decoding, form.separator_ids, form.split
    )


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


def _is_seq2seq(config: TrainConfig) -> bool:
    model = config.student.model
    settings: Any = read_settings("student.model", model) if model else config.student.config
    return settings.get("model_type") in SEQ2SEQ


def _build_student(config: TrainConfig, form: Form) -> PreTrainedModel:
    vocabulary, attention, model = form.vocabulary, config.student.attention, config.student.model
    settings: Any = config.student.config
    tokens: Any = {"vocab_size": vocabulary.size, "pad_token_id": vocabulary.pad_id, "eos_token_id": form.end_id}
    if not form.prompts:
        if model:
            return load_seq2seq("student.model", model, attention=attention)
        return seq2seq_from_config(settings, **tokens, attention=attention)
    if model:
        student = load_language_model("student.model", model, need_head=False, attention=attention)
    else:
        student = student_from_config(settings, **tokens, bos_token_id=vocabulary.start_id, attention=attention)
    _end_texts(student, form)
    return student


def _end_texts(student: Any, form: Form) -> None:
    """The end token of targets ends the texts of a decoder-only student, also in transformers' own generation."""
    if not form.prompts:
        return
    own = student.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    own.eos_token_id = [form.end_id, *(token for token in ends if token not in (None, form.end_id))]
    if own.pad_token_id is None:
        own.pad_token_id = form.vocabulary.pad_id
