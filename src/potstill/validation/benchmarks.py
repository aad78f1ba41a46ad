"""Faults of a benchmark: to train a task model on, to judge models on, to compare them on."""

from __future__ import annotations

from omegaconf import DictConfig

from potstill.config.benchmarks import BenchmarkConfig
from potstill.config.defaults import trains_task
from potstill.data.tasks.entities import BIO, BIOES, mixed_tags
from potstill.data.tasks.labels import CLASSIFICATION, REGRESSION, SPANS, TOKENS
from potstill.data.tasks.splits import SCRIPTS, is_task, judged_parts, task_of, training_parts
from potstill.data.tasks.token_features import CUT, SPLIT
from potstill.errors import PotstillError
from potstill.models.head_labels import Head, head_fault, label_order, labels_from_settings, unnamed
from potstill.models.head_problems import Problem, problem_fault, settings_fault
from potstill.models.specs import ModelSpec, check_pair, read_settings
from potstill.validation.interchange import interchange_faults, mapping_faults

# The keys of `benchmark` that some kinds of task alone read.
_READ_BY = {
    (CLASSIFICATION, REGRESSION): ("text_columns", "label_column", "aliases", "skip_broken"),
    (CLASSIFICATION,): ("multi_label", "label_separator"),
    (TOKENS,): ("token_column", "tag_column", "scheme", "too_long"),
    (SPANS,): (
        "stride", "max_question_length", "max_answer_length", "n_best", "answer_metric", "null_threshold",
    ),
}  # fmt: skip


def benchmark_faults(config: DictConfig) -> list[str]:
    """Of what a task model is trained on, and of an objective that has or lacks a benchmark."""
    name, benchmark = config.objective.name, config.benchmark
    if not trains_task(config):
        if benchmark is None:
            return []
        given = benchmark.get("name") or "null"
        return [
            f"benchmark={given}: objective={name} trains on a corpus; use objective=finetune, or benchmark=null"
        ]
    if not is_task(benchmark):
        given = "null" if benchmark is None else benchmark.name
        return [
            f"benchmark={given}: objective={name} trains on a task; benchmark=sst2, or your own files by "
            "benchmark=text_classification benchmark.train_file=a.tsv benchmark.eval_file=b.tsv"
        ]
    if faults := kind_faults(benchmark):
        return faults
    try:
        task_of(benchmark)
        parts = training_parts(benchmark, config.data.max_examples, config.data.skip)
        for source in (*parts.train, *parts.eval.values()):
            source.check()
    except PotstillError as fault:
        return [str(fault)]
    return []


def judged_faults(config: DictConfig, models: list[str]) -> list[str]:
    """Of what a task model is judged on, and of models without a head for it."""
    faults = kind_faults(config.benchmark)
    labels: tuple[str, ...] | None = None
    head: Head = "sequence"
    problem: Problem | None = None
    try:
        task = task_of(config.benchmark)
        head, problem = task.head, task.problem
        labels = task.labels if task.labels or task.kind == REGRESSION else None
        for source in judged_parts(config.benchmark, config.data.max_examples, config.data.skip).values():
            source.check()
    except PotstillError as fault:
        faults.append(str(fault))
    for model in models:
        try:
            settings = read_settings("model", model)
        except PotstillError:
            continue  # reported where its sizes are read
        if own := settings_fault(settings) or problem_fault(settings, head, problem):
            faults.append(f"model={model}: {own}")
            continue
        found = labels_from_settings(settings, head)
        if found is None or (labels is not None and label_order(found, labels) is None):
            faults.append(f"model={model}: {head_fault(found, labels, head)}")
        elif head == "tokens" and labels is None and (unnamed(found) or mixed_tags(found)):
            faults.append(
                f"model={model}: its labels {', '.join(found)} are no tags such as O or B-PER; give them in its order "
                "by benchmark.labels=[O,B-PER,...]"
            )
    return faults


def unread_faults(benchmark: DictConfig) -> list[str]:
    """Of keys that benchmarks of other kinds read."""
    known = BenchmarkConfig()
    return [
        f"benchmark.{key}={benchmark[key]}: is read by a benchmark of {' or '.join(kinds)}, {benchmark.name} is of "
        f"{benchmark.task}; leave it out"
        for kinds, keys in _READ_BY.items()
        if benchmark.task not in kinds
        for key in keys
        if benchmark[key] != getattr(known, key)
    ]


def kind_faults(benchmark: DictConfig) -> list[str]:
    """Of the keys that one kind of task alone has."""
    faults = unread_faults(benchmark)
    for name, known in (
        ("scheme", (None, BIO, BIOES)),
        ("too_long", (SPLIT, CUT)),
        ("answer_metric", SCRIPTS),
    ):
        if benchmark[name] not in known:
            faults.append(
                f"benchmark.{name}={benchmark[name]}: one of {', '.join(str(own or 'null') for own in known)}"
            )
    return faults


def cost_faults(benchmark: DictConfig, model: str, spec: ModelSpec | None) -> list[str]:
    """Of the passes that are timed."""
    faults = [
        f"benchmark.{key}=[]: one number or more" for key in ("batches", "lengths") if not benchmark[key]
    ]
    if benchmark.interchange.mapping is not None:
        faults.append(
            f"benchmark.interchange.mapping={benchmark.interchange.mapping}: nothing is swapped where costs are "
            "measured; use benchmark=interchange, or null"
        )
    if spec and not faults and max(benchmark.lengths) > spec.max_length:
        faults.append(
            f"benchmark.lengths={list(benchmark.lengths)}: {model} reads at most {spec.max_length} tokens"
        )
    return faults


def comparison_faults(config: DictConfig, models: list[str], specs: list[ModelSpec | None]) -> list[str]:
    """Of a benchmark that compares models with the first one."""
    exchange, key = config.benchmark.interchange, "benchmark.interchange"
    faults = interchange_faults(exchange, key)
    if config.benchmark.positions not in ("all", "masked"):
        faults.append(f"benchmark.positions={config.benchmark.positions}: all or masked")
    if len(specs) < 2:
        faults.append(
            f"model={','.join(models)}: benchmark={config.benchmark.name} compares students with a teacher; "
            "model=[<teacher>,<student>]"
        )
    if is_task(config.benchmark) and "masked" in (exchange.positions, config.benchmark.positions):
        faults.append(f"{key}.positions=masked: a task model masks nothing; use consecutive or free")
    if config.benchmark.task == REGRESSION:
        faults.append(
            f"{key}: two scores are never the same; agreement is of classifiers and language models"
        )
    for spec in specs[1:]:
        if specs[0] and spec:
            faults += check_pair(specs[0], spec) or mapping_faults(exchange, specs[0], spec, key)
            if spec.kind == "causal" and config.benchmark.positions == "masked":
                faults.append("benchmark.positions=masked: a causal language model masks nothing; use all")
    return faults
