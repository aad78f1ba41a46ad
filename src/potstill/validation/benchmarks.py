"""Problems of a benchmark, for training a task model, evaluating models and comparing them."""

from __future__ import annotations

from dataclasses import replace

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import (
    ComparedSwapConfig,
    EfficiencyConfig,
    LanguageBenchmarkConfig,
    TaskBenchmarkConfig,
    swaps_of,
)
from potstill.config.data import TaskDataConfig, data_of
from potstill.config.defaults import trains_task
from potstill.data.tasks.entities import mixed_tags
from potstill.data.tasks.labels import REGRESSION
from potstill.data.tasks.splits import evaluated_parts, task_of, training_parts
from potstill.errors import ConfigError, PotstillError
from potstill.models.heads import (
    Head,
    Problem,
    head_problem,
    label_order,
    labels_from_settings,
    problem_type_error,
    settings_problem,
    unnamed,
)
from potstill.models.specs import ModelSpec, check_layers, check_pair, read_settings
from potstill.validation.interchange import mapping_problems


def benchmark_problems(config: TrainConfig) -> list[str]:
    """Problems of the benchmark that a task model is trained on, or of one that is missing."""
    if (problems := choice_problems(config)) or config.benchmark is None:
        return problems
    benchmark = config.task_benchmark
    try:
        task_of(benchmark)
        data = data_of(config, TaskDataConfig)
        parts = training_parts(benchmark, data.max_examples, data.skip)
        for source in (*parts.train, *parts.eval.values()):
            source.check()
    except PotstillError as error:
        return [str(error)]
    return []


def choice_problems(config: TrainConfig) -> list[str]:
    """Problems of a benchmark that does not fit the objective, or is missing."""
    name, benchmark = config.objective.name, config.benchmark
    if not trains_task(config):
        if benchmark is None:
            return []
        given = benchmark.name
        return [f"benchmark={given}: objective={name} trains on a corpus; use objective=finetune, or benchmark=null"]
    if not isinstance(benchmark, TaskBenchmarkConfig):
        given = "null" if benchmark is None else benchmark.name
        return [
            f"benchmark={given}: objective={name} trains on a task; benchmark=sst2, or your own files by "
            "benchmark=text_classification benchmark.train_file=a.tsv benchmark.eval_file=b.tsv"
        ]
    return []


def evaluated_problems(config: EvaluateConfig, models: list[str]) -> list[str]:
    """Problems of the benchmark that task models are evaluated on, and of models without a head for it."""
    problems = []
    labels: tuple[str, ...] | None = None
    head: Head = "sequence"
    problem: Problem | None = None
    try:
        task = task_of(config.task_benchmark)
        head, problem = task.head, task.problem
        labels = task.labels if task.labels or task.kind == REGRESSION else None
        data = data_of(config, TaskDataConfig)
        for source in evaluated_parts(config.task_benchmark, data.max_examples, data.skip).values():
            source.check()
    except PotstillError as error:
        problems.append(str(error))
    for model in models:
        try:
            settings = read_settings("model", model)
        except PotstillError:
            continue  # reported where its sizes are read
        if own := settings_problem(settings) or problem_type_error(settings, head, problem):
            problems.append(f"model={model}: {own}")
            continue
        found = labels_from_settings(settings, head)
        if found is None or (labels is not None and label_order(found, labels) is None):
            problems.append(f"model={model}: {head_problem(found, labels, head)}")
        elif head == "tokens" and labels is None and (unnamed(found) or mixed_tags(found)):
            problems.append(
                f"model={model}: its labels {', '.join(found)} are no tags such as O or B-PER; give them in its order "
                "by benchmark.labels=[O,B-PER,...]"
            )
    return problems


def cost_problems(benchmark: EfficiencyConfig, model: str, spec: ModelSpec | None) -> list[str]:
    """Problems of the passes that are timed."""
    problems = [f"benchmark.{key}=[]: one number or more" for key in ("batches", "lengths") if not benchmark[key]]
    if spec and not problems and max(benchmark.lengths) > spec.max_length:
        problems.append(f"benchmark.lengths={list(benchmark.lengths)}: {model} reads at most {spec.max_length} tokens")
    return problems


def comparison_problems(config: EvaluateConfig, models: list[str], specs: list[ModelSpec | None]) -> list[str]:
    """Problems of a benchmark that compares models with the first one."""
    benchmark, exchange, key = config.benchmark, swaps_of(config.benchmark), "benchmark.interchange"
    masked = isinstance(benchmark, LanguageBenchmarkConfig) and benchmark.positions == "masked"
    problems = []
    if len(specs) < 2:
        problems.append(
            f"model={','.join(models)}: benchmark={benchmark.name} compares students with a teacher; "
            "model=[<teacher>,<student>]"
        )
    if isinstance(benchmark, TaskBenchmarkConfig) and exchange.positions == "masked":
        problems.append(f"{key}.positions=masked: a task model masks nothing; use consecutive or free")
    for spec in specs[1:]:
        if specs[0] and spec:
            problems += check_pair(specs[0], spec) or mapping_problems(exchange, specs[0], spec, key)
            if spec.kind == "causal" and masked:
                problems.append("benchmark.positions=masked: a causal language model masks nothing; use all")
    if exchange.untrained_layers is not None and specs[0]:
        problems += _untrained_problems(exchange, specs[0], key)
    return problems


def _untrained_problems(exchange: ComparedSwapConfig, teacher: ModelSpec, key: str) -> list[str]:
    """Problems of the layers of an untrained student, and of the mapping with so many blocks."""
    try:
        layers = check_layers(
            exchange.untrained_layers or [], teacher.depth, f"{key}.untrained_layers", teacher.model_type
        )
    except ConfigError as error:
        return [str(error)]
    return mapping_problems(exchange, teacher, replace(teacher, depth=len(layers)), key)
