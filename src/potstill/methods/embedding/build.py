"""The parts of training runs of sentence encoders, from configuration, and the folder of a student."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.config import TrainConfig
from potstill.config.data import CorpusDataConfig, data_of
from potstill.config.objectives import embedding_of
from potstill.data.common.progress import counting
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.pickled import PickledTokens
from potstill.data.corpus.sentences import Distinct, SentenceDataModule, Sentences
from potstill.data.corpus.splits import Source, sources_of
from potstill.data.corpus.store import Corpus
from potstill.data.tasks.preflight import refuse_unknown
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
from potstill.methods.embedding.models import Side, student_of, teacher_of
from potstill.methods.embedding.widths import fit_widths
from potstill.models.backbone import backbone_of
from potstill.models.load import save_student
from potstill.models.sentence import DENSE, write_sentence_model
from potstill.models.sentence_folders import SentenceSettings
from potstill.objectives.embedding import EmbeddingObjective
from potstill.objectives.terms import LABEL
from potstill.training.embedding import EmbeddingDistillation

log = logging.getLogger(__name__)

PROBED = 1000  # texts whose unknown tokens are counted


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
    objective, text = embedding_of(config), data_of(config, CorpusDataConfig)
    parts = sources_of(text)
    if not parts.train:
        raise ConfigError("data.train_files=null: training needs text, data.train_files=[a.txt,b.txt.gz]")
    rows = None if config.benchmark is None else benchmark_rows(config)
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    teacher = teacher_of(config)
    student = student_of(config, teacher)
    for key, side in (("teacher.model", teacher), ("student", student)):
        check_vocabulary(side.vocabulary, key, side.model)
    limit = teacher.settings.max_length
    length = sequence_length(text, student.vocabulary, [teacher.model, student.model], limit)
    prompt = teacher.settings.prompt(objective.prompt)
    train = _texts(text, parts.train, student, teacher, prompt, length)
    evaluation = None
    if parts.eval:
        try:
            evaluation = _texts(text, parts.eval, student, teacher, prompt, length)
        except DataError as error:
            if not parts.held_out:
                raise
            log.warning("no evaluation: %s; give data.eval_files or a larger data.eval_share", error)
    components = fit_widths(config, student, teacher, train)
    prepare_student(config.student, student.model)
    terms = _objective(config, student, teacher, components)
    watched = [
        None if rows is None else benchmark_of(config, rows, side.vocabulary, side.settings, length, objective.prompt)
        for side in (student, teacher)
    ]
    settings = batch_settings(config)
    data = SentenceDataModule(train, evaluation, student.vocabulary.pad_id, teacher.vocabulary.pad_id, settings)
    optimization = build_optimization(config, student.model)
    suit_hardware(config, [teacher.model], student.model)
    module = EmbeddingDistillation(
        student.model,
        student.settings,
        teacher.model,
        teacher.settings,
        terms,
        optimization,
        watched=watched[0],
        teacher_watched=watched[1],
    )
    return EmbeddingTraining(module, data, student.vocabulary, student.settings, teacher.model.num_parameters())


def _texts(
    text: CorpusDataConfig, sources: Sequence[Source], student: Side, teacher: Side, prompt: str, length: int
) -> Sentences:
    """The texts of sources, each once, in the tokens of both models; their counts are reported."""
    texts = []
    for source in sources:
        if isinstance(source, PickledTokens):
            raise ConfigError(f"data={text.name}: has token ids; objective=embed reads texts, data=text_files")
        texts.append(source)
    distinct = Distinct(tuple(texts), prompt, teacher.settings.lower)
    sides = [student] if student.vocabulary.digest == teacher.vocabulary.digest else [student, teacher]
    stores = []
    for side in sides:
        with counting(f"binarizing {distinct.name}") as progress:
            store = binarize(
                distinct,
                side.vocabulary,
                cache=Path(text.cache).expanduser(),
                max_length=length,
                whole=True,
                num_proc=text.num_proc,
                engine=text.engine,
                progress=progress,
            )
        corpus = Corpus([store])
        sample = corpus.gather(np.arange(min(len(corpus), PROBED)))[0]
        refuse_unknown(distinct.name, sample, side.vocabulary, text.max_unknown)
        stores.append(corpus)
    found = Sentences(stores[0], stores[1] if len(stores) > 1 else None, text.min_length or 1)
    if not len(found):
        raise DataError(f"data.min_length={text.min_length}: all texts of {distinct.name} are shorter")
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.describe().items())
    log.info("%s: %s", distinct.name, counts)
    return found


def _objective(config: TrainConfig, student: Side, teacher: Side, components: Tensor | None) -> EmbeddingObjective:
    settings = embedding_of(config)
    matches = build_matches(settings, [backbone_of(teacher.model)], backbone_of(student.model), config.seed)
    if matches is not None and student.vocabulary.digest != teacher.vocabulary.digest:
        raise PairError("objective.matches: compares states of the same tokens, and the tokenizers differ; use null")
    weights, schedules = term_weights(settings, LABEL, matches)
    return EmbeddingObjective(
        "sentences",
        weights,
        schedules=schedules,
        matches=matches,
        widths=tuple(sorted(settings.widths or (), reverse=True)),
        normalized=teacher.settings.normalize,
        components=components,
    )


def save_encoder(
    config: TrainConfig, training: EmbeddingTraining, data: str, summary: dict[str, Any], folder: Path
) -> None:
    """Write the student as a folder of sentence-transformers."""
    model: Any = training.module.student
    card = encoder_card(config, data, summary, training.settings)
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
