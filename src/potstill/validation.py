"""Every fault of a composed configuration that can be seen without torch, together in one message.

What needs text or weights read (an unusable file, a damaged checkpoint) is found by the part that reads it; what is
checked here are ranges, combinations, files, and whether the models fit each other, from their config.json.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from potstill.config import EvaluateConfig, TrainConfig
from potstill.data.corpus.composition import sources_of
from potstill.data.tasks.composition import is_task, judged_parts, task_of, training_parts
from potstill.data.tasks.labels import REGRESSION
from potstill.errors import ConfigError, PotstillError
from potstill.interchange.mappings import read_mappings
from potstill.models.head_labels import head_fault, label_order, read_labels
from potstill.models.specs import (
    ModelSpec,
    check_layers,
    check_pair,
    default_layers,
    read_spec,
    spec_from_settings,
)

LOGGERS = ("wandb", "tensorboard", "csv")
# What transformers.get_scheduler makes without further arguments.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
CHECKPOINTING = ("selective", "full")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")
SUPERVISED = ("mlm", "clm")
CAUSAL = ("causal_ce", "causal_cos")
TASKS = ("finetune",)  # objectives of task models that learn from labels alone; they train on a benchmark
EITHER = ("diito",)  # objectives of task models where a benchmark is given, else of language models


def validate_train(config: DictConfig) -> None:
    """Raise one ConfigError that holds every fault of a training configuration."""
    _check_known(config, TrainConfig)
    faults = [
        *_objective_faults(config.objective),
        *_benchmark_faults(config),
        *_data_faults(config.data, corpus=not _trains_task(config)),
        *_trainer_faults(config.trainer),
        *_optimizer_faults(config),
        *_model_faults(config),
        *_checkpoint_faults(config),
        *_logger_faults(config.logger),
        *_launch_faults(config),
        *_output_faults(),
    ]
    _raise(faults)


def _trains_task(config: DictConfig) -> bool:
    name = config.objective.name
    return name in TASKS or (name in EITHER and config.benchmark is not None)


def validate_evaluate(config: DictConfig) -> None:
    """Raise one ConfigError that holds every fault of an evaluation configuration."""
    _check_known(config, EvaluateConfig)
    faults = _trainer_faults(config.trainer)
    if config.trainer.devices not in (1, "1"):
        faults.append(
            f"trainer.devices={config.trainer.devices}: evaluation runs on one device; trainer.devices=1"
        )
    models = models_of(config)
    if not models:
        faults.append("model=: name at least one folder or hub id, model=<folder> or model=[a,b]")
    if config.names is not None and len(config.names) != len(models):
        faults.append(f"names={list(config.names)}: {len(models)} models need as many names")
    tasked = is_task(config.benchmark)
    faults += _data_faults(
        config.data, evaluating=True, eval_file=config.benchmark.eval_file, corpus=not tasked
    )
    if tasked:
        faults += _judged_faults(config, models)
    kind = {"mlm": "masked", "clm": "causal"}.get(config.benchmark.name)
    specs = []
    for model in models:
        spec = _spec("model", model, faults)
        faults += _length_faults(config.data, {f"model={model}": spec})
        if spec and kind and spec.kind != kind:
            right = "clm" if spec.kind == "causal" else "mlm"
            faults.append(
                f"benchmark={config.benchmark.name}: {model} is a {spec.kind} language model; use {right}"
            )
        specs.append(spec)
    if config.benchmark.interchange.mapping is not None:
        faults += _comparison_faults(config, specs)
    faults += _output_faults()
    _raise(faults)


def _comparison_faults(config: DictConfig, specs: list[ModelSpec | None]) -> list[str]:
    """Of a benchmark that compares models with the first one."""
    exchange, key = config.benchmark.interchange, "benchmark.interchange"
    faults = _interchange_faults(exchange, key)
    if config.benchmark.positions not in ("all", "masked"):
        faults.append(f"benchmark.positions={config.benchmark.positions}: all or masked")
    if len(specs) < 2:
        faults.append(
            f"model={','.join(models_of(config))}: benchmark={config.benchmark.name} compares students with a teacher; "
            "model=[<teacher>,<student>]"
        )
    if is_task(config.benchmark) and "masked" in (exchange.positions, config.benchmark.positions):
        faults.append(f"{key}.positions=masked: a task model masks nothing; use consecutive or free")
    if config.benchmark.task == REGRESSION:
        faults.append(
            f"{key}: two scores are never the same; agreement is of classifiers and language models"
        )
    for spec in specs[1:]:
        if specs[0] and spec:
            faults += check_pair(specs[0], spec) or _mapping_faults(exchange, specs[0], spec, key)
            if spec.kind == "causal" and config.benchmark.positions == "masked":
                faults.append("benchmark.positions=masked: a causal language model masks nothing; use all")
    return faults


def models_of(config: DictConfig) -> list[str]:
    """`model=` as a list of folders or hub ids; empty where none is given."""
    if OmegaConf.is_missing(config, "model") or config.model is None:
        return []
    return [str(m) for m in config.model] if OmegaConf.is_list(config.model) else [str(config.model)]


def _raise(faults: list[str]) -> None:
    if faults:
        raise ConfigError("; ".join(dict.fromkeys(faults)))


def _check_known(config: DictConfig, schema: type) -> None:
    OmegaConf.to_container(config, resolve=True)  # an interpolation that leads nowhere is a fault of now
    # `+key=value` opens the struct; whatever is not in the schema would be ignored, so it is refused.
    for key, value in _unknown(config, OmegaConf.structured(schema)):
        raise ConfigError(f"{key}={value}: no such key; `--cfg job` shows all keys")


def _unknown(config: DictConfig, schema: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    known = set(schema.keys())  # `in` is false of a key without a default
    for key in map(str, config):
        if key not in known:
            yield f"{prefix}{key}", OmegaConf.select(config, key)
        # A free dictionary (`optimizer`, `student.config`) takes any key; a section takes its own.
        elif is_dataclass(OmegaConf.get_type(schema, key)):
            yield from _unknown(config[key], schema[key], f"{prefix}{key}.")


def _objective_faults(objective: DictConfig) -> list[str]:
    faults = []
    if not (objective.temperature > 0 and math.isfinite(objective.temperature)):
        faults.append(f"objective.temperature={objective.temperature}: must be above 0")
    if objective.positions not in ("all", "masked"):
        faults.append(f"objective.positions={objective.positions}: all or masked")
    weights = {name: term.weight for name, term in objective.terms.items()}
    for name, weight in weights.items():
        if weight is not None and not (weight >= 0 and math.isfinite(weight)):
            faults.append(f"objective.terms.{name}.weight={weight}: must be 0 or more")
    if objective.name in (*SUPERVISED, *TASKS) and objective.interchange.mapping is not None:
        faults.append(
            f"objective.interchange.mapping={objective.interchange.mapping}: objective={objective.name} has no teacher "
            "to compare with; use objective=diito or kd"
        )
    if objective.name in TASKS:
        return faults + [
            f"objective.terms.{name}.weight={weight}: objective={objective.name} learns from the labels alone"
            for name, weight in weights.items()
            if weight and name != "label"
        ]
    if all(weight == 0 for weight in weights.values()):
        faults.append(
            f"objective.terms: all weights are 0; give one of {', '.join(weights)} a weight above 0"
        )
    swapping = [f"{name}.weight={weights[name]}" for name in CAUSAL if weights[name]]
    if objective.interchange.mapping is not None:
        faults += _interchange_faults(objective.interchange, "objective.interchange")
    elif swapping:
        faults.append(
            f"objective.terms.{swapping[0]}: swaps states between inputs, and objective.interchange.mapping=null names "
            "none; use objective=diito, or name a mapping"
        )
    if objective.name in SUPERVISED:
        faults += [
            f"objective.terms.{name}.weight={weight}: objective={objective.name} has no teacher; use objective=kd"
            for name, weight in weights.items()
            if weight and name != objective.name
        ]
    return faults


def _interchange_faults(interchange: DictConfig, key: str) -> list[str]:
    faults = []
    if not 0 < interchange.proportion <= 1:
        faults.append(f"{key}.proportion={interchange.proportion}: a share, above 0 and at most 1")
    if interchange.max_tokens is not None and interchange.max_tokens < 1:
        faults.append(f"{key}.max_tokens={interchange.max_tokens}: 1 or more, or null for no bound")
    for name, options in (
        ("positions", ("consecutive", "free", "masked")),
        ("pairing", ("in_batch", "dataset")),
        ("read_site", ("block_output", "block_input")),
    ):
        if name in interchange and interchange[name] not in options:
            faults.append(f"{key}.{name}={interchange[name]}: one of {', '.join(options)}")
    return faults


def _mapping_faults(interchange: DictConfig, teacher: ModelSpec, student: ModelSpec, key: str) -> list[str]:
    """Faults of a mapping, and of positions that only a masked language model has."""
    faults = []
    try:
        mapping = OmegaConf.to_container(OmegaConf.create({"of": interchange.mapping}), resolve=True)
        read_mappings(mapping["of"], teacher, student, key=f"{key}.mapping")  # type: ignore[index,call-overload]
    except PotstillError as fault:
        faults.append(str(fault))
    if student.kind == "causal" and interchange.positions == "masked":
        faults.append(
            f"{key}.positions=masked: a causal language model masks nothing; use consecutive or free"
        )
    return faults


def _benchmark_faults(config: DictConfig) -> list[str]:
    """Of what a task model is trained on, and of an objective that has or lacks a benchmark."""
    name, benchmark = config.objective.name, config.benchmark
    if not _trains_task(config):
        if benchmark is None:
            return []
        given = benchmark.get("name") or "null"
        return [
            f"benchmark={given}: objective={name} trains on a corpus; use objective=finetune, or benchmark=null"
        ]
    if not is_task(benchmark):
        given = "null" if benchmark is None else benchmark.name
        return [
            f"benchmark={given}: objective={name} trains on a task; benchmark=sst2, or your own files by "
            "benchmark=text_classification benchmark.train_file=a.tsv benchmark.eval_file=b.tsv"
        ]
    try:
        task_of(benchmark)
        parts = training_parts(benchmark, config.data.max_examples)
        for source in (parts.train, *parts.eval.values()):
            source.check()
    except PotstillError as fault:
        return [str(fault)]
    return []


def _judged_faults(config: DictConfig, models: list[str]) -> list[str]:
    """Of what a task model is judged on, and of models without a head for it."""
    faults = []
    labels: tuple[str, ...] | None = None
    try:
        task = task_of(config.benchmark)
        labels = task.labels if task.labels or task.kind == REGRESSION else None
        for source in judged_parts(config.benchmark, config.data.max_examples).values():
            source.check()
    except PotstillError as fault:
        faults.append(str(fault))
    for model in models:
        try:
            found = read_labels("model", model)
        except PotstillError:
            continue  # told where its sizes are read
        if found is None or (labels is not None and label_order(found, labels) is None):
            faults.append(f"model={model}: {head_fault(found, labels)}")
    return faults


def _data_faults(
    data: DictConfig, *, evaluating: bool = False, eval_file: str | None = None, corpus: bool = True
) -> list[str]:
    faults = []
    for name, low in (
        ("batch_size", 1), ("eval_batch_size", 1), ("max_tokens", 1), ("group_size", 1), ("length_bin", 0),
        ("max_length", 8), ("min_length", 1), ("max_examples", 1), ("num_proc", 1), ("num_workers", 0),
        ("vocabulary_size", 100),
    ):  # fmt: skip
        value = data[name]
        if value is not None and value < low:
            faults.append(f"data.{name}={value}: must be {low} or more")
    for name in ("mlm_share", "max_unknown"):
        if not 0 < data[name] <= 1:
            faults.append(f"data.{name}={data[name]}: a share, above 0 and at most 1")
    if not 0 <= data.eval_share < 1:
        faults.append(f"data.eval_share={data.eval_share}: a share, from 0 to below 1")
    if data.mlm_smoothing < 0:
        faults.append(f"data.mlm_smoothing={data.mlm_smoothing}: must be 0 or more (0.7 in the recipe)")
    replace = list(data.mlm_replace)
    if len(replace) != 3 or min(replace) < 0 or abs(sum(replace) - 1) > 1e-6:
        faults.append(f"data.mlm_replace={replace}: three shares (mask, random, kept) that add up to 1")
    if data.unit not in ("line", "paragraph"):
        faults.append(f"data.unit={data.unit}: line or paragraph")
    if data.skip is not None:
        try:
            re.compile(data.skip)
        except re.error as fault:
            faults.append(f"data.skip={data.skip}: not a regular expression ({fault})")
    if faults:
        return faults
    faults += _writable("data.cache", Path(data.cache).expanduser())
    if not corpus:
        return faults
    try:
        parts = sources_of(data, eval_file=eval_file)
        wanted = [*parts.train, *parts.eval] if not evaluating else parts.eval or parts.train
        for source in wanted:
            source.check()
    except PotstillError as fault:
        faults.append(str(fault))
    return faults


def _trainer_faults(trainer: DictConfig) -> list[str]:
    faults = []
    if trainer.max_steps < -1:
        faults.append(f"trainer.max_steps={trainer.max_steps}: 0 or more, or -1 for no bound")
    if trainer.max_epochs is not None and trainer.max_epochs < 1:
        faults.append(f"trainer.max_epochs={trainer.max_epochs}: 1 or more, or null")
    if trainer.accumulate_grad_batches < 1:
        faults.append(f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: 1 or more")
    for name in ("val_check_interval", "limit_val_batches", "log_every_n_steps"):
        if trainer[name] is not None and trainer[name] < 1:
            faults.append(f"trainer.{name}={trainer[name]}: 1 or more")
    clip = trainer.gradient_clip_val
    if clip is not None and clip <= 0:
        faults.append(f"trainer.gradient_clip_val={clip}: above 0, or null for no clipping")
    if trainer.precision not in PRECISIONS:
        faults.append(f"trainer.precision={trainer.precision}: one of {', '.join(PRECISIONS)}")
    return faults


def _optimizer_faults(config: DictConfig) -> list[str]:
    faults = []
    optimizer, schedule = config.optimizer, config.schedule
    if not optimizer.get("_target_"):
        faults.append("optimizer._target_=null: name an optimizer, such as torch.optim.AdamW")
    for name, low in (("lr", 0.0), ("eps", 0.0), ("weight_decay", 0.0)):
        value = optimizer.get(name)
        if value is not None and not (isinstance(value, int | float) and value >= low):
            faults.append(f"optimizer.{name}={value}: a number, {low:g} or more")
    if schedule.name not in SCHEDULES:
        faults.append(f"schedule.name={schedule.name}: one of {', '.join(SCHEDULES)}")
    if not 0 <= schedule.warmup_share <= 1:
        faults.append(f"schedule.warmup_share={schedule.warmup_share}: a share, from 0 to 1")
    if schedule.warmup_steps is not None and schedule.warmup_steps < 0:
        faults.append(f"schedule.warmup_steps={schedule.warmup_steps}: 0 or more")
    if config.trainer.max_steps == -1 and config.trainer.max_epochs is None:
        faults.append("trainer.max_steps=-1 with trainer.max_epochs=null never ends; give one of them")
    every = config.checkpoint.every_n_steps
    if every is not None and every < 1:
        faults.append(f"checkpoint.every_n_steps={every}: 1 or more, or null for the end only")
    return faults


def _logger_faults(logger: DictConfig) -> list[str]:
    faults = []
    if logger.name not in LOGGERS:
        faults.append(f"logger.name={logger.name}: one of {', '.join(LOGGERS)}")
    if logger.name == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        faults.append("logger=tensorboard: not installed; pip install 'potstill[tensorboard]'")
    if logger.mode not in (None, "online", "offline", "disabled"):
        faults.append(f"logger.mode={logger.mode}: online, offline, disabled, or null")
    return faults


def _spec(key: str, value: str, faults: list[str]) -> ModelSpec | None:
    try:
        return read_spec(key, value)
    except PotstillError as fault:
        faults.append(str(fault))
        return None


def _model_faults(config: DictConfig) -> list[str]:
    faults: list[str] = []
    objective, student, name = config.objective, config.student, config.objective.name
    teacher = _spec("teacher.model", config.teacher.model, faults) if config.teacher.model else None
    learner = _learner(student, faults)
    if faults:
        return faults
    if student.model and (student.layers or student.config):
        both = "student.layers" if student.layers else "student.config"
        faults.append(
            f"student.model={student.model} with {both}={student[both.split('.')[1]]}: give one of them"
        )
    if student.dropout is not None and not 0 <= student.dropout < 1:
        faults.append(f"student.dropout={student.dropout}: a probability, from 0 to below 1, or null")
    if student.checkpointing not in (None, *CHECKPOINTING):
        faults.append(
            f"student.checkpointing={student.checkpointing}: one of {', '.join(CHECKPOINTING)}, or null"
        )
    elif student.checkpointing == "selective" and config.compile:
        faults.append(
            "student.checkpointing=selective: a compiled block hides its parts; use full, or compile=false"
        )
    needs_layers = not student.model and not student.config
    if teacher is None and name not in SUPERVISED + TASKS:
        faults.append(
            f"teacher.model=null: objective={name} needs a teacher, a folder or hub id; "
            "train one with `objective=mlm student=bert_small`"
        )
    elif teacher is None and needs_layers:
        faults.append(
            f"student.model=null: objective={name} trains student.model=<folder or hub id>, or a model from scratch "
            "(student=bert_small), or one made of the layers of teacher.model"
        )
    if name in TASKS and student.config and not student.model and not (teacher or config.data.tokenizer):
        faults.append(
            f"data.tokenizer=null: objective={name} of a model from scratch needs a tokenizer; "
            "data.tokenizer=<folder or hub id>"
        )
    if teacher and needs_layers and student.layers is not None:
        try:
            check_layers(list(student.layers), teacher.depth, "student.layers")
        except PotstillError as fault:
            faults.append(str(fault))
    if teacher and learner and student.model and name not in SUPERVISED + TASKS:
        faults += check_pair(teacher, learner)
    if teacher and objective.interchange.mapping is not None and not faults:
        layers = student.layers or default_layers(teacher.depth)
        pupil = learner or replace(teacher, depth=len(layers))
        faults += _mapping_faults(objective.interchange, teacher, pupil, "objective.interchange")
        if objective.interchange.pairing == "in_batch" and config.data.max_tokens is None:
            faults += _pair_faults(config.data.batch_size)
    needed = {
        "teacher.model": teacher if name not in SUPERVISED + TASKS or needs_layers else None,
        "the student": learner,
    }
    faults += _length_faults(config.data, needed)
    spec = learner or (teacher if needs_layers else None)
    if (
        objective.interchange.mapping is not None
        and _trains_task(config)
        and objective.interchange.positions == "masked"
    ):
        faults.append(
            "objective.interchange.positions=masked: a task model masks nothing; use consecutive or free"
        )
    if spec and not _trains_task(config):
        kind = spec.kind
        wrong = "clm" if kind == "masked" else "mlm"
        if objective.terms[wrong].weight:
            right = "mlm" if kind == "masked" else "clm"
            faults.append(
                f"objective.terms.{wrong}.weight={objective.terms[wrong].weight}: the student is a {kind} language "
                f"model; use {right}"
            )
        if kind == "causal" and objective.positions == "masked":
            faults.append("objective.positions=masked: a causal language model masks nothing; use all")
    return faults


def _pair_faults(batch_size: int) -> list[str]:
    if batch_size > 1:
        return []
    return [
        f"data.batch_size={batch_size}: with objective.interchange.pairing=in_batch a sequence's source is another "
        "one of its batch; use data.batch_size=2 or more, or pairing=dataset"
    ]


def _learner(student: DictConfig, faults: list[str]) -> ModelSpec | None:
    """The student's facts where it is a model of its own; None where it is made of the teacher's layers."""
    if student.model:
        return _spec("student.model", student.model, faults)
    if not student.config:
        return None
    try:
        settings = OmegaConf.to_container(student.config, resolve=True)
        return spec_from_settings(settings, "student.config")  # type: ignore[arg-type]
    except PotstillError as fault:
        faults.append(str(fault))
        return None


def _length_faults(data: DictConfig, models: dict[str, ModelSpec | None]) -> list[str]:
    return [
        f"data.max_length={data.max_length}: {key} reads at most {spec.max_length} tokens"
        for key, spec in models.items()
        if spec and data.max_length is not None and data.max_length > spec.max_length
    ]


def _checkpoint_faults(config: DictConfig) -> list[str]:
    path = config.ckpt_path
    if path is None or Path(path).expanduser().is_file():
        return []
    return [f"ckpt_path={path}: no such file; a run writes checkpoints/last.ckpt into its folder"]


def _launch_faults(config: DictConfig) -> list[str]:
    """A sweep in one process would be entered again by each process that DDP starts."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return []
    trainer = config.trainer
    if (
        trainer.strategy.startswith("ddp")
        and "spawn" not in trainer.strategy
        and trainer.devices not in (1, "1")
    ):
        return [
            f"trainer.strategy={trainer.strategy} with -m: each process would start the sweep again; use "
            "trainer.devices=1, trainer.strategy=ddp_spawn, or a launcher"
        ]
    return []


def _output_faults() -> list[str]:
    """Hydra has made the output folder, which works on a full disk too."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    return _writable("hydra.run.dir", Path(HydraConfig.get().runtime.output_dir))


def _writable(key: str, folder: Path) -> list[str]:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return [f"{key}={folder}: {existing} is a file; name a folder"]
    if not os.access(existing, os.W_OK):
        return [f"{key}={folder}: not writable; name a folder that is"]
    if shutil.disk_usage(existing).free < 1 << 20:
        return [f"{key}={folder}: the disk is full; name a folder with room"]
    return []
