"""`benchmark=efficiency`: cost of each model, and tables that compare them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from potstill.config import EvaluateConfig
from potstill.config.benchmarks import efficiency_of
from potstill.errors import TokenizerError
from potstill.evaluation.efficiency import count_parameters, forward_gflop, forward_peak_mb, parameter_tree, size_mb
from potstill.evaluation.latency import STEADY, Latency, Timed, measure_latencies
from potstill.methods.common.data import local_tokenizer
from potstill.methods.common.exported_models import deploy
from potstill.models.heads import head_from_settings, labels_from_settings, problem_of
from potstill.models.load import load_language_model, load_task_model
from potstill.models.pretrained import local_folder
from potstill.models.sentence import EncoderModule, SentenceEncoder, load_sentence_model
from potstill.models.sentence_folders import MODULES, sentence_settings
from potstill.models.specs import read_settings
from potstill.reporting.report import Collapsible, Section, Table
from potstill.training.trainer import build_trainer

log = logging.getLogger(__name__)

PASSES = {"latency_ms": "p50 ms", "latency_p95_ms": "p95 ms", "tokens_per_second": "tokens/s"}
UNSTEADY = "~"  # prefix of a latency whose rounds disagree


class Costs(NamedTuple):
    """Figures of a model by name, its parameters by module, and the model to time."""

    figures: dict[str, Any]
    tree: list[tuple[int, str, int]]
    timed: Timed


def measure_costs(
    config: EvaluateConfig, name: str, model: str, folder: Path, forms: Sequence[str] = ()
) -> dict[str, Costs]:
    """Size, FLOPs and memory of a model and its exports, on the configured device and precision; not yet timed.

    `gflop` and `peak_mb` are of the smallest pass, the first of `benchmark.batches` and of `benchmark.lengths`.

    Args:
        config: of `evaluate.py`.
        name: of the model.
        model: a folder or hub id.
        folder: of the run.
        forms: of exports; they have the model's FLOPs, and no figure for memory.

    Returns:
        By name of the model and of each export.

    Raises:
        PotstillError: the model cannot be loaded or exported, or a text is too long for it.
    """
    benchmark = efficiency_of(config.benchmark)
    trainer = build_trainer(config.trainer, folder, callbacks=[], loggers=False)
    device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
    loaded = _load(model).to(device)
    inner: PreTrainedModel = loaded.model if isinstance(loaded, EncoderModule) else loaded
    first = benchmark.batches[0], benchmark.lengths[0]
    figures = size_figures(model, inner)
    with context():
        figures |= {"gflop": forward_gflop(loaded, *first), "peak_mb": forward_peak_mb(loaded, *first)}
    tree = parameter_tree(inner, benchmark.depth)
    loaded.cpu()
    found = {name: Costs(figures, tree, Timed(loaded, device, context))}
    if not forms:
        return found
    for form in deploy(forms, loaded, local_tokenizer("model", model), folder, name):
        own = {**figures, "peak_mb": None, **form.figures}
        found[f"{name} {form.form}"] = Costs(own, [], Timed(form.model))
    return found


def time_passes(config: EvaluateConfig, costs: dict[str, Costs]) -> None:
    """Add latency and throughput of all models, by batch and length, to their figures.

    `latency_ms` and so on are of the smallest pass; others have the pass in their names, `latency_ms_8x128`.

    Args:
        config: of `evaluate.py`.
        costs: by model; the first is the reference.
    """
    benchmark = efficiency_of(config.benchmark)
    for batch in benchmark.batches:
        for length in benchmark.lengths:
            found = timed_figures({name: own.timed for name, own in costs.items()}, batch, length)
            for name, figures in found.items():
                own = {**figures, "tokens_per_second": batch * length / figures["latency_ms"] * 1e3}
                first = {} if "latency_ms" in costs[name].figures else figures
                costs[name].figures.update(
                    {**first, **{f"{key}_{batch}x{length}": value for key, value in own.items()}}
                )


def timed_figures(models: dict[str, Timed], batch: int, length: int) -> dict[str, dict[str, float]]:
    """Latencies by model; warns if the rounds disagree.

    Args:
        models: by name; the first is the reference.
        batch: sequences per pass.
        length: tokens per sequence.
    """
    found = dict(zip(models, measure_latencies(list(models.values()), batch, length), strict=True))
    if unsteady := [name for name, own in found.items() if not own.is_steady]:
        log.warning(
            "latency of %d x %d tokens: the rounds disagree (%s), probably because of other processes; figures with %s "
            "are imprecise",
            batch, length, ", ".join(f"{name}: +-{found[name].error:.0%}" for name in unsteady), UNSTEADY,
        )  # fmt: skip
    return {name: _figures(own, compared=len(models) > 1) for name, own in found.items()}


def _figures(own: Latency, compared: bool) -> dict[str, float]:
    ratio = {"latency_ratio": own.ratio} if compared else {}
    return {"latency_ms": own.p50, "latency_p95_ms": own.p95, **ratio, "latency_error": own.error}


def latency_cell(figures: dict[str, Any], name: str = "latency_ms") -> str:
    """A latency as a table cell, marked if the rounds disagree."""
    error = figures[name.replace("latency_p95_ms", "latency_error").replace("latency_ms", "latency_error")]
    return f"{UNSTEADY if error > STEADY else ''}{figures[name]:.2f}"


def cost_sections(config: EvaluateConfig, costs: dict[str, Costs]) -> list[Section]:
    """A table of the models compared with the first, one of all passes, and each model's parameters by module."""
    names, benchmark = list(costs), efficiency_of(config.benchmark)
    base = costs[names[0]].figures
    keys = {"parameters": "parameters", "parameters_without_embeddings": "without embeddings", "size_mb": "MB",
            "gflop": "GFLOP", "peak_mb": "peak MB"}  # fmt: skip
    columns, rows = ["model", *keys.values(), "latency ms"], []
    for name, (figures, *_) in costs.items():
        rows.append([name, *(figures[key] for key in keys), latency_cell(figures)])
        if len(costs) > 1:
            saved = 1 - figures["parameters"] / base["parameters"], 1 - figures["latency_ratio"]
            rows[-1] += [f"{share:.0%}" for share in saved]
    if len(costs) > 1:
        columns += ["smaller", "faster"]
    note = (
        f"GFLOP, peak memory (without weights) and median latency of {benchmark.batches[0]} x {benchmark.lengths[0]} "
        f"tokens; {config.trainer.accelerator}, {config.trainer.precision}. {UNSTEADY}: the rounds disagree."
    )
    if len(costs) > 1:
        note += f" Smaller and faster: parameters and time saved compared with {names[0]}, measured in alternation."
    passes = []
    for batch in benchmark.batches:
        for length in benchmark.lengths:
            here = f"{batch}x{length}"
            for name, (figures, *_) in costs.items():
                times = [latency_cell(figures, f"{key}_{here}") for key in ("latency_ms", "latency_p95_ms")]
                speed = 1 / figures.get(f"latency_ratio_{here}", 1.0)
                passes.append([name, batch, length, *times, figures[f"tokens_per_second_{here}"], f"{speed:.2f}"])
    return [
        Table(f"benchmark={benchmark.name}", columns, rows, note),
        Table("Passes", ["model", "batch", "length", *PASSES.values(), "speed"], passes, f"Speed: over {names[0]}'s."),
        *(Collapsible(f"{name}: parameters", _tree_text(tree)) for name, (_, tree, _) in costs.items() if tree),
    ]


def size_figures(model: str | None, loaded: PreTrainedModel) -> dict[str, Any]:
    """Parameters, and MB of weights: on disk for folders, otherwise in memory."""
    counts, folder = count_parameters(loaded), local_folder("model", model) if model else None
    return {
        "parameters": counts["total"],
        "parameters_without_embeddings": counts["without_embeddings"],
        "size_mb": size_mb(folder) if folder else sum(p.nbytes for p in loaded.parameters()) / 1e6,
    }


def _load(model: str) -> Any:
    """A model with its own head, or a sentence encoder."""
    settings = read_settings("model", model)
    head, labels = head_from_settings(settings), labels_from_settings(settings)
    if head is None or labels is None:
        if (folder := _encoder_folder(model)) is not None:
            own = sentence_settings(f"model={model}", folder)
            return EncoderModule(SentenceEncoder(load_sentence_model("model", model, folder, own), own))
        return load_language_model("model", model, need_head=False)
    problem = problem_of(settings) if head == "sequence" else None
    return load_task_model("model", model, labels=labels, head=head, problem=problem, need_head=True)


def _encoder_folder(model: str) -> Path | None:
    """The folder of a sentence encoder; None of other models."""
    folder = local_folder("model", model)
    if folder is None:
        try:
            folder = Path(local_tokenizer("model", model))
        except TokenizerError:
            return None
    return folder if (folder / MODULES).is_file() else None


def _tree_text(tree: list[tuple[int, str, int]]) -> str:
    total = tree[0][2]
    return "\n".join(
        f"{count:>15,} {count / total:>6.1%}  {'  ' * depth}{name.rpartition('.')[2]}" for depth, name, count in tree
    )
