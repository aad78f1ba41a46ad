"""Teacher, student, objective, optimizer and schedule from configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, get_scheduler

from potstill.config import TrainConfig
from potstill.config.instantiate import make
from potstill.config.models import StudentConfig
from potstill.config.objectives.base import (
    DivergingConfig,
    LossConfig,
    SoftTargetsConfig,
    TaughtConfig,
    exchange_of,
    matches_of,
)
from potstill.config.objectives.interchange import InterchangeConfig, SwapConfig
from potstill.config.objectives.language import KdConfig
from potstill.config.objectives.task import TaskKdConfig
from potstill.config.running import ScheduleConfig
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.tasks.labels import TOKENS, Task
from potstill.errors import ConfigError, DataError
from potstill.interchange.mappings import read_mappings
from potstill.interchange.plans import PlanSettings
from potstill.models.backbone import Backbone, backbone_of
from potstill.models.load import load_language_model
from potstill.models.preparing import MIXED, freeze, halve_products, parameter_groups, set_checkpointing, set_dropout
from potstill.models.specs import default_layers
from potstill.models.students import check_tokens, student_from_config, student_from_layers
from potstill.objectives.interchange import Interchange
from potstill.objectives.language import LanguageObjective
from potstill.objectives.matches import Matches
from potstill.objectives.matching import read_matches
from potstill.objectives.own import EXAMPLES, own_loss, own_temperatures
from potstill.objectives.schedules import WeightSchedule
from potstill.objectives.soft_targets import SoftTargets, TeacherMean
from potstill.objectives.task import TaskObjective
from potstill.objectives.terms import HARD, LABEL
from potstill.runtime.dotted import is_path
from potstill.training.student_module import Optimization


def build_models(
    config: TrainConfig, vocabulary: Vocabulary, own: Vocabulary | None = None
) -> tuple[PreTrainedModel | None, PreTrainedModel]:
    """Teacher, if one is named, and student.

    Args:
        config: of a training run.
        vocabulary: of the student's tokenizer.
        own: of the teacher's, where it is another one.
    """
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    teacher = None
    if config.teacher.model:
        teacher = load_language_model(
            "teacher.model", config.teacher.model, need_head=config.objective.taught, attention=config.teacher.attention
        )
    student = _build_student(config, teacher, vocabulary)
    if teacher is not None:
        check_vocabulary(own or vocabulary, "teacher.model", teacher)
    check_vocabulary(vocabulary, "student", student)
    if teacher is not None and own is None:
        check_tokens(teacher, student)
    prepare_student(config.student, student)
    return teacher, student


def check_vocabulary(vocabulary: Vocabulary, key: str, model: PreTrainedModel) -> None:
    """A model has to know every token.

    Raises:
        DataError: the tokenizer has more than the model.
    """
    if vocabulary.size > model.config.vocab_size:
        raise DataError(
            f"data.tokenizer={vocabulary.path}: has {vocabulary.size} tokens, {key} knows "
            f"{model.config.vocab_size}; use the tokenizer that the model was trained with"
        )


def prepare_student(settings: StudentConfig, student: PreTrainedModel) -> None:
    """Freeze what stays as it is; set the dropout, and what the backward pass makes again."""
    freeze(student, positions=settings.freeze_positions, token_types=settings.freeze_token_types)
    if settings.dropout is not None:
        set_dropout(student, settings.dropout)
    if settings.checkpointing is not None:
        set_checkpointing(student, settings.checkpointing)


def suit_hardware(config: TrainConfig, teachers: Sequence[PreTrainedModel | None], student: PreTrainedModel) -> None:
    """Half precision for the weights of frozen teachers, where they compute in it; compiled blocks."""
    frozen = [teacher for teacher in teachers if teacher is not None]
    if (dtype := MIXED.get(config.trainer.precision)) is not None:
        for teacher in frozen:
            halve_products(teacher, dtype)
    if config.compile:
        for model in (*frozen, student):
            compile_blocks(model)


def _build_student(config: TrainConfig, teacher: PreTrainedModel | None, vocabulary: Vocabulary) -> PreTrainedModel:
    s = config.student
    if s.model:
        return load_language_model("student.model", s.model, need_head=False, attention=s.attention)
    if s.config:
        return student_from_config(
            s.config,
            vocab_size=vocabulary.size,
            pad_token_id=vocabulary.pad_id,
            bos_token_id=vocabulary.start_id,
            eos_token_id=vocabulary.end_id,
            attention=s.attention,
        )
    assert teacher is not None  # checked by validation
    layers = list(s.layers) if s.layers is not None else default_layers(backbone_of(teacher).depth)
    return student_from_layers(
        teacher, layers, architecture=s.architecture, vocab_transform=s.vocab_transform, attention=s.attention
    )


def build_objective(
    settings: LossConfig, student: Backbone, teacher: Backbone | None, *, seed: int
) -> LanguageObjective:
    """The weighted terms for a masked or a causal language model; `seed` is of projections.

    Raises:
        ConfigError: a term of the other kind of model has a weight, no term has one, or the models lack what the
            interchange mapping or a match names.
    """
    kind = student.kind
    interchange = build_interchange(exchange_of(settings), teacher, student)
    matches = build_matches(settings, [teacher] if teacher is not None else [], student, seed)
    weights, schedules = term_weights(settings, HARD[kind], matches)
    objective = LanguageObjective(kind, weights, interchange=interchange, schedules=schedules, matches=matches)
    if isinstance(settings, DivergingConfig):
        objective = replace(
            objective, temperature=settings.temperature, divergence=settings.divergence, beta=settings.beta
        )
    return replace(objective, positions=settings.positions) if isinstance(settings, KdConfig) else objective


def build_task_objective(
    config: TrainConfig, task: Task, student: Backbone, teachers: Sequence[Backbone]
) -> TaskObjective:
    """The weighted terms for a task model, from the whole training configuration.

    Raises:
        ConfigError: as `build_objective`.
    """
    settings = config.losses
    interchange = build_interchange(exchange_of(settings), teachers[0] if teachers else None, student)
    matches = build_matches(settings, teachers, student, config.seed)
    mean = TeacherMean(tuple(config.teacher.weights or ()), config.teacher.average)
    every_token = task.kind == TOKENS and isinstance(settings, TaskKdConfig) and settings.tokens == "all"
    objective = soft_objective(settings, task.kind, matches)
    return replace(objective, interchange=interchange, mean=mean, every_token=every_token)


def soft_objective(settings: LossConfig, kind: str, matches: Matches | None) -> TaskObjective:
    """The weighted terms of a task on the base run.

    Raises:
        ConfigError: as `term_weights`.
    """
    weights, schedules = term_weights(settings, LABEL, matches)
    objective = TaskObjective(kind, weights, schedules=schedules, matches=matches)
    if not isinstance(settings, SoftTargetsConfig):
        return objective
    loss, temperatures = settings.soft_target, settings.temperature_schedule
    logits_NC = torch.eye(EXAMPLES, 3)
    soft = SoftTargets(
        own_loss("objective.soft_target", loss, logits_NC, logits_NC, 2.0) if is_path(loss) else loss,
        settings.beta,
        own_temperatures("objective.temperature_schedule", temperatures) if is_path(temperatures) else temperatures,
        settings.temperature_strength,
        settings.temperature_gamma,
        settings.probability_shift,
    )
    return replace(objective, temperature=settings.temperature, soft=soft)


def build_matches(settings: LossConfig, teachers: Sequence[Backbone], student: Backbone, seed: int) -> Matches | None:
    """The intermediate matches of student and teachers; None without any.

    Raises:
        ConfigError: a match that does not fit them.
    """
    given = matches_of(settings)
    if given is None or not teachers:
        return None
    read = read_matches(given, [teacher.spec for teacher in teachers], student.spec)
    return Matches(read, teachers, student, seed=seed) if read else None


def term_weights(
    settings: LossConfig, hard: str, matches: Matches | None
) -> tuple[dict[str, float], dict[str, WeightSchedule]]:
    """The weight of each term, the highest where it changes, and how it changes.

    Args:
        settings: the keys of `objective`.
        hard: the term on the data's own labels that suits the student.
        matches: whose weights are their own.

    Raises:
        ConfigError: another student's hard term has a weight, or no term has one.
    """
    schedules: dict[str, WeightSchedule] = {}
    weights = {name: term.weight for name, term in settings.terms.items()}
    hard_weight = settings.hard_weight if isinstance(settings, TaughtConfig) else 0.0
    for name in weights.keys() & {*HARD.values(), LABEL}:
        if weights[name] is None:
            weights[name] = hard_weight if name == hard else 0.0
        if name != hard and weights[name]:
            raise ConfigError(
                f"objective.terms.{name}.weight={weights[name]}: this student learns from {hard}; use that term"
            )
    for name, term in settings.terms.items():
        if term.schedule != "constant":
            start = weights[name] if term.start is None else term.start
            schedules[name] = WeightSchedule(
                term.schedule, float(start or 0.0), float(term.end or 0.0), term.steps, term.schedule_args
            )
            weights[name] = max(schedules[name].start, schedules[name].last)
    if matches is not None:
        weights |= matches.weights
        schedules |= matches.schedules
    if not any(weights.values()):
        raise ConfigError("objective.terms: all weights are 0; give one a weight above 0")
    for when, moved in (
        ("first", {name: own(0) for name, own in schedules.items()}),
        ("last", {name: own.last for name, own in schedules.items()}),
    ):
        if not any({**weights, **moved}.values()):
            raise ConfigError(
                f"objective.terms: all weights are 0 at the {when} step; give one without a schedule a weight above 0"
            )
    return {name: float(weight or 0.0) for name, weight in weights.items()}, schedules


def build_interchange(
    settings: SwapConfig, teacher: Backbone | None, student: Backbone, key: str = "objective.interchange"
) -> Interchange | None:
    """The intervention on both models; None without one.

    Raises:
        ConfigError: a mapping that does not fit one of them.
    """
    if settings.mapping is None or teacher is None:
        return None
    mappings = read_mappings(settings.mapping, teacher, student, key=f"{key}.mapping")
    if isinstance(settings, InterchangeConfig):
        return Interchange(mappings, settings.read_site, settings.crossway, settings.data_augment)
    return Interchange(mappings, settings.read_site)


def build_plan(settings: SwapConfig) -> PlanSettings | None:
    """At which positions, and from which source; None where nothing is swapped.

    A benchmark says nothing of the source: evaluation always has it in the batch.
    """
    if settings.mapping is None:
        return None
    plan = PlanSettings(settings.proportion, settings.max_tokens, settings.positions)
    if isinstance(settings, InterchangeConfig):
        return replace(plan, pairing=settings.pairing, crossway=settings.crossway)
    return plan


def build_optimization(config: TrainConfig, student: nn.Module) -> Optimization:
    """Optimizer, schedule, clipping and measurements of a run.

    Raises:
        ConfigError: invalid arguments of the optimizer or of the schedule, before data is read.
    """
    objective = config.objective
    build_schedule(config.schedule, build_optimizer(config.optimizer, student), steps=1)
    return Optimization(
        optimizer=lambda model: build_optimizer(config.optimizer, model),
        schedule=lambda optimizer, steps: build_schedule(config.schedule, optimizer, steps),
        clip=config.trainer.gradient_clip_val,
        shares_every=objective.gradient_shares_every if isinstance(objective, LossConfig) else None,
    )


def build_optimizer(settings: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the model's trainable parameters; biases and norms are not decayed.

    Raises:
        ConfigError: an unknown optimizer, or an argument that it does not take.
    """
    settings = dict(settings)
    layer_decay = settings.pop("layer_decay", None)
    if layer_decay is not None and settings.get("lr") is None:
        raise ConfigError(f"optimizer.layer_decay={layer_decay}: needs optimizer.lr, the rate of the head; give both")
    rate = {} if layer_decay is None else {"lr": settings["lr"], "layer_decay": layer_decay}
    groups = parameter_groups(model, settings.get("weight_decay") or 0.0, **rate)
    return make("optimizer", settings, groups, kind=torch.optim.Optimizer)


def build_schedule(
    settings: ScheduleConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `steps` optimizer steps.

    Raises:
        ConfigError: a name that transformers does not know.
    """
    warmup = settings.warmup_steps if settings.warmup_steps is not None else round(settings.warmup_share * steps)
    try:
        schedule = get_scheduler(settings.name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"schedule.name={settings.name}: linear, cosine, constant_with_warmup ({error})") from error
    if settings.end_share:
        schedule.lr_lambdas = [_ending_at(settings.end_share, own, warmup) for own in schedule.lr_lambdas]
    return schedule


def _ending_at(share: float, factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    """A schedule's factor of the learning rate, which falls to a share instead of 0 after the warm-up."""
    return lambda step: factor(step) if step < warmup else share + (1 - share) * factor(step)


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile each block in place; parameter names stay as they are."""
    for block in model.base_model.get_submodule(backbone_of(model).view.blocks).children():
        block.compile(dynamic=True)
