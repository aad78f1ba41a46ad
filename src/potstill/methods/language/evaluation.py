"""Evaluation of language models: perplexity, and agreement under interventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.config import EvaluateConfig
from potstill.config.benchmarks import swaps_of
from potstill.evaluation.bootstrap import Metric
from potstill.evaluation.rows import Row, add_difference_column, add_differences
from potstill.interchange.agreement import AGREEMENT, CHANGED, UNSWAPPED
from potstill.methods.common.candidates import evaluated, reference_of
from potstill.methods.common.comparison import (
    LATENCY_NOTE,
    add_latencies,
    agreement_maps,
    cost_columns,
    each_form,
    evaluation_trainer,
    form_name,
    quality_against_latency,
    sized,
)
from potstill.methods.language.build import build_language_evaluation
from potstill.reporting.report import Section, Table
from potstill.validation.names import models_of


def evaluate(config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
    """Rows of the models and of their exported forms."""
    reference, rows = reference_of(config, models), []
    for name, model, forms, control in evaluated(config, models):
        evaluation = build_language_evaluation(config, model, reference, control)
        trainer = evaluation_trainer(config, folder)
        for form in each_form(evaluation, forms, folder, name):
            evaluation.module.sequences = [] if reference is None else None
            metrics = trainer.validate(evaluation.module, datamodule=evaluation.data, verbose=False)[0]
            own = {key.removeprefix("val/"): value for key, value in metrics.items()}
            row = sized(Row(form_name(name, form), own), trainer, evaluation, None if control else model, form)
            if sequences := evaluation.module.sequences:
                nats, positions = (torch.cat(side).cpu().numpy() for side in zip(*sequences, strict=True))
                row = replace(row, metric=_perplexity(nats, positions), examples=len(nats), pairing=positions.tobytes())
            rows.append(row)
    add_latencies(rows)
    add_differences(rows, config.benchmark.monitor)
    return rows


def _perplexity(nats: NDArray, positions: NDArray) -> Metric:
    """Perplexity as a function of the sequences that count."""
    return lambda rows: float(np.exp(nats[rows].sum() / max(positions[rows].sum(), 1)))


def sections(config: EvaluateConfig, rows: list[Row]) -> list[Section]:
    """A table of the models, and plots."""
    plots = quality_against_latency(config, rows, config.benchmark.monitor)
    if swaps_of(config.benchmark).mapping is None:
        return [_comparison(config, rows), *plots]
    return [_agreement_table(config, rows), *plots, *agreement_maps(config, rows, "")]


def _comparison(config: EvaluateConfig, rows: list[Row]) -> Table:
    monitor, mode = config.benchmark.monitor, config.benchmark.mode
    reference = rows[0].metrics[monitor]
    named, costs = cost_columns(rows)
    columns = ["model", *named, monitor, f"share of {rows[0].name}"]
    cells: list[list[Any]] = []
    for row, (parameters, size, *latency) in zip(rows, costs, strict=True):
        value = row.metrics[monitor]
        share = reference / value if mode == "min" else value / reference
        cells.append([row.name, f"{parameters:,}", f"{size:.1f}", *latency, f"{value:.2f}", f"{share:.1%}"])
    note = f"{monitor} on {config.data.name}; {LATENCY_NOTE} Share: " + (
        f"the reference's {monitor} over the model's."
        if mode == "min"
        else f"the model's {monitor} over the reference's."
    )
    note += add_difference_column(columns, cells, rows, monitor, "sequences")
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)


def _agreement_table(config: EvaluateConfig, rows: list[Row]) -> Table:
    named, costs = cost_columns(rows)
    columns = ["model", *named, "agreement", "KL nats", "followed", "unswapped", "perplexity"]
    shown = (*AGREEMENT, UNSWAPPED, "perplexity")
    cells = [[row.name, *own, *(row.metrics.get(key) for key in shown)] for row, own in zip(rows, costs, strict=True)]
    changed = rows[0].metrics.get(CHANGED)
    exchange = swaps_of(config.benchmark)
    note = (
        f"Counterfactual predictions against those of {models_of(config)[0]} on {config.data.name}, mean over the "
        f"mappings ({exchange.mapping}); {exchange.proportion:.0%} {exchange.positions} positions swapped within pairs."
        f" Followed: agreement where the swap changes the reference's prediction"
        + ("" if changed is None else f" ({changed:.1%} of the predictions)")
        + "; unswapped: agreement without a swap."
    )
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)
