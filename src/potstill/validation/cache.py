"""Problems of a teacher whose outputs are stored: of what is stored, and of what would read more than that."""

from __future__ import annotations

from pathlib import Path

from potstill.config import TrainConfig
from potstill.config.benchmarks import SpansConfig, TokensConfig
from potstill.config.data import ConversationsDataConfig, augment_of
from potstill.config.defaults import trains_task
from potstill.config.models import FILES, CacheConfig
from potstill.config.objectives import OBJECTIVES
from potstill.config.objectives.base import TaughtConfig, exchange_of, matches_of
from potstill.config.objectives.custom import CustomObjectiveConfig
from potstill.config.objectives.diito import DiitoConfig
from potstill.config.objectives.language import KdConfig
from potstill.config.objectives.task import TaskKdConfig
from potstill.runtime.small_files import not_a_file
from potstill.validation.folders import writable

PRECISIONS = {"top": ("float16", "float32"), "hidden": ("float16", "bfloat16", "float32")}
OF_TASKS = ("ce", "mse")  # terms that read stored outputs
OF_FORMS = {"top": ("ce",), "sampled": ("ce",), "hidden": ("ce", "mse", "cos")}


def cache_problems(config: TrainConfig, *, models: bool = True) -> list[str]:
    """Problems of `teacher.cache`; none if it is off.

    Args:
        config: of a training run.
        models: whether its models and stores exist already.
    """
    cache, objective = config.teacher.cache, config.objective
    if objective.cacheable and not isinstance(objective, TaughtConfig):
        return []  # its method checks what it stores
    if cache.file is not None:
        if len(cache.files) != 1 or isinstance(cache.file, list):
            return [f"teacher.cache.file={cache.file}: objective={objective.name} reads one file of logits"]
        return _file_problems(config, cache.files[0])
    if not cache.enabled:
        return []
    if not (isinstance(objective, TaughtConfig) and objective.cacheable):
        able = ", ".join(name for name, own in OBJECTIVES.items() if own.cacheable)
        return [
            f"teacher.cache.enabled=true: objective={objective.name} learns from no outputs that could be stored; use "
            f"teacher/cache=off, or one of {able}"
        ]
    problems = _more_problems(config, objective, "teacher/cache=on")
    if isinstance(objective, KdConfig) and not trains_task(config) and not config.teacher.model:
        problems += _alone_problems(cache, exists=models)
    if cache.folder is not None:
        problems += writable("teacher.cache.folder", Path(cache.folder).expanduser())
    if trains_task(config) or isinstance(objective, CustomObjectiveConfig):
        return problems
    return problems + _form_problems(cache, objective.temperature)


def _file_problems(config: TrainConfig, file: str) -> list[str]:
    """Problems of logits of the user's own."""
    objective, path, given = config.objective, Path(file).expanduser(), f"teacher.cache.file={file}"
    custom = isinstance(objective, CustomObjectiveConfig)
    if isinstance(objective, DiitoConfig) or not isinstance(objective, TaskKdConfig | CustomObjectiveConfig):
        return [f"{given}: read by objective=task_kd, custom and embed; objective={objective.name} leaves it out"]
    problems = _more_problems(config, objective, given, "use a teacher model")
    if path.suffix not in FILES:
        problems.append(f"{given}: one of {', '.join(FILES)}")
    elif not path.is_file():
        problems.append(f"{given}: {not_a_file(path)}")
    if config.teacher.cache.enabled:
        problems.append(f"{given} with teacher/cache=on: give one of them")
    if config.teacher.weights is not None:
        problems.append(f"teacher.weights={list(config.teacher.weights)}: are of several teachers, and {given} is one")
    if custom:
        return problems + [
            f"{key}._target_={settings['_target_']}: {given} takes its place; leave it out"
            for key, settings in config.custom.every_teacher.items()
        ]
    if isinstance(config.benchmark, TokensConfig | SpansConfig):
        problems.append(
            f"{given}: holds one entry per row, and benchmark={config.benchmark.name} has a prediction for each token; "
            "use a teacher model"
        )
    if config.teacher.models:
        problems.append(f"teacher.models={list(config.teacher.models)}: {given} takes their place; leave them out")
    if config.teacher.model and (config.student.model or config.student.config):
        problems.append(
            f"teacher.model={config.teacher.model}: {given} takes its place, and this student is not made of its "
            "layers; leave it out"
        )
    return problems


def _more_problems(
    config: TrainConfig, objective: TaughtConfig, given: str, instead: str = "use teacher/cache=off"
) -> list[str]:
    """Keys that need more than a teacher's outputs, or outputs that change."""
    task = trains_task(config) or isinstance(objective, CustomObjectiveConfig)
    sparse = not task and config.teacher.cache.form != "hidden"
    kept = OF_TASKS if task else OF_FORMS.get(config.teacher.cache.form, ("ce",))
    exchange, matches = exchange_of(objective), matches_of(objective)
    other = instead.removeprefix("use ")
    fuller = f"teacher.cache.form=hidden or {other}"
    off = f"{given} keeps no more than the teacher's outputs"
    problems = [
        f"objective.terms.{name}.weight={term.weight}: {off}; use 0, or "
        f"{fuller if sparse and name in OF_FORMS['hidden'] else other}"
        for name, term in objective.terms.given("mse", "cos", "causal_ce", "causal_cos", "uld").items()
        if name not in kept
    ]
    if matches is not None:
        problems.append(f"objective.matches={matches}: {off}, nothing within it; {instead}")
    if exchange.mapping is not None:
        problems.append(
            f"objective.interchange.mapping={exchange.mapping}: swaps states in the teacher, and {off}; {instead}"
        )
    if not objective.terms.given(*kept):
        problems.append(
            f"objective.terms.ce.weight={objective.terms['ce'].weight}: nothing would be read of what {given} "
            f"stores; give it a weight above 0, or {instead}"
        )
    if isinstance(objective, KdConfig) and sparse and objective.divergence != "forward_kl":
        problems.append(
            f"objective.divergence={objective.divergence}: weighs tokens by the student, which moves to those that "
            f"{given} stores as a sum alone; use forward_kl, {fuller}"
        )
    if config.teacher.tokenizer is not None:
        problems.append(
            f"teacher.tokenizer={config.teacher.tokenizer}: stored outputs are of the student's own tokens; use "
            f"teacher.tokenizer=null, or {instead}"
        )
    if isinstance(config.data, ConversationsDataConfig):
        problems.append(f"data={config.data.name}: outputs are stored of a corpus; {instead}")
    if config.tasks:
        problems.append(f"tasks: outputs are stored of one task; {instead}")
    if share := augment_of(config.data).share:
        problems.append(
            f"data.augment.share={share}: rows change in every epoch, and their stored outputs do "
            f"not; use data.augment.share=0, or {instead}"
        )
    return problems


def _alone_problems(cache: CacheConfig, *, exists: bool) -> list[str]:
    """Problems of stores that take the place of a language model's teacher."""
    if cache.form == "hidden":
        return ["teacher.model=null: teacher.cache.form=hidden needs the teacher's projection; give teacher.model"]
    folder = Path(cache.folder or "").expanduser() / "train"
    if exists and cache.folder is not None and not folder.is_dir():
        return [
            f"teacher.cache.folder={cache.folder}: {folder} {not_a_file(folder)}, so there is no store in the place of "
            "teacher.model=null; compute it by stage=teacher_outputs, or give teacher.model"
        ]
    return []


def _form_problems(cache: CacheConfig, temperature: float) -> list[str]:
    """Problems of the format in which the outputs over a vocabulary are stored."""
    key = "teacher.cache"
    if cache.form not in OF_FORMS:
        return [f"{key}.form={cache.form}: one of {', '.join(OF_FORMS)}"]
    problems = []
    if cache.precision not in (known := PRECISIONS.get(cache.form, (cache.precision,))):
        problems.append(f"{key}.precision={cache.precision}: of form={cache.form} one of {', '.join(known)}")
    if cache.temperatures is None:
        return problems
    given = f"{key}.temperatures={list(cache.temperatures)}"
    if not cache.temperatures:
        problems.append(f"{given}: one or more temperatures, or null for objective.temperature")
    elif cache.form == "sampled":
        problems.append(f"{given}: tokens are drawn at objective.temperature alone; use null, or form=top")
    elif cache.form == "hidden":
        problems.append(f"{given}: hidden states are read at every temperature; use null, or form=top")
    elif temperature not in cache.temperatures:
        problems.append(
            f"objective.temperature={temperature}: {given} holds no tail for it; add it there, or use one of these"
        )
    return problems
