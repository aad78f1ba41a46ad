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
from potstill.ranges import SEED, within


@dataclass
class StageConfig:
    """A stage of a recipe: a command of its own, in a folder of its own, `${stage:<name>}` to later ones."""

    name: str = MISSING  # of its folder too
    command: str = "train"  # train | evaluate
    defaults: list[str] = field(default_factory=list)  # overrides that the command line wins over
    overrides: list[str] = field(default_factory=list)  # that win over the command line
    without: list[str] = field(default_factory=list)  # sections of the command line that are not handed on


@dataclass
class TrainConfig:
    """The whole of `train.py`."""

    doctor: bool = False  # print what the run would need, and end
    stage: str = "train"  # train | rationales: have a language model write them, before training
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    benchmark: BenchmarkConfig | None = None  # of a task model
    tasks: list[SharedTaskConfig] = field(
        default_factory=list
    )  # several of one student, in place of `benchmark`
    mixing: MixingConfig = field(default_factory=MixingConfig)  # of `tasks`
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    adapted: AdaptedConfig = field(default_factory=AdaptedConfig)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compile: bool = False
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = within(42, SEED)
    ckpt_path: str | None = None
    resume: str | None = (
        None  # auto: go on from what an interrupted run left in hydra.run.dir, if it left anything
    )
    overwrite: bool = False  # begin anew in the folder of an earlier run, whose results are removed
    stages: list[StageConfig] = field(default_factory=list)  # of a recipe; each is run in place of this one


@dataclass
class SweepConfig:
    """Runs of a sweep that are put into one table, in place of models that are judged."""

    folder: str | None = None  # a multirun's; `sweep=<folder>` is short for it
    metrics: list[str] | None = None  # of summary.json, to be shown; null: what was validated or tested


@dataclass
class EvaluateConfig:
    """The whole of `evaluate.py`."""

    model: Any = MISSING  # folder or hub id, or a list of them; the first is the reference
    export: Any = None  # onnx | int8, or both: forms that are judged beside each model (not the reference)
    names: list[str] | None = None  # what the rows are called; null: by the folders
    sweep: SweepConfig = field(default_factory=SweepConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compile: bool = False
    seed: int = within(42, SEED)
    overwrite: bool = False  # remove the results of an earlier command in the folder


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
