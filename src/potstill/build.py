"""The only place that turns configuration into objects."""

from __future__ import annotations

import inspect
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import PreTrainedModel, get_scheduler

from potstill.callbacks import AtomicCheckpointIO, LastCheckpoint, Throughput, progress_bar
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.composition import Parts, sources_of
from potstill.data.corpus.datamodule import BatchSettings, CorpusDataModule
from potstill.data.corpus.progress import counting
from potstill.data.corpus.sources import TextSource
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.tokenizers import Vocabulary, describe, train_wordpiece
from potstill.errors import ConfigError, DataError
from potstill.models.load import load_language_model
from potstill.models.specs import default_layers
from potstill.models.students import (
    check_tokens,
    freeze,
    parameter_groups,
    student_from_config,
    student_from_layers,
)
from potstill.models.trunk import trunk_of
from potstill.modules.distillation import LanguageDistillation
from potstill.objectives.language import HARD, LanguageObjective
from potstill.tracking import make_loggers

log = logging.getLogger(__name__)

LONGEST = 512  # tokens of a sequence where neither data.max_length nor a model says less


@dataclass
class Training:
    """The parts of a training run."""

    module: LanguageDistillation
    data: CorpusDataModule
    vocabulary: Vocabulary
    corpus: Corpus
    teacher_parameters: int | None


def build_training(config: DictConfig) -> Training:
    """Tokenizer, models, corpus and module of a training run; what can fail early comes first.

    Raises:
        PotstillError: text, tokenizer or models that cannot be used, or that do not fit each other.
    """
    parts = sources_of(config.data)
    if not parts.train:
        raise ConfigError("data.train_files=null: training needs text, data.train_files=[a.txt,b.txt.gz]")
    vocabulary = build_vocabulary(config.data, parts, [config.teacher.model, config.student.model])
    teacher, student = build_models(config, vocabulary)
    objective = build_objective(config.objective, trunk_of(student).kind)
    # Made once for nothing: a fault in its arguments should not wait for the corpus.
    build_schedule(config.schedule, build_optimizer(config.optimizer, student), steps=1)
    if not objective.needs_teacher:
        teacher = None  # it only gave its layers
    length = sequence_length(config.data, vocabulary, [m for m in (teacher, student) if m is not None])
    train, evaluation = build_corpora(config.data, parts, vocabulary, length)
    assert train is not None
    data = CorpusDataModule(train, evaluation, vocabulary, objective.kind, batch_settings(config))
    if config.compile:
        for model in (teacher, student):
            if model is not None:
                compile_blocks(model)
    module = LanguageDistillation(
        student,
        teacher,
        objective,
        optimizer=lambda model: build_optimizer(config.optimizer, model),
        schedule=lambda optimizer, steps: build_schedule(config.schedule, optimizer, steps),
        clip=config.trainer.gradient_clip_val,
    )
    return Training(
        module, data, vocabulary, train, teacher.num_parameters() if teacher is not None else None
    )


def build_vocabulary(data: DictConfig, parts: Parts, models: list[str | None]) -> Vocabulary:
    """The tokenizer: `data.tokenizer`, else that of the first model given, else one trained on the corpus."""
    for key, value in [("data.tokenizer", data.tokenizer), *(("model", model) for model in models)]:
        if value is not None:
            return describe(local_tokenizer(key, value))
    cache = Path(data.cache).expanduser()
    with counting(f"training a tokenizer of {data.vocabulary_size} on {parts.train[0].name}"):
        return describe(train_wordpiece(parts.train[0], data.vocabulary_size, cache))


@dataclass
class Evaluation:
    """A single model, what it is judged on, and the longest sequence in tokens."""

    module: LanguageDistillation
    data: CorpusDataModule
    length: int


def build_evaluation(config: DictConfig, model: str) -> Evaluation:
    """A language model and its evaluation data, binarized with its own tokenizer.

    Raises:
        PotstillError: a model or text that cannot be used.
    """
    parts = sources_of(config.data, eval_file=config.benchmark.eval_file)
    vocabulary = build_vocabulary(config.data, parts, [model])
    language_model = load_language_model("model", model, need_head=True)
    kind = trunk_of(language_model).kind
    length = sequence_length(config.data, vocabulary, [language_model])
    corpus = _corpus(config.data, parts.eval or parts.train, vocabulary, length)
    data = CorpusDataModule(None, corpus, vocabulary, kind, batch_settings(config))
    if config.compile:
        compile_blocks(language_model)
    objective = LanguageObjective(kind, {HARD[kind]: 1.0})
    return Evaluation(LanguageDistillation(language_model, None, objective), data, length)


def local_tokenizer(key: str, value: str) -> str:
    """A folder with the tokenizer of a folder or hub id.

    Raises:
        DataError: there is none, or no network for a hub id.
    """
    folder = Path(value).expanduser()
    if folder.is_dir():
        return str(folder)
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(value, allow_patterns=["*.json", "*.txt", "*.model"], etag_timeout=3)
    except Exception as fault:
        raise DataError(
            f"{key}={value}: no such folder, and the hub gives no tokenizer of that name "
            f"({type(fault).__name__}); pass a folder, data.tokenizer=<folder>"
        ) from fault


def build_models(
    config: DictConfig, vocabulary: Vocabulary
) -> tuple[PreTrainedModel | None, PreTrainedModel]:
    """Teacher, if one is named, and student."""
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    teacher = None
    if config.teacher.model:
        supervised = config.objective.name in ("mlm", "clm")
        teacher = load_language_model(
            "teacher.model",
            config.teacher.model,
            need_head=not supervised,
            attention=config.teacher.attention,
        )
    student = _build_student(config, teacher, vocabulary)
    for key, model in (("teacher.model", teacher), ("student", student)):
        if model is not None and vocabulary.size > model.config.vocab_size:
            raise DataError(
                f"data.tokenizer={vocabulary.path}: has {vocabulary.size} tokens, {key} knows "
                f"{model.config.vocab_size}; use the tokenizer that the model was trained with"
            )
    if teacher is not None:
        check_tokens(teacher, student)
    s = config.student
    freeze(student, positions=s.freeze_positions, token_types=s.freeze_token_types)
    return teacher, student


def _build_student(
    config: DictConfig, teacher: PreTrainedModel | None, vocabulary: Vocabulary
) -> PreTrainedModel:
    s = config.student
    if s.model:
        return load_language_model("student.model", s.model, need_head=False, attention=s.attention)
    if s.config:
        return student_from_config(
            OmegaConf.to_container(s.config, resolve=True),  # type: ignore[arg-type]
            vocab_size=vocabulary.size,
            pad_token_id=vocabulary.pad_id,
            bos_token_id=vocabulary.start_id,
            eos_token_id=vocabulary.end_id,
        )
    assert teacher is not None  # validation has seen to it
    layers = list(s.layers) if s.layers is not None else default_layers(trunk_of(teacher).depth)
    return student_from_layers(
        teacher, layers, architecture=s.architecture, vocab_transform=s.vocab_transform
    )


def build_objective(settings: DictConfig, kind: str) -> LanguageObjective:
    """The weighted terms for a masked or a causal language model.

    Raises:
        ConfigError: a term of the other kind of model has a weight, or no term has one.
    """
    weights = {name: term.weight for name, term in settings.terms.items()}
    for own_kind, name in HARD.items():
        if weights[name] is None:  # the recipe's weight, where the term applies
            weights[name] = 2.0 if own_kind == kind else 0.0
        if own_kind != kind and weights[name]:
            raise ConfigError(
                f"objective.terms.{name}.weight={weights[name]}: the student is a {kind} language model; "
                f"use {HARD[kind]}"
            )
    weights = {name: float(weight or 0.0) for name, weight in weights.items()}
    if not any(weights.values()):
        raise ConfigError("objective.terms: all weights are 0; give one a weight above 0")
    return LanguageObjective(kind, weights, settings.temperature, settings.positions)


def sequence_length(data: DictConfig, vocabulary: Vocabulary, models: list[PreTrainedModel]) -> int:
    """Tokens of the longest sequence: `data.max_length`, within what the models can read.

    Raises:
        ConfigError: `data.max_length` is more than a model can read.
    """
    limit = min(trunk_of(model).max_length for model in models)
    if data.max_length is not None and data.max_length > limit:
        raise ConfigError(f"data.max_length={data.max_length}: the models read at most {limit} tokens")
    return data.max_length or min(limit, vocabulary.max_length or limit, LONGEST)


def build_corpora(
    data: DictConfig, parts: Parts, vocabulary: Vocabulary, length: int
) -> tuple[Corpus | None, Corpus | None]:
    """Binarized training and evaluation corpora; a second run opens the stores of the first."""
    if not parts.held_out:
        return _corpus(data, parts.train, vocabulary, length), _corpus(data, parts.eval, vocabulary, length)
    train = _corpus(data, parts.train, vocabulary, length)
    try:
        return train, _corpus(data, parts.eval, vocabulary, length)
    except DataError as fault:
        log.warning("no evaluation: %s; give data.eval_files or a larger data.eval_share", fault)
        return train, None


def _corpus(
    data: DictConfig, sources: list[TextSource], vocabulary: Vocabulary, length: int
) -> Corpus | None:
    stores = []
    for source in sources:
        with counting(f"binarizing {source.name}") as progress:
            store = binarize(
                source,
                vocabulary,
                cache=Path(data.cache).expanduser(),
                max_length=length,
                min_length=data.min_length,
                max_unknown=data.max_unknown,
                num_proc=data.num_proc or os.cpu_count() or 1,
                progress=progress,
            )
        stores.append(store)
        counts = ", ".join(
            f"{count:,} {name.replace('_', ' ')}" for name, count in Corpus([store]).describe().items()
        )
        log.info("%s: %s", source.name, counts)
    return Corpus(stores) if stores else None


def batch_settings(config: DictConfig) -> BatchSettings:
    """How sequences become batches and masks."""
    data = config.data
    return BatchSettings(
        seed=config.seed,
        batch_size=data.batch_size,
        accumulate=config.trainer.accumulate_grad_batches,
        max_tokens=data.max_tokens,
        eval_batch_size=data.eval_batch_size,
        group_size=data.group_size,
        length_bin=data.length_bin,
        mlm_share=data.mlm_share,
        mlm_smoothing=data.mlm_smoothing,
        mlm_replace=tuple(data.mlm_replace),
        num_workers=data.num_workers,
    )


def build_optimizer(settings: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the model's trainable parameters; biases and norms are not decayed.

    Raises:
        ConfigError: an unknown optimizer, or an argument that it does not take.
    """
    groups = parameter_groups(model, settings.get("weight_decay") or 0.0)
    try:
        return instantiate(settings, groups, _convert_="all")
    except Exception as fault:
        raise ConfigError(f"optimizer._target_={settings.get('_target_')}: {_cause(fault)}") from fault


def build_schedule(
    settings: DictConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `steps` optimizer steps.

    Raises:
        ConfigError: a name that transformers does not know.
    """
    warmup = (
        settings.warmup_steps if settings.warmup_steps is not None else round(settings.warmup_share * steps)
    )
    try:
        return get_scheduler(settings.name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    except (ValueError, TypeError) as fault:
        raise ConfigError(
            f"schedule.name={settings.name}: linear, cosine, constant_with_warmup ({fault})"
        ) from fault


def build_loggers(config: DictConfig, folder: Path) -> list[Logger]:
    """metrics.csv, and the logger that is asked for; close them with `tracking.finish`."""
    logger = config.logger
    return make_loggers(
        logger.name,
        folder,
        project=logger.project,
        run=logger.run,
        group=logger.group,
        tags=[*logger.tags, config.objective.name, config.data.name],
        mode=logger.mode,
        config=OmegaConf.to_container(config, resolve=True),
    )


def build_callbacks(
    config: DictConfig, folder: Path, with_progress: bool
) -> tuple[list[Callback], Throughput]:
    """The run's own callbacks and the configured ones."""
    throughput = Throughput()
    callbacks: list[Callback] = [
        throughput,
        LastCheckpoint(folder / "checkpoints", config.checkpoint.every_n_steps),
    ]
    if with_progress:
        callbacks.append(progress_bar())
    for name, settings in config.callbacks.items():
        try:
            callbacks.append(instantiate(settings, _convert_="all"))
        except Exception as fault:
            raise ConfigError(f"callbacks.{name}: {_cause(fault)}") from fault
    return callbacks, throughput


def build_trainer(
    settings: DictConfig, folder: Path, *, callbacks: list[Callback], loggers: Any, validate: bool = True
) -> lightning.Trainer:
    """Lightning's Trainer. Accumulation and clipping are the module's own (see `LanguageDistillation`).

    Raises:
        ConfigError: an unknown argument in trainer.extra, or devices that this machine lacks.
    """
    known = inspect.signature(lightning.Trainer.__init__).parameters
    if unknown := [key for key in settings.extra if key not in known]:
        raise ConfigError(f"trainer.extra.{unknown[0]}: not an argument of lightning.Trainer")
    limit = settings.limit_val_batches
    try:
        return lightning.Trainer(
            default_root_dir=folder,
            max_steps=settings.max_steps,
            max_epochs=settings.max_epochs if settings.max_epochs is not None else -1,
            val_check_interval=settings.val_check_interval or 1.0,
            check_val_every_n_epoch=None if settings.val_check_interval else 1,
            limit_val_batches=0 if not validate else (limit if limit is not None else 1.0),
            num_sanity_val_steps=0,
            log_every_n_steps=settings.log_every_n_steps,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=settings.precision,
            enable_progress_bar=settings.enable_progress_bar,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO()],
            callbacks=callbacks,
            logger=loggers,
            **settings.extra,
        )
    except (
        ValueError,
        RuntimeError,
        lightning.fabric.utilities.exceptions.MisconfigurationException,
    ) as fault:
        raise ConfigError(f"trainer: {fault}") from fault


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile each block in place; parameter names stay as they are."""
    for block in model.base_model.get_submodule(trunk_of(model).view.blocks).children():
        block.compile(dynamic=True)


def _cause(fault: BaseException) -> str:
    """The innermost message, without Hydra's preamble."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    return " ".join(str(fault).split())
