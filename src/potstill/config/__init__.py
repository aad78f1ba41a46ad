"""The schema of every key: what a composed configuration may hold, and of which type.

The dataclasses are registered in Hydra's group `schema`, which no command line selects; `conf/train.yaml` and
`conf/evaluate.yaml` start from them, so a misspelled or ill-typed key is refused while composing. What a type
cannot say (ranges, files, models that fit) is in `validation/`. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from potstill.config.benchmarks import BenchmarkConfig, own_metrics
from potstill.config.data import DataConfig
from potstill.config.defaults import default
from potstill.config.learning import (
    AdaptedConfig,
    MixingConfig,
    ObjectiveConfig,
    SharedTaskConfig,
    StudentConfig,
    TeacherConfig,
)
from potstill.config.running import (
    CheckpointConfig,
    GenerationConfig,
    LoggerConfig,
    ScheduleConfig,
    TrainerConfig,
    TrialConfig,
)
from potstill.runtime.ranges import SEED, option, within


@dataclass
class StageConfig:
    """A stage of a recipe: a command of its own, in a folder of its own, `${stage:<name>}` to later ones."""

    name: str = option(
        MISSING,
        "name of the stage and of its folder; later stages refer to the folder as `${stage:<name>}`, "
        "without quotes",
    )
    command: str = option("train", "`train` or `evaluate`")
    defaults: list[str] = option([], "overrides that the command line of the recipe takes precedence over")
    overrides: list[str] = option([], "overrides that take precedence over the command line of the recipe")
    without: list[str] = option(
        [], "keys and sections of the recipe's command line that are not passed on, `[objective, student]`"
    )


@dataclass
class TrainConfig:
    """The whole of `train.py`."""

    doctor: bool = option(
        False,
        "print device, precision, versions, data stores, memory, time and the largest batch of the run, "
        "then exit",
    )
    stage: str = option(
        "train", "`train`; or `rationales`: a language model writes rationales for a part of a data set"
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
    adapted: AdaptedConfig = field(default_factory=AdaptedConfig)
    optimizer: dict[str, Any] = option(
        {}, "any torch optimizer, `optimizer._target_`, and its arguments; biases and norms are not decayed"
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
        None,
        "a `last.ckpt` to resume from; see [What a resumed run may change](#what-a-resumed-run-may-change)",
    )
    resume: str | None = option(
        None,
        "`auto`: resume from the checkpoint in `hydra.run.dir` if there is one; metrics.csv and the wandb "
        "run are continued",
    )
    overwrite: bool = option(
        False,
        "start again in the folder of an earlier run and remove its results; see [Hydra's own](#hydras-own)",
    )
    stages: list[StageConfig] = option(
        [],
        "stages of a recipe, which run one after the other in place of this run; see "
        "[Recipes](#recipes-of-several-stages)",
    )


@dataclass
class SweepConfig:
    """Runs of a sweep that are put into one table, in place of models to evaluate."""

    folder: str | None = option(
        None,
        "folder of a multirun, whose results become one table; `sweep=<folder>` is short for it; replaces "
        "`model`",
    )
    metrics: list[str] | None = option(
        None, "names in summary.json to show; null: those that begin with `val/` or `test/`"
    )


@dataclass
class EvaluateConfig:
    """The whole of `evaluate.py`."""

    model: Any = option(MISSING, "folder or hub id, or a list of them; the first is the reference")
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


def teachers_of(config: Any) -> list[str]:
    """The teachers of a training configuration, or of its tasks, the first one first; empty where none is named."""
    if config.tasks:
        return [str(task.teacher) for task in config.tasks]
    if config.teacher.models:
        return [str(name) for name in config.teacher.models]
    return [config.teacher.model] if config.teacher.model else []


def config_folder() -> Path:
    """The folder of configs: `conf/` of a checkout, or the copy inside an installed wheel."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


def register() -> None:
    """Put the schemas into Hydra's config store, in a group of their own; stages' references resolve to themselves."""
    # Of benchmark=text_classification, whose metrics depend on whether rows have sets of labels.
    OmegaConf.register_new_resolver(
        "own_metrics", lambda own: OmegaConf.create(own_metrics(own)), replace=True
    )
    OmegaConf.register_new_resolver("own_monitor", lambda own: own_metrics(own)[0], replace=True)
    # A recipe that is shown, or composed, keeps them: `stages.plan` puts folders in their place.
    OmegaConf.register_new_resolver("default", lambda key, *, _root_: default(key, _root_), replace=True)
    OmegaConf.register_new_resolver("stage", lambda name: f"${{stage:{name}}}", replace=True)
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=TrainConfig)
    store.store(group="schema", name="evaluate", node=EvaluateConfig)
