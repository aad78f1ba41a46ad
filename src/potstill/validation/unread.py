"""Keys that a command line gives and the chosen options do not read.

Only what is typed counts: options and recipes of conf/ may set more than a combination of them reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from potstill.config import config_folder, teachers_of
from potstill.config.data import AugmentConfig
from potstill.config.defaults import trains_task
from potstill.config.learning import ADAPTED, CacheConfig, InterchangeConfig, SwapConfig
from potstill.data.rationales.sets import GENERATED
from potstill.data.rationales.splits import RATIONALES, STEP_BY_STEP
from potstill.data.tasks.splits import EFFICIENCY, is_task
from potstill.validation.objectives import SUPERVISED, TASKS

Read = Callable[[DictConfig], bool]


def _when(key: str, *values: Any) -> Read:
    return lambda config: OmegaConf.select(config, key) in values


def _unless(key: str, *values: Any) -> Read:
    return lambda config: OmegaConf.select(config, key) not in values


def _taught(config: DictConfig) -> bool:
    name, soft = config.objective.name, config.objective.soft_weight
    return bool(soft) if name == STEP_BY_STEP else name not in (*SUPERVISED, *TASKS)


def _on_rows(config: DictConfig) -> bool:
    """Whether rows of a task are read, in either command."""
    if "objective" in config:
        return bool(trains_task(config) or config.tasks)
    return is_task(config.benchmark)


def _on_rationales(config: DictConfig) -> bool:
    if "objective" in config:
        return config.objective.name == STEP_BY_STEP or config.stage != "train"
    return config.benchmark.task == RATIONALES


def _on_corpus(config: DictConfig) -> bool:
    training = "objective" in config
    other = config.objective.name == ADAPTED if training else config.benchmark.task == EFFICIENCY
    return not (other or _on_rows(config) or _on_rationales(config))


def _masks(config: DictConfig) -> bool:
    name = config.objective.name if "objective" in config else config.benchmark.name
    return _on_corpus(config) and name != "clm"


def _but(section: str, schema: type, switch: str) -> tuple[str, ...]:
    """The keys of a section except the one that switches it on."""
    return tuple(f"{section}.{own.name}" for own in fields(schema) if own.name != switch)


# Keys, or whole sections, with what reads them: as text, and as a function of the configuration.
_BOTH: tuple[tuple[tuple[str, ...], str, Read], ...] = (
    (("data.eval_share", "data.train", "data.eval", "data.min_length"), "a corpus", _on_corpus),
    (
        ("data.max_unknown",), "a corpus, rows of a task or rationales",
        lambda config: _on_corpus(config) or _on_rows(config) or _on_rationales(config),
    ),
    (("data.mlm_share", "data.mlm_smoothing", "data.mlm_replace"), "masked language models", _masks),
    (
        (
            "data.generated", "data.rationales", "data.labels", "data.share", "data.more_sets", "data.allow_partial",
            "data.max_unparsed", "data.predict_prefix", "data.explain_prefix", "data.max_input_length",
            "data.max_target_length", "data.generation_max_length", "data.output_rationale",
            "data.restricted_decoding", "data.test_files",
        ),
        "objective=step_by_step (evaluate.py: benchmark=step_by_step)", _on_rationales,
    ),
    (("data.generated",), "data=arithmetic", _when("data.set", GENERATED)),
    (
        ("benchmark.batches", "benchmark.lengths", "benchmark.depth"),
        f"benchmark={EFFICIENCY}", _when("benchmark.task", EFFICIENCY),
    ),
    (
        ("benchmark.positions", *_but("benchmark.interchange", SwapConfig, "mapping")),
        "evaluate.py with benchmark.interchange.mapping",
        lambda config: "objective" not in config and config.benchmark.interchange.mapping is not None,
    ),
)  # fmt: skip
_TRAIN: tuple[tuple[tuple[str, ...], str, Read], ...] = (
    (("generation",), "stage=rationales", _unless("stage", "train")),
    (
        (
            "objective", "teacher", "student", "adapted", "optimizer", "schedule", "trainer", "checkpoint", "callbacks",
            "logger", "mixing", "tasks", "benchmark", "compile",
        ),
        "stage=train", _when("stage", "train"),
    ),
    (("adapted",), f"objective={ADAPTED}", _when("objective.name", ADAPTED)),
    (("mixing",), "tasks", lambda config: bool(config.tasks)),
    (_but("teacher.cache", CacheConfig, "enabled"), "teacher/cache=on", _when("teacher.cache.enabled", True)),
    (
        (
            "teacher.cache.form", "teacher.cache.k", "teacher.cache.precision", "teacher.cache.temperatures",
            "teacher.cache.samples", "teacher.cache.power", "teacher.cache.systematic",
        ),
        "language models; the outputs of a task are kept whole", lambda config: not trains_task(config),
    ),
    (("teacher.cache.k", "teacher.cache.precision"), "teacher.cache.form=top", _when("teacher.cache.form", "top")),
    (
        ("teacher.cache.samples", "teacher.cache.power", "teacher.cache.systematic"),
        "teacher.cache.form=sampled", _when("teacher.cache.form", "sampled"),
    ),
    (("teacher.average",), "several teachers, teacher.models=[a,b]", _unless("teacher.models", None)),
    (("teacher.attention",), "a teacher", lambda config: bool(_taught(config) or teachers_of(config))),
    (("teacher.weights", "teacher.average"), "objectives with a teacher", _taught),
    (
        _but("objective.interchange", InterchangeConfig, "mapping"),
        "objective.interchange.mapping", _unless("objective.interchange.mapping", None),
    ),
    (
        ("objective.mode", "objective.alpha", "objective.soft_weight"),
        "objective=step_by_step", _when("objective.name", STEP_BY_STEP),
    ),
    (("objective.temperature",), "objectives that learn from probabilities", _taught),
    (
        ("objective.positions",), "language models with a teacher",
        lambda config: _on_corpus(config) and config.objective.name not in SUPERVISED,
    ),
    (
        ("objective.hard_weight",), "terms whose own weight is null",
        lambda config: any(term.weight is None for term in config.objective.terms.values()),
    ),
    (("objective.beta",), "objective.soft_target=jsd", _when("objective.soft_target", "jsd")),
    (
        ("objective.temperature_strength",),
        "objective.temperature_schedule=flsw or cwsm", _unless("objective.temperature_schedule", "constant"),
    ),
    (
        ("objective.temperature_gamma",),
        "objective.temperature_schedule=flsw", _when("objective.temperature_schedule", "flsw"),
    ),
    (
        ("student.architecture", "student.vocab_transform"), "students of the teacher's layers",
        lambda config: not config.student.model and not config.student.config,
    ),
    (("schedule.warmup_share",), "schedule.warmup_steps=null", _when("schedule.warmup_steps", None)),
    (
        ("schedule.warmup_share", "schedule.warmup_steps"),
        "other schedules than constant", _unless("schedule.name", "constant"),
    ),
    (_but("data.augment", AugmentConfig, "share"), "data.augment.share", lambda config: config.data.augment.share > 0),
    (("data.batch_size",), "data.max_tokens=null", _when("data.max_tokens", None)),
    (
        ("logger.project", "logger.group", "logger.mode", "logger.artifact_mb"),
        "logger=wandb", _when("logger.name", "wandb"),
    ),
    (("benchmark.part",), "evaluate.py", lambda config: False),
)  # fmt: skip
_EVALUATE: tuple[tuple[tuple[str, ...], str, Read], ...] = (
    (
        (
            "trainer.max_steps", "trainer.max_epochs", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val",
            "trainer.nonfinite", "trainer.val_check_interval", "trainer.log_every_n_steps", "data.batch_size",
            "data.max_tokens", "data.group_size", "data.augment", "data.labels", "data.share", "data.more_sets",
        ),
        "train.py", lambda config: False,
    ),
)  # fmt: skip


def given_keys() -> list[str]:
    """The keys that the command line gives; none outside of a command."""
    if not HydraConfig.initialized():
        return []
    parser = OverridesParser.create()
    return [parser.parse_override(word).key_or_group for word in HydraConfig.get().overrides.task]


def unread_keys(config: DictConfig, schema: type, given: Collection[str] | None = None) -> list[str]:
    """Of each given key whose value is not the schema's own and that nothing reads.

    Args:
        config: composed.
        schema: of the command.
        given: keys; None: those of the command line.
    """
    # The option of a group is no key.
    typed_keys = [
        key for key in (given_keys() if given is None else given) if not (config_folder() / key).is_dir()
    ]
    plain = OmegaConf.structured(schema)
    found: dict[str, str] = {}
    for key, reader in unread_in(config):
        for typed in typed_keys:
            name = typed if _within(typed, key) else key if _within(key, typed) else None
            if name is None or name in found:
                continue
            value = OmegaConf.select(config, name)
            if value != OmegaConf.select(plain, name):
                found[name] = f"{name}={_shown(value)}: read by {reader} alone; leave it out"
    return list(found.values())


def unread_in(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Keys and sections that a configuration does not read, each with what does."""
    own = _TRAIN if "objective" in config else _EVALUATE
    for keys, reader, read in (*own, *_BOTH):
        if not read(config):
            yield from ((key, reader) for key in keys)


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _shown(value: Any) -> Any:
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return "null" if plain is None else dict(plain) if isinstance(plain, Mapping) else plain
