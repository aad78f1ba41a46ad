"""The parts of training runs of sentence encoders, from configuration, and the folder of a student."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.config import TrainConfig
from potstill.config.data import CorpusDataConfig, PairsDataConfig, SequenceDataConfig, data_of
from potstill.config.objectives import embedding_of
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.pickled import PickledTokens
from potstill.data.corpus.sentences import Distinct, SentenceDataModule, SentenceRows, Sentences
from potstill.data.corpus.splits import Parts, Source, sources_of
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
from potstill.methods.embedding.rows import PairParts, read_parts, rows_of, tokenized, with_prompts
from potstill.methods.embedding.static import start_static
from potstill.methods.embedding.widths import fit_widths
from potstill.models.backbone import backbone_of
from potstill.models.load import save_student
from potstill.models.sentence import DENSE, write_sentence_model
from potstill.models.sentence_folders import SentenceSettings
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

    @property
    def figures(self) -> dict[str, int]:
        """Counts of the texts."""
        assert self.data.train is not None
        return self.data.train.describe()


def build_embedding_training(config: TrainConfig) -> EmbeddingTraining:
    """Tokenizers, models, texts and module of a training run; what can fail early comes first.

    Raises:
        PotstillError: texts, tokenizers or models that cannot be used, or that do not fit each other.
    """
    objective = embedding_of(config)
    read = _read(config)
    rows = None if config.benchmark is None else benchmark_rows(config)
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    teacher = None if config.teacher.model is None else teacher_of(config)
    student = student_of(config, teacher)
    told = (teacher or student).settings  # how texts are read
    fresh = student.settings.static and not config.student.model
    if teacher is not None and not fresh and not follows_teacher(config):  # it has given its layers
        teacher = None
    sides = [student] if teacher is None else [student, teacher]
    for key, side in zip(("student", "teacher.model"), sides, strict=False):
        check_vocabulary(side.vocabulary, key, side.model)
    text = data_of(config, SequenceDataConfig)
    length = sequence_length(text, student.vocabulary, [side.model for side in sides], told.max_length)
    train, evaluation = _data(config, read, sides, told, length)
    components = fit_widths(config, student, teacher, train)
    if fresh and teacher is not None:
        start_static(config, student, teacher, train, components)
        if not follows_teacher(config):
            teacher, sides = None, [student]
    prepare_student(config.student, student.model)
    terms = _objective(config, student, teacher, components)
    watched = [
        None if rows is None else benchmark_of(config, rows, side.vocabulary, side.settings, length, objective.prompt)
        for side in sides
    ]
    settings = batch_settings(config)
    pads = student.vocabulary.pad_id, sides[-1].vocabulary.pad_id
    data = SentenceDataModule(train, evaluation, *pads, settings)
    optimization = build_optimization(config, student.model)
    suit_hardware(config, [teacher.model] if teacher else [], student.model)
    module = EmbeddingDistillation(
        student.model,
        student.settings,
        teacher.model if teacher else None,
        teacher.settings if teacher else None,
        terms,
        optimization,
        watched=watched[0],
        teacher_watched=watched[1] if teacher else None,
    )
    parameters = teacher.model.num_parameters() if teacher else None
    return EmbeddingTraining(module, data, student.vocabulary, student.settings, parameters)


def _read(config: TrainConfig) -> Parts | PairParts:
    """The sources of texts, or the rows, which are read before any model is loaded."""
    if isinstance(config.data, PairsDataConfig):
        return read_parts(config)
    parts = sources_of(data_of(config, CorpusDataConfig))
    if not parts.train:
        raise ConfigError("data.train_files=null: training needs text, data.train_files=[a.txt,b.txt.gz]")
    return parts


def _data(
    config: TrainConfig, read: Parts | PairParts, sides: Sequence[Side], told: SentenceSettings, length: int
) -> tuple[Sentences | SentenceRows, Sentences | SentenceRows | None]:
    """The texts, or rows, of training and evaluation in the tokens of the models.

    Args:
        config: of the run.
        read: from `_read`.
        sides: the student, then the teacher, if any.
        told: how texts are read.
        length: most tokens of a text.
    """
    objective = embedding_of(config)
    if isinstance(read, PairParts):
        query, document = (told.prompt_of(role, objective[f"{role}_prompt"]) for role in ("query", "document"))
        prompts = Prompts(query, document, told.lower)
        for side in sides:
            side.settings = with_prompts(side.settings, prompts)
        return rows_of(config, read, sides, prompts, length)
    text, prompt = data_of(config, CorpusDataConfig), told.prompt(objective.prompt)

    def found(sources: Sequence[Source]) -> Sentences:
        texts = []
        for source in sources:
            if isinstance(source, PickledTokens):
                raise ConfigError(f"data={text.name}: has token ids; objective=embed reads texts, data=text_files")
            texts.append(source)
        distinct = Distinct(tuple(texts), prompt, told.lower)
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
    config: TrainConfig, student: Side, teacher: Side | None, components: Tensor | None
) -> EmbeddingObjective:
    settings = embedding_of(config)
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
        normalized=(teacher or student).settings.normalize,
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
