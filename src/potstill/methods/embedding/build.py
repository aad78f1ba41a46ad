"""The parts of training runs of sentence encoders, from configuration, and the folder of a student."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.config import TrainConfig
from potstill.config.data import CorpusDataConfig, PairsDataConfig, SequenceDataConfig, data_of
from potstill.config.objectives.embedding import embedding_of
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.sentence_steps import SentenceDataModule
from potstill.data.corpus.sentences import SentenceRows, Sentences
from potstill.data.corpus.sources import TextSource
from potstill.data.corpus.splits import Parts, Source, sources_of
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.text_rows import Prompts
from potstill.errors import ConfigError, DataError, PairError
from potstill.methods.common.data import batch_settings, sequence_length
from potstill.methods.common.models import (
    build_matches,
    build_optimization,
    check_vocabulary,
    prepare_student,
    suit_hardware,
    term_weights,
)
from potstill.methods.embedding.benchmarks import benchmark_of, benchmark_rows
from potstill.methods.embedding.cards import encoder_card
from potstill.methods.embedding.checks import follows_teacher, is_scored
from potstill.methods.embedding.models import Side, student_of, teacher_of
from potstill.methods.embedding.rows import (
    PairParts,
    corpus_of,
    distinct_texts,
    read_parts,
    rows_of,
    tokenized,
    with_prompts,
)
from potstill.methods.embedding.static import start_static
from potstill.methods.embedding.vectors import (
    TEXT,
    Given,
    RunTexts,
    Taught,
    given_vectors,
    live_vectors,
    store_vectors,
    texts_of,
)
from potstill.methods.embedding.widths import fit_widths
from potstill.models.backbone import backbone_of
from potstill.models.save import save_student
from potstill.models.sentence import DENSE, write_sentence_model
from potstill.models.sentence_folders import ROLES, SentenceSettings
from potstill.objectives.embedding import EmbeddingObjective
from potstill.objectives.terms import LABEL
from potstill.training.embedding import EmbeddingDistillation

log = logging.getLogger(__name__)


@dataclass
class EmbeddingTraining:
    """The parts of a training run."""

    module: EmbeddingDistillation
    data: SentenceDataModule
    vocabulary: Vocabulary
    settings: SentenceSettings
    teacher_parameters: int | None
    vector_bytes: int = 0  # of a text of which the teacher's vector is read from the disk

    @property
    def figures(self) -> dict[str, int]:
        """Counts of the texts."""
        assert self.data.train is not None
        return self.data.train.describe() | ({"vector_bytes": self.vector_bytes} if self.vector_bytes else {})


def build_embedding_training(config: TrainConfig) -> EmbeddingTraining:
    """Tokenizers, models, texts and module of a training run; what can fail early comes first.

    Raises:
        PotstillError: texts, tokenizers or models that cannot be used, or that do not fit each other.
    """
    objective = embedding_of(config)
    read = _read(config)
    rows = None if config.benchmark is None else benchmark_rows(config)
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    given = given_vectors(config) if follows_teacher(config) else None
    teacher = None if config.teacher.model is None else teacher_of(config)
    student = student_of(config, teacher, normalize=given is not None and given.normalized)
    check_vocabulary(student.vocabulary, "student", student.model)
    told = (teacher or student).settings  # how texts are read
    if teacher is None and given is not None:
        told = given.told(told)
        if not student.settings.prompts and any(told.prompts.values()):
            student.settings = replace(student.settings, prompts=told.prompts, default_prompt=told.default_prompt)
    fresh, follows = student.settings.static and not config.student.model, follows_teacher(config)
    if given is not None or not (follows or fresh):  # it has given its layers
        teacher = None
    sides = [student] if teacher is None or config.teacher.cache.enabled else [student, teacher]
    text = data_of(config, SequenceDataConfig)
    length = sequence_length(text, student.vocabulary, [side.model for side in sides], told.max_length)
    prompts = _prompts(config, told)
    train, evaluation = _data(config, read, sides, prompts, told.lower, length)
    held_out = isinstance(read, PairParts) or read.held_out
    own = None if evaluation is None else texts_of(evaluation)
    taught = _taught(config, given, teacher, RunTexts(texts_of(train), own, held_out, prompts, told.lower), length)
    if taught is not None and student.settings.normalize and not taught.normalized:
        log.warning("the student's vectors have length 1, and those that it is to follow have not")
    components = fit_widths(config, student, taught, train)
    if fresh and teacher is not None and taught is not None:
        start_static(config, student, teacher, taught.training, train, components)
        if not follows:
            taught, sides = None, [student]
    elif fresh:
        log.info("the first vectors of the static student are random: there is no teacher to run over the vocabulary")
    prepare_student(config.student, student.model)
    terms = _objective(config, student, taught, components)
    watched = [
        None if rows is None else benchmark_of(config, rows, side.vocabulary, side.settings, length, objective.prompt)
        for side in sides
    ]
    settings = batch_settings(config)
    pads = student.vocabulary.pad_id, sides[-1].vocabulary.pad_id
    stored = (None, None) if taught is None else taught.stored
    data = SentenceDataModule(train, evaluation, *pads, settings, stored)
    optimization = build_optimization(config, student.model)
    live = None if taught is None else taught.live
    suit_hardware(config, [live.model] if live else [], student.model)
    module = EmbeddingDistillation(
        student.model,
        student.settings,
        live.model if live else None,
        live.settings if live else None,
        terms,
        optimization,
        watched=watched[0],
        teacher_watched=watched[1] if live else None,
        width=None if taught is None else taught.width,
    )
    parameters, size = live.model.num_parameters() if live else None, taught.text_bytes if taught else 0
    return EmbeddingTraining(module, data, student.vocabulary, student.settings, parameters, size)


def _taught(
    config: TrainConfig, given: Given | None, teacher: Side | None, texts: RunTexts, length: int
) -> Taught | None:
    """The teacher's vectors; None where no term reads them."""
    if given is not None:
        return given.of(texts)
    if teacher is None:
        return None
    if not config.teacher.cache.enabled:
        return live_vectors(config, teacher, texts.train)

    def tokens(source: TextSource, vocabulary: Vocabulary) -> Corpus:
        if isinstance(data := config.data, CorpusDataConfig):
            return corpus_of(data, source, vocabulary, length, engine=data.engine)
        return corpus_of(data_of(config, PairsDataConfig), source, vocabulary, length)

    return store_vectors(config, teacher, texts, length, tokens)


def _read(config: TrainConfig) -> Parts | PairParts:
    """The sources of texts, or the rows, which are read before any model is loaded."""
    if isinstance(config.data, PairsDataConfig):
        return read_parts(config)
    parts = sources_of(data_of(config, CorpusDataConfig))
    if not parts.train:
        raise ConfigError("data.train_files=null: training needs text, data.train_files=[a.txt,b.txt.gz]")
    return parts


def _prompts(config: TrainConfig, told: SentenceSettings) -> dict[str, str]:
    """The prompts of texts, or of queries and documents, by their kind; `told` says how texts are read."""
    objective = embedding_of(config)
    if isinstance(config.data, PairsDataConfig):
        return {role: told.prompt_of(role, objective[f"{role}_prompt"]) for role in ROLES}
    return {TEXT: told.prompt(objective.prompt)}


def _data(
    config: TrainConfig,
    read: Parts | PairParts,
    sides: Sequence[Side],
    prompts: Mapping[str, str],
    lower: bool,
    length: int,
) -> tuple[Sentences | SentenceRows, Sentences | SentenceRows | None]:
    """The texts, or rows, of training and evaluation in the tokens of the models.

    Args:
        config: of the run.
        read: from `_read`.
        sides: the student, then the teacher, if any.
        prompts: from `_prompts`.
        lower: whether texts are put into lower case.
        length: most tokens of a text.
    """
    if isinstance(read, PairParts):
        before = Prompts(**prompts, lower=lower)
        for side in sides:
            side.settings = with_prompts(side.settings, before)
        return rows_of(config, read, sides, before, length)
    text, prompt = data_of(config, CorpusDataConfig), prompts[TEXT]

    def found(sources: Sequence[Source]) -> Sentences:
        distinct = distinct_texts(text, sources, prompt, lower)
        made = tokenized(text, distinct, sides, length, text.min_length or 1, engine=text.engine)
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in made.describe().items())
        log.info("%s: %s", distinct.name, counts)
        return made

    train = found(read.train)
    try:
        return train, found(read.eval) if read.eval else None
    except DataError as error:
        if not read.held_out:
            raise
        log.warning("no evaluation: %s; give data.eval_files or a larger data.eval_share", error)
        return train, None


def _objective(
    config: TrainConfig, student: Side, taught: Taught | None, components: Tensor | None
) -> EmbeddingObjective:
    settings, teacher = embedding_of(config), None if taught is None else taught.live
    teachers = [] if teacher is None else [backbone_of(teacher.model)]
    matches = build_matches(settings, teachers, backbone_of(student.model), config.seed)
    if matches is not None and teacher is not None and student.vocabulary.digest != teacher.vocabulary.digest:
        raise PairError("objective.matches: compares states of the same tokens, and the tokenizers differ; use null")
    weights, schedules = term_weights(settings, LABEL, matches)
    return EmbeddingObjective(
        "sentences",
        weights,
        schedules=schedules,
        matches=matches,
        widths=tuple(sorted(settings.widths or (), reverse=True)),
        normalized=student.settings.normalize if taught is None else taught.normalized,
        components=components,
        scale=settings.scale,
        scored=is_scored(config),
    )


def save_encoder(
    config: TrainConfig, training: EmbeddingTraining, data: str, summary: dict[str, Any], folder: Path
) -> None:
    """Write the student as a folder of sentence-transformers."""
    model: Any = training.module.student
    card = encoder_card(config, data, summary, training.settings, model)
    dense = model._modules.pop(DENSE, None)  # has a folder of its own

    try:
        save_student(
            model,
            training.vocabulary.path,
            folder,
            card,
            lambda fresh: write_sentence_model(model, dense, training.settings, fresh),
        )
    finally:
        if dense is not None:
            model._modules[DENSE] = dense
