"""The schema of every key: what a composed configuration may hold, and of which type.

The dataclasses are registered in Hydra's group `schema`, which no command line selects; `conf/train.yaml` and
`conf/evaluate.yaml` start from them, so a misspelled or ill-typed key is refused while composing. What a type
cannot say (ranges, files, models that fit) is in `validation/`. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from potstill.config.benchmarks import BENCHMARKS, BenchmarkConfig, TaskBenchmarkConfig
from potstill.config.data import DATA, DataConfig
from potstill.config.defaults import default
from potstill.config.models import CustomConfig, MixingConfig, SharedTaskConfig, StudentConfig, TeacherConfig
from potstill.config.objectives import OBJECTIVES
from potstill.config.objectives.base import LossConfig, ObjectiveConfig, TaughtConfig
from potstill.config.running import (
    CheckpointConfig,
    GenerationConfig,
    LoggerConfig,
    ScheduleConfig,
    TrainerConfig,
    TrialConfig,
)
from potstill.runtime.ranges import SEED, Section, option, within


@dataclass
class StageConfig(Section):
    """A stage of a recipe: a command of its own, in a folder of its own, `${stage:<name>}` to later ones."""

    name: str = option(
        MISSING,
        "name of the stage and of its folder; later stages refer to the folder as `${stage:<name>}`, without quotes",
    )
    command: str = option("train", "`train` or `evaluate`")
    defaults: list[str] = option([], "overrides that the command line of the recipe takes precedence over")
    overrides: list[str] = option([], "overrides that take precedence over the command line of the recipe")
    without: list[str] = option(
        [], "keys and sections of the recipe's command line that are not passed on, `[objective, student]`"
    )


class Command(Section):
    """Options of a command.

    Attributes:
        defaults: values that were chosen for the run because nothing gives one, by key.
        references: texts with references to environment variables, and the values that they resolved to, by the keys
            and indices of their place.
    """

    seed: int
    defaults: dict[str, Any]
    references: dict[tuple[str | int, ...], tuple[str, str]]
    benchmark: BenchmarkConfig | None

    @property
    def task_benchmark(self) -> TaskBenchmarkConfig:
        """The benchmark of a command on a task model."""
        assert isinstance(self.benchmark, TaskBenchmarkConfig)
        return self.benchmark


@dataclass
class TrainConfig(Command):
    """The whole of `train.py`."""

    doctor: bool = option(
        False,
        "print device, precision, versions, data stores, memory, time and the largest batch of the run, then exit",
    )
    stage: str = option(
        "train",
        "`train`; or `rationales`: a language model writes rationales for a part of a data set; or `teacher_outputs`: "
        "a server computes a store of teacher outputs, see [Cached teachers](cache.md#outputs-of-a-server)",
    )
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    benchmark: BenchmarkConfig | None = None
    tasks: list[SharedTaskConfig] = option(
        [],
        "several tasks of one student, in place of `benchmark` and `teacher.model`; see [Several "
        "tasks](#several-tasks)",
    )
    mixing: MixingConfig = field(default_factory=MixingConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    custom: CustomConfig = field(default_factory=CustomConfig)
    optimizer: dict[str, Any] = option(
        {},
        "any torch optimizer, `optimizer._target_`, and its arguments; biases and norms are not decayed. "
        "`optimizer.layer_decay`: factor of the learning rate from each block to the one below it",
    )
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compile: bool = option(False, "compile the blocks of the models")
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)
    callbacks: dict[str, Any] = option({}, "Lightning callbacks by `_target_`, one per name")
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = within(42, SEED, "seed of order, masks, dropout and new weights")
    ckpt_path: str | None = option(
        None, "a `last.ckpt` to resume from; see [What a resumed run may change](#what-a-resumed-run-may-change)"
    )
    resume: str | None = option(
        None,
        "`auto`: resume from the checkpoint in `hydra.run.dir` if there is one; metrics.csv and the wandb "
        "run are continued",
    )
    overwrite: bool = option(
        False, "start again in the folder of an earlier run and remove its results; see [Hydra's own](#hydras-own)"
    )
    stages: list[StageConfig] = option(
        [],
        "stages of a recipe, which run one after the other in place of this run; see "
        "[Recipes](#recipes-of-several-stages)",
    )

    @property
    def losses(self) -> LossConfig:
        """The objective of a run whose loss is a sum of terms."""
        assert isinstance(self.objective, LossConfig)
        return self.objective

    @property
    def taught(self) -> TaughtConfig:
        """The objective of a run with a teacher."""
        assert isinstance(self.objective, TaughtConfig)
        return self.objective


@dataclass
class SweepConfig(Section):
    """Runs of a sweep that are put into one table, in place of models to evaluate."""

    folder: str | None = option(
        None, "folder of a multirun, whose results become one table; `sweep=<folder>` is short for it; replaces `model`"
    )
    metrics: list[str] | None = option(
        None, "names in summary.json to show; null: those that begin with `val/` or `test/`"
    )


@dataclass
class EvaluateConfig(Command):
    """The whole of `evaluate.py`."""

    model: Any = option(None, "folder, GGUF file or hub id, or a list of them; the first is the reference")
    export: Any = option(
        None,
        "`onnx`, `int8` or `[onnx,int8]`: export each model (of several, not the first) to ONNX Runtime, "
        "in `export/<name>/<form>`, check it against the model and evaluate it in rows of its own; `int8`: "
        "8-bit weights, dynamic activations; `pip install 'potstill[export]'`",
    )
    names: list[str] | None = option(
        None,
        "names of the rows and of files (there, characters other than letters, digits, `_`, `.` and `-` "
        "become `_`); null: the ends of the paths",
    )
    sweep: SweepConfig = field(default_factory=SweepConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compile: bool = option(False, "compile the blocks of the models")
    seed: int = within(42, SEED, "seed of masks, interventions and bootstrap")
    overwrite: bool = option(False, "remove the results of an earlier command in the folder")


SCHEMAS: dict[str, type[Command]] = {"train": TrainConfig, "evaluate": EvaluateConfig}
# Groups whose options have keys of their own: the dataclasses that options of `conf/` begin with, by name.
OPTIONS: dict[str, dict[str, type[Section]]] = {
    "objective": dict(OBJECTIVES),
    "data": dict(DATA),
    "benchmark": dict(BENCHMARKS),
}


def options_of(group: str, schemas: Collection[str]) -> list[str]:
    """The options of a group of `conf/` that begin with one of some schemas, or with an option that does."""
    texts = {path.stem: path.read_text() for path in sorted((config_folder() / group).glob("*.yaml"))}

    def schema(name: str) -> str | None:
        found = re.search(rf"^  - (?:/schema/{group}/(\w+)@|(\w+)$)", texts.get(name, ""), re.MULTILINE)
        return found and (found[1] or (schema(found[2]) if found[2] != name else None))

    return [name for name in texts if schema(name) in schemas]


def teachers_of(config: Any) -> list[str]:
    """The teachers of a training configuration, or of its tasks, the first one first; empty where none is named."""
    if config.tasks:
        return [str(task.teacher) for task in config.tasks]
    if config.teacher.models:
        return [str(name) for name in config.teacher.models]
    return [config.teacher.model] if config.teacher.model else []


def value_of(config: Any, key: str) -> Any:
    """The value of a dotted key, `trainer.max_steps`; None where a section is null."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


def config_folder() -> Path:
    """The folder of configs: `conf/` of a checkout, or the copy inside an installed wheel."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


@functools.cache
def register() -> None:
    """Put the schemas into Hydra's config store, in a group of their own; stages' references resolve to themselves."""
    # A recipe that is shown, or composed, keeps them: `stages.plan` puts folders in their place.
    OmegaConf.register_new_resolver("default", lambda key, *, _root_: default(key, _root_), replace=True)
    OmegaConf.register_new_resolver("stage", lambda name: f"${{stage:{name}}}", replace=True)
    store = ConfigStore.instance()
    for command, schema in SCHEMAS.items():
        store.store(group="schema", name=command, node=schema)
    for group, known in OPTIONS.items():
        for name, own in known.items():
            store.store(group=f"schema/{group}", name=name, node=own)
