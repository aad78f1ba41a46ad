"""Every fault of a composed configuration that can be seen without torch, together in one message.

What needs text or weights read (an unusable file, a damaged checkpoint) is found by the part that reads it; what is
checked here are ranges, combinations, files, and whether the models fit each other, from their config.json.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.defaults import settle, trains_task
from potstill.data.rationales.splits import RATIONALES, STEP_BY_STEP
from potstill.data.tasks.labels import CLASSIFICATION
from potstill.data.tasks.splits import EFFICIENCY, is_task, kind_of, settle_labels
from potstill.errors import ConfigError
from potstill.validation.adapted import adapted_faults, is_adapted
from potstill.validation.benchmarks import (
    benchmark_faults,
    comparison_faults,
    cost_faults,
    judged_faults,
    unread_faults,
)
from potstill.validation.cache import cache_faults
from potstill.validation.data import data_faults
from potstill.validation.exports import export_faults
from potstill.validation.folders import output_faults
from potstill.validation.generation import generation_faults
from potstill.validation.launch import launch_faults, strategy_faults
from potstill.validation.models import length_faults, model_faults, spec_of
from potstill.validation.objectives import objective_faults
from potstill.validation.ranges import range_faults, section_of
from potstill.validation.rationales import corpus_faults, judged_rationale_faults, rationale_faults
from potstill.validation.shared_tasks import shared_task_faults
from potstill.validation.sweeps import sweep_faults
from potstill.validation.training import (
    checkpoint_faults,
    logger_faults,
    optimizer_faults,
    trainer_faults,
)
from potstill.validation.unread import unread_keys


def validate_train(config: DictConfig, *, models: bool = True) -> None:
    """Raise one ConfigError that holds every fault of a training configuration.

    Args:
        config: the composed configuration.
        models: whether its models are there yet; those of a recipe's later stages are not.
    """
    _check_values(config, TrainConfig)
    settle(config)
    settle_labels(config.benchmark, config.data.skip, training=True)
    if config.stage != "train":
        _raise([*generation_faults(config), *output_faults()])
        return
    if config.tasks:
        own = [
            *shared_task_faults(config, models=models),
            *adapted_faults(config),
            *data_faults(config.data, corpus=False),
        ]
    elif config.objective.name == STEP_BY_STEP:
        own = rationale_faults(config)
    elif is_adapted(config):
        own = [*objective_faults(config.objective, CLASSIFICATION), *adapted_faults(config)]
    else:
        own = corpus_faults(config.data, f"objective={config.objective.name}") or [
            *objective_faults(config.objective, _task_kind(config)),
            *adapted_faults(config),
            *benchmark_faults(config),
            *data_faults(config.data, corpus=not trains_task(config)),
            *(model_faults(config) if models else []),
        ]
    faults = [
        *own,
        *trainer_faults(config.trainer),
        *optimizer_faults(config),
        *checkpoint_faults(config),
        *logger_faults(config.logger),
        *strategy_faults(config),
        *launch_faults(config),
        *cache_faults(config),
        *output_faults(),
    ]
    _raise(faults)


def _task_kind(config: DictConfig) -> str | None:
    """The kind of the task that a run trains for; None of a language model."""
    return kind_of(config.benchmark) if trains_task(config) and config.benchmark else None


def validate_evaluate(config: DictConfig) -> None:
    """Raise one ConfigError that holds every fault of an evaluation configuration."""
    _check_values(config, EvaluateConfig)
    settle_labels(config.benchmark, config.data.skip, training=False)
    if config.sweep.folder is not None:
        _raise([*sweep_faults(config, models_of(config)), *output_faults()])
        return
    faults = trainer_faults(config.trainer)
    if config.trainer.devices not in (1, "1"):
        faults.append(
            f"trainer.devices={config.trainer.devices}: evaluation runs on one device; trainer.devices=1"
        )
    models = models_of(config)
    if not models:
        faults.append("model=: name at least one folder or hub id, model=<folder> or model=[a,b]")
    if config.names is not None and len(config.names) != len(models):
        faults.append(f"names={list(config.names)}: {len(models)} models need as many names")
    faults += _name_faults([str(name) for name in config.names or ()])
    tasked, costs = is_task(config.benchmark), config.benchmark.task == EFFICIENCY
    if config.benchmark.task == RATIONALES:
        faults += data_faults(config.data, evaluating=True, corpus=False)
        _raise([*faults, *judged_rationale_faults(config, models), *output_faults()])
        return
    faults += corpus_faults(config.data, f"benchmark={config.benchmark.name}") or data_faults(
        config.data, evaluating=True, eval_file=config.benchmark.eval_file, corpus=not (tasked or costs)
    )
    faults += judged_faults(config, models) if tasked else unread_faults(config.benchmark)
    kind = {"mlm": "masked", "clm": "causal"}.get(config.benchmark.name)
    specs = []
    for model in models:
        spec = spec_of("model", model, faults)
        faults += length_faults(config.data, {f"model={model}": spec})
        if spec and kind and spec.kind != kind:
            right = "clm" if spec.kind == "causal" else "mlm"
            faults.append(
                f"benchmark={config.benchmark.name}: {model} is a {spec.kind} language model; use {right}"
            )
        specs.append(spec)
        if costs:
            faults += cost_faults(config.benchmark, model, spec)
    if config.benchmark.interchange.mapping is not None:
        faults += comparison_faults(config, models, specs)
    faults += export_faults(config)
    faults += output_faults()
    _raise(faults)


def models_of(config: DictConfig) -> list[str]:
    """`model=` as a list of folders or hub ids; empty where none is given."""
    if OmegaConf.is_missing(config, "model") or config.model is None:
        return []
    return [str(m) for m in config.model] if OmegaConf.is_list(config.model) else [str(config.model)]


STEM_BYTES = 160


def stem_of(name: str) -> str:
    """What the files of a judged model are called; `name` is that of its row.

    The stem stays in its folder and leaves room for a suffix in the 255 bytes of a file's name.
    """
    stem = re.sub(r"^\.+", "_", re.sub(r"[^\w.-]", "_", name)) or "_"
    if len(stem.encode()) > STEM_BYTES:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        stem = f"{stem.encode()[: STEM_BYTES - 9].decode(errors='ignore')}-{digest}"
    return stem


def _name_faults(names: list[str]) -> list[str]:
    """Of two models whose figures or files would take each other's place."""
    first: dict[str, str] = {}
    for name in names:
        if (stem := stem_of(name)) in first:
            same = (
                name if name == first[stem] else f"{first[stem]} and {name}, which are both {stem} in files"
            )
            return [f"names=[{', '.join(names)}]: two models are called {same}; give each a name of its own"]
        first[stem] = name
    return []


def _raise(faults: list[str]) -> None:
    if faults:
        raise ConfigError("; ".join(dict.fromkeys(faults)))


def _check_values(config: DictConfig, schema: type) -> None:
    """Refuse unknown and unread keys and numbers out of their range; what is checked later relies on them."""
    OmegaConf.to_container(config, resolve=True)  # an interpolation that leads nowhere is a fault of now
    # `+key=value` opens the struct; whatever is not in the schema would be ignored, so it is refused.
    for key, value in _unknown(config, schema):
        raise ConfigError(f"{key}={value}: no such key; `--cfg job` shows all keys")
    _raise([*range_faults(config, schema), *unread_keys(config, schema)])


def _unknown(config: Any, schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(schema)
    if not isinstance(config, DictConfig):  # an interpolation may give anything
        raise ConfigError(f"{prefix.removesuffix('.')}={config}: a section of keys, {', '.join(hints)}")
    for key in map(str, config):
        if key not in hints:
            yield f"{prefix}{key}", OmegaConf.select(config, key)
            continue
        if OmegaConf.is_missing(config, key) or (value := config[key]) is None:
            continue
        kinds = {get_origin(hint) for hint in (hints[key], *get_args(hints[key]))}
        # A free dictionary (`optimizer`, `student.config`) takes any key; a section takes its own.
        if list in kinds:
            if not OmegaConf.is_list(value):
                raise ConfigError(f"{prefix}{key}={value}: a list")
        elif dict in kinds:
            if not OmegaConf.is_dict(value):
                raise ConfigError(f"{prefix}{key}={value}: a dictionary")
        elif section := section_of(hints[key]):
            yield from _unknown(value, section, f"{prefix}{key}.")
