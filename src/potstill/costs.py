"""`benchmark=efficiency`: what each model costs, and the tables that set one against another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import nn
from transformers import PreTrainedModel

from potstill.build import build_trainer
from potstill.build.data import local_tokenizer
from potstill.deployment import deploy
from potstill.evaluation.efficiency import (
    count_parameters,
    forward_gflop,
    forward_peak_mb,
    latency_ms,
    parameter_tree,
    size_mb,
)
from potstill.evaluation.report import Collapsible, Section, Table
from potstill.models.head_labels import head_from_settings, labels_from_settings
from potstill.models.head_problems import problem_of
from potstill.models.load import load_language_model, load_task_model
from potstill.models.specs import local_folder, read_settings

PASSES = {"latency_ms": "p50 ms", "latency_p95_ms": "p95 ms", "tokens_per_second": "tokens/s"}


class Costs(NamedTuple):
    """Figures of a model by name, and its parameters by module."""

    figures: dict[str, Any]
    tree: list[tuple[int, str, int]]


def measure_costs(
    config: DictConfig, name: str, model: str, folder: Path, forms: Sequence[str] = ()
) -> dict[str, Costs]:
    """Size, arithmetic and memory of a model, and how long it takes on the configured device and in its precision.

    `latency_ms`, `gflop` and `peak_mb` are of the smallest pass, the first of `benchmark.batches` and of
    `benchmark.lengths`; the others have the pass in their names, `latency_ms_8x128`.

    Args:
        config: of `evaluate.py`.
        name: of the model.
        model: a folder or hub id.
        folder: of the run.
        forms: that it is exported to, each measured beside it. They do its arithmetic; their memory is not known.

    Returns:
        By name, of the model and of each form.

    Raises:
        PotstillError: a model that cannot be loaded, read so long a text, or be exported.
    """
    benchmark = config.benchmark
    trainer = build_trainer(config.trainer, folder, callbacks=[], loggers=False)
    loaded = _load(model).to(trainer.strategy.root_device)  # type: ignore[arg-type]
    first = benchmark.batches[0], benchmark.lengths[0]
    figures = size_figures(model, loaded)
    with trainer.precision_plugin.forward_context():
        figures |= {"gflop": forward_gflop(loaded, *first), "peak_mb": forward_peak_mb(loaded, *first)}
        passes = _passes(benchmark, loaded)
    tree = parameter_tree(loaded, benchmark.depth)
    found = {name: Costs(figures | passes, tree)}
    if not forms:
        return found
    for form in deploy(forms, loaded.cpu(), local_tokenizer("model", model), folder, name):
        own = {**figures, "peak_mb": None, **form.figures, **_passes(benchmark, form.model)}
        found[f"{name} {form.form}"] = Costs(own, [])
    return found


def _passes(benchmark: DictConfig, model: nn.Module) -> dict[str, float]:
    """Latency and throughput over batch and length."""
    figures: dict[str, float] = {}
    for batch in benchmark.batches:
        for length in benchmark.lengths:
            found, name = latency_ms(model, batch, length), f"{batch}x{length}"
            figures.setdefault("latency_ms", found["p50"])
            figures |= {
                f"latency_ms_{name}": found["p50"],
                f"latency_p95_ms_{name}": found["p95"],
                f"tokens_per_second_{name}": batch * length / found["p50"] * 1e3,
            }
    return figures


def cost_sections(config: DictConfig, costs: dict[str, Costs]) -> list[Section]:
    """A table of the models against the first, one of all passes, and each model's parameters by module.

    Args:
        config: of `evaluate.py`.
        costs: by the models' names.
    """
    names, benchmark = list(costs), config.benchmark
    base = costs[names[0]].figures
    keys = {"parameters": "parameters", "parameters_without_embeddings": "without embeddings", "size_mb": "MB",
            "gflop": "GFLOP", "peak_mb": "peak MB", "latency_ms": "latency ms"}  # fmt: skip
    columns, rows = ["model", *keys.values()], []
    for name, (figures, _) in costs.items():
        rows.append([name, *(figures[key] for key in keys)])
        if len(costs) > 1:
            rows[-1] += [f"{1 - figures[key] / base[key]:.0%}" for key in ("parameters", "latency_ms")]
    if len(costs) > 1:
        columns += ["smaller", "faster"]
    note = (
        f"GFLOP, peak memory (weights left out) and median latency of {benchmark.batches[0]} x {benchmark.lengths[0]} "
        f"tokens; {config.trainer.accelerator}, {config.trainer.precision}."
    )
    if len(costs) > 1:
        note += f" Smaller: parameters saved of {names[0]}'s; faster: time saved."
    passes = []
    for batch in benchmark.batches:
        for length in benchmark.lengths:
            here = f"{batch}x{length}"
            for name, (figures, _) in costs.items():
                speed = base[f"latency_ms_{here}"] / figures[f"latency_ms_{here}"]
                own = [figures[f"{key}_{here}"] for key in PASSES]
                passes.append([name, batch, length, *own, f"{speed:.2f}"])
    return [
        Table(f"benchmark={benchmark.name}", columns, rows, note),
        Table(
            "Passes",
            ["model", "batch", "length", *PASSES.values(), "speed"],
            passes,
            f"Speed: over {names[0]}'s.",
        ),
        *(Collapsible(f"{name}: parameters", _drawn(tree)) for name, (_, tree) in costs.items() if tree),
    ]


def size_figures(model: str, loaded: PreTrainedModel) -> dict[str, Any]:
    """Parameters, and MB of weights: on disk where the model is a folder, else as loaded."""
    counts, folder = count_parameters(loaded), local_folder("model", model)
    return {
        "parameters": counts["total"],
        "parameters_without_embeddings": counts["without_embeddings"],
        "size_mb": size_mb(folder) if folder else sum(p.nbytes for p in loaded.parameters()) / 1e6,
    }


def _load(model: str) -> PreTrainedModel:
    """A model with the head that it has."""
    settings = read_settings("model", model)
    head, labels = head_from_settings(settings), labels_from_settings(settings)
    if head is None or labels is None:
        return load_language_model("model", model, need_head=False)
    problem = problem_of(settings) if head == "sequence" else None
    return load_task_model("model", model, labels=labels, head=head, problem=problem, need_head=True)


def _drawn(tree: list[tuple[int, str, int]]) -> str:
    whole = tree[0][2]
    return "\n".join(
        f"{count:>15,} {count / whole:>6.1%}  {'  ' * depth}{name.rpartition('.')[2]}"
        for depth, name, count in tree
    )
