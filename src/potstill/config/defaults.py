"""Defaults that depend on other keys: how long a run trains, how fast a model learns, and what it reads at once.

The options of `conf/` refer to them as `${default:<key>}`, so a value from the command line or a recipe takes their
place while Hydra composes. `settle` puts the values in force into a composed configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from potstill.config import TrainConfig

EPOCHS = 3
# A model from scratch, or a language model that is distilled, as DistilBERT (Sanh et al. 2019).
FROM_SCRATCH: dict[str, Any] = {
    "optimizer.lr": 5e-4,
    "optimizer.betas": [0.9, 0.98],
    "optimizer.eps": 1e-6,
    "schedule.warmup_share": 0.05,
    "trainer.gradient_clip_val": 5.0,
}
# A pretrained model that learns a task: transformers' run_glue, with a warm-up. Faster, its weights are destroyed.
FINE_TUNING: dict[str, Any] = {
    "optimizer.lr": 5e-5,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "schedule.warmup_share": 0.1,
    "trainer.gradient_clip_val": 1.0,
}
KEYS = ("trainer.max_epochs", "data.max_length", *FROM_SCRATCH)
LENGTH = 128  # tokens of a sequence of docstrings, or of a row of a task


def trains_task(config: TrainConfig | DictConfig) -> bool:
    """Whether a training run's objective is one of a task model, given its benchmark."""
    schema: Any = OmegaConf.get_type(config, "objective") if isinstance(config, DictConfig) else config.objective
    return bool(config.benchmark is not None if schema.trains_task is None else schema.trains_task)


def fine_tunes(config: TrainConfig | DictConfig) -> bool:
    """Whether a run trains a task model whose weights are pretrained, or made of a teacher's layers."""
    student = config.student
    return trains_task(config) and (student.model is not None or not student.config)


def default(key: str, config: DictConfig) -> Any:
    """The value of one of `KEYS` where neither a recipe nor the command line gives one.

    Args:
        key: `optimizer.lr`.
        config: of the run or the evaluation.
    """
    if key == "data.max_length":  # null: the benchmark's own length of a window
        benchmark = config.get("benchmark")
        return None if benchmark and benchmark.get("max_length") else LENGTH
    if key == "trainer.max_epochs":
        return EPOCHS if config.trainer.max_steps in (None, -1) else None
    return (FINE_TUNING if fine_tunes(config) else FROM_SCRATCH)[key]


def settle(config: DictConfig) -> dict[str, Any]:
    """Put the defaults in force into a configuration, in the place of the references to them.

    Args:
        config: of a training run, as composed; changed in place. Settled again, it stays as it is.

    Returns:
        The defaults that apply, by key.
    """
    found = {key: default(key, config) for key in KEYS if _refers(config, key)}
    for key, value in found.items():
        OmegaConf.update(config, key, value)
    if config.trainer.max_steps is None:
        config.trainer.max_steps = -1
    return found


def _refers(config: DictConfig, key: str) -> bool:
    section, _, name = key.partition(".")
    if not config[section] or name not in config[section]:
        return False
    node = OmegaConf.to_container(config[section], resolve=False)[name]  # type: ignore[call-overload,index]
    return node == f"${{default:{key}}}"
