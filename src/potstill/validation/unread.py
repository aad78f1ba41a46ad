"""Keys that a command line gives and the chosen options do not read.

Only what is typed counts: options and recipes of conf/ may set more than a combination of them reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, fields
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from potstill.config import OPTIONS, Command, TrainConfig, config_folder, teachers_of, value_of
from potstill.config.benchmarks import ClmBenchmarkConfig, EfficiencyConfig, TokensConfig, swaps_of
from potstill.config.data import ConversationsDataConfig, PairsDataConfig, RationaleDataConfig
from potstill.config.defaults import trains_task
from potstill.config.objectives.base import LossConfig
from potstill.config.objectives.custom import CustomObjectiveConfig
from potstill.config.objectives.embedding import EmbedConfig
from potstill.config.objectives.language import ClmConfig
from potstill.runtime.ranges import WHEN, Section

Read = Callable[[Any], bool]


def _is_custom(config: TrainConfig) -> bool:
    return isinstance(config.objective, CustomObjectiveConfig)


def _masks(config: Any) -> bool:
    if isinstance(config, TrainConfig):
        return not isinstance(config.objective, ClmConfig | EmbedConfig)
    return not isinstance(config.benchmark, ClmBenchmarkConfig | EfficiencyConfig)


def _serves_vectors(config: TrainConfig) -> bool:
    return config.stage == "teacher_outputs" and isinstance(config.objective, EmbedConfig)


# Those of objective=embed that no server needs.
_OF_ENCODERS = tuple(
    f"objective.{own.name}" for own in fields(EmbedConfig) if own.name not in ("name", "method", "options", "prompt")
)
# Keys, or whole sections, with what reads them: as text, and as a function of the configuration. Keys that depend on
# another one of their own section say so in the schema (`When`).
_BOTH: tuple[tuple[tuple[str, ...], str, Read], ...] = (
    (
        ("data.mlm_share", "data.mlm_smoothing", "data.token_counts", "data.mlm_replace"), "masked language models",
        _masks,
    ),
)  # fmt: skip
_TRAIN: tuple[tuple[tuple[str, ...], str, Read], ...] = (
    (("generation",), "stage=rationales and teacher_outputs", lambda config: config.stage != "train"),
    (
        (
            "generation.split", "generation.folder", "generation.form", "generation.prompts", "generation.shots",
            "generation.max_tokens", "generation.temperature", "generation.top_p", "generation.samples",
            "generation.logprobs", "generation.drop_contradicting", "generation.chunk_rows", "generation.device",
            "generation.dtype",
        ),
        "stage=rationales", lambda config: config.stage != "teacher_outputs",
    ),
    (
        ("generation.batch_size",), "stage=rationales, and for vectors",
        lambda config: config.stage != "teacher_outputs" or isinstance(config.objective, EmbedConfig),
    ),
    (_OF_ENCODERS, "stage=train", lambda config: not _serves_vectors(config)),
    (("teacher",), "stage=train and teacher_outputs", lambda config: config.stage != "rationales"),
    (
        (
            "teacher.model", "teacher.models", "teacher.weights", "teacher.tokenizer", "teacher.average",
            "teacher.attention", "teacher.cache.file",
        ),
        "stage=train", lambda config: config.stage == "train",
    ),
    (
        (
            "student", "custom", "optimizer", "schedule", "trainer", "checkpoint", "callbacks", "logger", "mixing",
            "tasks", "benchmark", "compile",
        ),
        "stage=train", lambda config: config.stage == "train",
    ),
    (("objective",), "stage=train", lambda config: config.stage == "train" or _serves_vectors(config)),
    (("custom",), "objective=custom", _is_custom),
    (("data",), "other objectives", lambda config: not _is_custom(config) or config.stage != "train"),
    (("mixing",), "tasks", lambda config: bool(config.tasks)),
    (
        (
            "teacher.cache.form", "teacher.cache.k", "teacher.cache.temperatures", "teacher.cache.samples",
            "teacher.cache.power", "teacher.cache.systematic",
        ),
        "language models; the outputs of a task and vectors are kept whole",
        lambda config: (
            not trains_task(config) and not isinstance(config.objective, CustomObjectiveConfig | EmbedConfig)
        ),
    ),
    (
        ("teacher.cache.precision",), "language models and encoders",
        lambda config: not trains_task(config) and not _is_custom(config),
    ),
    (("teacher.attention",), "a teacher", lambda config: bool(config.objective.taught or teachers_of(config))),
    (("teacher.weights", "teacher.average"), "objectives with a teacher", lambda config: config.objective.taught),
    (
        ("teacher.average",), "several teachers, teacher.models=[a,b]",
        lambda config: bool(config.teacher.models or config.custom.teachers),
    ),
    (("objective.divergence",), "language models", lambda config: not trains_task(config)),
    (
        ("objective.positions",), "language models on a corpus",
        lambda config: not trains_task(config) and not isinstance(config.data, ConversationsDataConfig),
    ),
    (
        ("objective.tokens",), "benchmarks of tagged words",
        lambda config: bool(config.tasks) or isinstance(config.benchmark, TokensConfig),
    ),
    (
        ("objective.hard_weight",), "terms whose own weight is null",
        lambda config: (
            isinstance(config.objective, LossConfig)
            and any(term.weight is None for term in config.objective.terms.values())
        ),
    ),
    (
        ("objective.query_prompt", "objective.document_prompt"), "data=text_pairs",
        lambda config: not isinstance(config.objective, EmbedConfig) or isinstance(config.data, PairsDataConfig),
    ),
    (
        ("objective.prompt",), "single texts, and benchmark=sts",
        lambda config: not isinstance(config.data, PairsDataConfig) or config.benchmark is not None,
    ),
    (
        ("objective.scale",), "objective.terms.contrastive",
        lambda config: (
            not isinstance(config.objective, EmbedConfig) or bool(config.objective.terms.given("contrastive"))
        ),
    ),
    (
        ("data.columns.scores",), "objective.terms.margin_mse",
        lambda config: (
            not isinstance(config.objective, EmbedConfig) or bool(config.objective.terms.given("margin_mse"))
        ),
    ),
    (
        ("objective.margin_scale",), "data.columns.scores",
        lambda config: isinstance(config.data, PairsDataConfig) and bool(config.data.columns.scores),
    ),
    (
        ("student.architecture", "student.vocab_transform"), "students of the teacher's layers",
        lambda config: not config.student.model and not config.student.config,
    ),
    (
        ("student.vocab_transform",), "students with the teacher's head",
        lambda config: not isinstance(config.objective, EmbedConfig),
    ),
    (("benchmark.part", "benchmark.positions", "benchmark.interchange"), "evaluate.py", lambda config: False),
)  # fmt: skip
_EVALUATE: tuple[tuple[tuple[str, ...], str, Read], ...] = (
    (
        (
            "trainer.max_steps", "trainer.max_epochs", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val",
            "trainer.nonfinite", "trainer.val_check_interval", "trainer.log_every_n_steps", "data.batch_size",
            "data.max_tokens", "data.group_size", "data.augment", "data.labels", "data.more_sets", "data.watch_test",
            "data.token_counts", "data.shuffle_rationales",
        ),
        "train.py", lambda config: False,
    ),
    (
        ("data.share",), "train.py, and with data.share_before_split",
        lambda config: isinstance(config.data, RationaleDataConfig) and config.data.share_before_split,
    ),
    (
        ("data.eval_share", "data.train", "data.eval", "data.min_length", "data.max_unknown"),
        "benchmarks with data", lambda config: not isinstance(config.benchmark, EfficiencyConfig),
    ),
    (
        ("benchmark.positions",), "benchmark.interchange.mapping",
        lambda config: swaps_of(config.benchmark).mapping is not None,
    ),
)  # fmt: skip


def given_keys() -> list[str]:
    """The keys that the command line gives; none outside of a command."""
    if not HydraConfig.initialized():
        return []
    parser = OverridesParser.create()
    return [parser.parse_override(word).key_or_group for word in HydraConfig.get().overrides.task]


def unread_keys(config: Command, given: Collection[str] | None = None) -> list[str]:
    """The given keys that nothing reads and whose value differs from the schema's default.

    Args:
        config: of the command.
        given: keys; None: those of the command line.
    """
    # The option of a group is not a key.
    typed_keys = [key for key in (given_keys() if given is None else given) if not (config_folder() / key).is_dir()]
    plain = type(config)()
    for group in OPTIONS:
        if hasattr(plain, group):
            setattr(plain, group, type(getattr(config, group))())
    found: dict[str, str] = {}
    for key, reader in unread_in(config):
        for typed in typed_keys:
            name = typed if _within(typed, key) else key if _within(key, typed) else None
            if name is None or name in found:
                continue
            value = value_of(config, name)
            section, _, own = name.rpartition(".")
            if value != value_of(type(value_of(config, section) if section else config)(), own):
                found[name] = f"{name}={_shown(value)}: read by {reader} alone; leave it out"
    return list(found.values())


def unread_in(config: Command) -> Iterator[tuple[str, str]]:
    """Keys and sections that a configuration does not read, each with what does."""
    own = _TRAIN if isinstance(config, TrainConfig) else _EVALUATE
    for keys, reader, read in (*own, *_BOTH):
        if not read(config):
            yield from ((key, reader) for key in keys)
    yield from _conditional(config, "")


def _conditional(section: Section, prefix: str) -> Iterator[tuple[str, str]]:
    """The same, of keys that depend on another one of their section."""
    conditions = {own.name: own.metadata.get(WHEN) for own in fields(section)}
    for name in conditions:
        key, condition = name, conditions[name]
        while condition is not None and condition.holds(section):  # which is read itself?
            condition = conditions[condition.key]
        if condition is not None:
            yield f"{prefix}{key}", f"{prefix}{condition}"
        elif isinstance(value := getattr(section, name), Section):
            yield from _conditional(value, f"{prefix}{name}.")


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _shown(value: Any) -> Any:
    return "null" if value is None else asdict(value) if isinstance(value, Section) else value
