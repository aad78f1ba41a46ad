"""Keys of `objective`: a dataclass for each option, with the keys that it reads."""

from __future__ import annotations

from potstill.config.objectives.base import ObjectiveConfig
from potstill.config.objectives.custom import CustomObjectiveConfig
from potstill.config.objectives.diito import DiitoConfig
from potstill.config.objectives.embedding import EmbedConfig
from potstill.config.objectives.generative import GkdConfig
from potstill.config.objectives.language import ClmConfig, KdConfig, MlmConfig
from potstill.config.objectives.step_by_step import StepByStepConfig
from potstill.config.objectives.task import FinetuneConfig, TaskKdConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "mlm": MlmConfig,
    "clm": ClmConfig,
    "kd": KdConfig,
    "diito": DiitoConfig,
    "gkd": GkdConfig,
    "embed": EmbedConfig,
    "finetune": FinetuneConfig,
    "task_kd": TaskKdConfig,
    "step_by_step": StepByStepConfig,
    "custom": CustomObjectiveConfig,
}
