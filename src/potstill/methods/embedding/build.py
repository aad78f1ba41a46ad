"""The parts of training runs of sentence encoders, from configuration, and the folder of a student."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import SimilarityConfig
from potstill.config.data import CorpusDataConfig, data_of
from potstill.config.objectives import embedding_of
from potstill.data.common.progress import counting
from potstill.data.common.ragged import starts_of
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.pickled import PickledTokens
from potstill.data.corpus.sentences import Distinct, SentenceDataModule, Sentences
from potstill.data.corpus.splits import Source, sources_of
from potstill.data.corpus.store import Corpus
from potstill.data.tasks.labels import encode_labels
from potstill.data.tasks.preflight import refuse_unknown
from potstill.data.tasks.readers import Rows
from potstill.data.tasks.splits import MAIN, evaluated_parts, task_of
from potstill.errors import ConfigError, DataError, PairError
from potstill.evaluation.similarity import ScoredPairs, scored_pairs
from potstill.methods.common.data import batch_settings, local_tokenizer, sequence_length, vocabulary_of
from potstill.methods.common.models import (
    build_matches,
    build_optimization,
    check_vocabulary,
    prepare_student,
    suit_hardware,
    term_weights,
)
from potstill.methods.common.teacher_cache import place_of
from potstill.methods.embedding.cards import encoder_card
from potstill.models.backbone import backbone_of
from potstill.models.load import keep_pooler, save_student
from potstill.models.sentence import (
    DENSE,
    SentenceEncoder,
    add_dense,
    load_sentence_model,
    sentence_student,
    write_sentence_model,
)
from potstill.models.sentence_folders import MODULES, SentenceSettings, sentence_settings
from potstill.models.specs import default_layers
from potstill.models.students import model_from_config, set_attention
from potstill.objectives.embedding import EmbeddingObjective
from potstill.objectives.terms import LABEL
from potstill.teacher_cache.computing import frozen
from potstill.training.embedding import EmbeddingDistillation

ScoredRows = tuple[Rows, NDArray[Any]]  # pairs of texts, and their scores

log = logging.getLogger(__name__)

PROBED = 1000  # texts whose unknown tokens are counted
SAMPLED = 8192  # texts whose vectors give the principal components


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


@dataclass
class Side:
    """Student or teacher: the model, how it makes a vector, its tokenizer."""

    model: PreTrainedModel
    settings: SentenceSettings
    vocabulary: Vocabulary

    @property
    def encoder(self) -> SentenceEncoder:
        """The model as a function."""
        return SentenceEncoder(self.model, self.settings)


def build_embedding_training(config: TrainConfig) -> EmbeddingTraining:
    """Tokenizers, models, texts and module of a training run; what can fail early comes first.

    Raises:
        PotstillError: texts, tokenizers or models that cannot be used, or that do not fit each other.
    """
    objective, text = embedding_of(config), data_of(config, CorpusDataConfig)
    parts = sources_of(text)
    if not parts.train:
        raise ConfigError("data.train_files=null: training needs text, data.train_files=[a.txt,b.txt.gz]")
    rows = None if config.benchmark is None else scored_rows(config.benchmark)
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    teacher = _teacher(config)
    student = _student(config, teacher)
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
    components = _fit_widths(config, student, teacher, train)
    prepare_student(config.student, student.model)
    terms = _objective(config, student, teacher, components)
    own = [None if rows is None else pairs_of(config, rows, side, prompt, length) for side in (student, teacher)]
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
        pairs=own[0],
        teacher_pairs=own[1],
    )
    return EmbeddingTraining(module, data, student.vocabulary, student.settings, teacher.model.num_parameters())


def open_encoder(key: str, value: str, attention: str = "sdpa", pooling: str | None = None) -> tuple[Side, int]:
    """A sentence encoder of a folder or hub id, and the most tokens that it reads.

    Raises:
        PotstillError: there is none, or it cannot be used.
    """
    folder = Path(local_tokenizer(key, value))
    settings = sentence_settings(f"{key}={value}", folder, pooling)
    model, vocabulary = load_sentence_model(key, value, folder, settings, attention), vocabulary_of(key, value)
    known = [settings.max_length or vocabulary.max_length, backbone_of(model).max_length]
    limit = min(length for length in known if length)
    return Side(model, replace(settings, max_length=limit), vocabulary), limit


def _teacher(config: TrainConfig) -> Side:
    assert config.teacher.model is not None
    name, pooling = config.teacher.model, embedding_of(config).pooling
    side, _ = open_encoder("teacher.model", name, config.teacher.attention, pooling)
    if config.teacher.tokenizer not in (None, "own"):
        side.vocabulary = vocabulary_of("teacher.tokenizer", str(config.teacher.tokenizer))
    return side


def _student(config: TrainConfig, teacher: Side) -> Side:
    """The student; a linear layer that fits the widths is added later."""
    s, given = config.student, config.data.tokenizer
    vocabulary = teacher.vocabulary if given is None else vocabulary_of("data.tokenizer", given, saved=True)
    settings = replace(teacher.settings, dense=None, activation="Identity")
    if s.model:
        folder = Path(local_tokenizer("student.model", s.model))
        if given is None:
            vocabulary = vocabulary_of("student.model", s.model, saved=True)
        if (folder / MODULES).is_file():
            settings = sentence_settings(f"student.model={s.model}", folder)
        model = load_sentence_model("student.model", s.model, folder, settings, s.attention)
    elif s.config:
        tokens = {
            "vocab_size": vocabulary.size,
            "pad_token_id": vocabulary.pad_id,
            "bos_token_id": vocabulary.start_id,
            "eos_token_id": vocabulary.end_id,
        }
        model = model_from_config(s.config, tokens, AutoModel)
        if hasattr(model, "pooler"):
            keep_pooler(model, False)
        set_attention(model, s.attention)
    else:
        layers = list(s.layers) if s.layers is not None else default_layers(backbone_of(teacher.model).depth)
        model = sentence_student(teacher.model, layers, architecture=s.architecture, attention=s.attention)
        settings = teacher.settings
    if given is None and not s.model:  # keep the teacher's for the folder of the student
        vocabulary = vocabulary_of("teacher.model", str(config.teacher.model), saved=True)
    limit = backbone_of(model).max_length
    return Side(model, replace(settings, max_length=min(settings.max_length or limit, limit)), vocabulary)


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


def _fit_widths(config: TrainConfig, student: Side, teacher: Side, texts: Sentences) -> Tensor | None:
    """Give the student a linear layer if it needs one; returns what the teacher's vectors are multiplied with.

    Raises:
        PairError: widths that cannot be made equal.
        ConfigError: a smaller width that is none.
    """
    objective = embedding_of(config)
    ours, theirs, widths = student.encoder.width, teacher.encoder.width, objective.widths or []
    way = objective.projection
    if way is None:
        way = "teacher" if ours < theirs else "student" if ours > theirs or widths else None
    if way == "teacher" and ours > theirs:
        raise PairError(f"objective.projection=teacher: the student's vectors are {ours} wide, the teacher's {theirs}")
    full = ours if way == "teacher" else theirs
    if wrong := [width for width in widths if width >= full]:
        raise ConfigError(f"objective.widths={widths}: {wrong[0]} is not below the full width, {full}")
    if way is None:
        return None
    needed = bool(widths) or ours < theirs
    components = _components(config, teacher, texts) if needed else None
    if way == "teacher":
        return None if components is None else components[:full]
    turned = components is not None and bool(widths)
    dense = getattr(student.model, DENSE, None)
    if ours == theirs and dense is None:
        start = components if turned and components is not None else torch.eye(theirs)
    elif ours < theirs and not turned:
        assert components is not None
        start = components[:ours].T
    else:
        start = torch.eye(theirs, ours)
    if dense is None:
        add_dense(student.model, start)
    elif student.settings.activation != "Identity":
        raise PairError(
            "objective.projection=student: the student's own linear layer has an activation, so no other can follow; "
            "use objective.projection=teacher"
        )
    else:  # both in one
        if ours == theirs and turned and components is not None:
            start = components
        add_dense(student.model, start @ dense.weight, None if dense.bias is None else start @ dense.bias)
    student.settings = replace(student.settings, dense="2_Dense")
    return components if turned else None


def _components(config: TrainConfig, teacher: Side, texts: Sentences) -> Tensor:
    """The principal components of the teacher's vectors, not centred, as rows, the largest first, (width, width)."""
    chosen = np.random.default_rng(config.seed).permutation(len(texts))[:SAMPLED]
    ids, lengths = texts.read(np.sort(chosen), teacher=True)
    encoder = teacher.encoder
    log.info("principal components of the teacher's vectors of %d texts", len(chosen))
    with frozen(teacher.model, config.trainer.precision, place_of(config).device):
        vectors = encoder.encode(np.split(ids, starts_of(lengths)[1:]), teacher.vocabulary.pad_id)
    return principal_components(vectors.clone())


def principal_components(vectors_ND: Tensor) -> Tensor:
    """Orthonormal rows by falling mean square of the vectors along them, float32, (width, width).

    The vectors are not centred, so inner products with the first components are as close as possible.

    Args:
        vectors_ND: (texts, width).
    """
    double = vectors_ND.double()
    _, found = torch.linalg.eigh(double.T @ double)
    rows = found.flip(1).T
    signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()  # eigenvectors have none of their own
    return (rows * signs).float().contiguous()


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


def scored_rows(benchmark: Any, limits: tuple[int | None, str | None] = (None, None)) -> ScoredRows:
    """The pairs of a benchmark with their scores.

    Raises:
        DataError: rows of single texts, or without scores.
    """
    assert isinstance(benchmark, SimilarityConfig)
    rows = evaluated_parts(benchmark, *limits)[MAIN].read()
    if len(rows.texts) != 2:
        raise DataError(f"{rows.key}: '{rows.name}' has one text in a row; set benchmark.text_columns=[a,b]")
    scores = encode_labels(rows, task_of(benchmark))
    if scores is None:
        raise DataError(f"{rows.key}: '{rows.name}' has no scores; set benchmark.label_column")
    return rows, scores


def pairs_of(
    config: TrainConfig | EvaluateConfig, found: ScoredRows, side: Side, prompt: str, length: int
) -> ScoredPairs:
    """Pairs of `scored_rows` in the tokens of a model, of at most `length` tokens each."""
    rows, scores = found
    return scored_pairs(
        rows,
        scores,
        side.vocabulary,
        side.settings,
        prompt=prompt,
        max_length=length,
        metrics=tuple(config.task_benchmark.metrics),
        batch_size=config.data.eval_batch_size,
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
