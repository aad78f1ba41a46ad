"""Evaluation of what decoders write: samples of a run, metrics of several models."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from potstill.config import EvaluateConfig
from potstill.config.benchmarks import generation_benchmark_of
from potstill.evaluation.bootstrap import LEVEL, paired_bootstrap
from potstill.evaluation.generation import SAMPLE_COLUMNS
from potstill.evaluation.rows import Row, add_difference_column, add_differences
from potstill.methods.common.comparison import as_text, evaluation_trainer
from potstill.methods.common.costs import size_figures
from potstill.methods.generative.build import build_generation_evaluation
from potstill.reporting.report import Section, Table
from potstill.training.generative import GenerativeDistillation
from potstill.validation.names import stem_of

SAMPLES = 8  # rows that are shown
_COLUMNS = ("exact_match", "rouge_l", "perplexity", "completion_tokens")


def samples_of(module: GenerativeDistillation, title: str = "Samples") -> Table:
    """The first rows with what the model writes, greedily."""
    evaluator = module.generation.evaluator
    assert evaluator is not None
    written = module.written or module.write(evaluator.numbers[:SAMPLES])
    return Table(title, SAMPLE_COLUMNS, evaluator.samples(written, SAMPLES), "The first rows of the evaluation.")


def evaluate(config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
    """Rows of the models; writes predictions.jsonl, with the model's name where there are several."""
    monitor = f"test/{config.benchmark.monitor}"
    rows = [_evaluate(config, name, model, folder, len(models) == 1) for name, model in models.items()]
    for row in rows:
        if row.metric is not None:  # the interval of a metric is that of its difference to nothing
            found = paired_bootstrap(row.metric, lambda _: 0.0, row.examples)
            row.metrics.update({f"{monitor}_low": found.low, f"{monitor}_high": found.high})
    add_differences(rows, monitor)
    return rows


def _evaluate(config: EvaluateConfig, name: str, model: str, folder: Path, only: bool) -> Row:
    evaluation = build_generation_evaluation(config, model)
    trainer = evaluation_trainer(config, folder)
    began = time.perf_counter()
    found = trainer.validate(evaluation.module, datamodule=evaluation.data, verbose=False)[0]
    seconds = time.perf_counter() - began
    written, evaluator = evaluation.module.written, evaluation.evaluator
    ends = [] if only else [stem_of(name)]
    evaluator.write(folder / f"{'_'.join(['predictions', *ends])}.jsonl", written)
    own = {key.replace("val/", "test/", 1): value for key, value in found.items() if not key.startswith("val/loss")}
    figures: dict[str, Any] = {**own, "examples": len(written), "examples_per_second": len(written) / seconds}
    figures |= size_figures(model, evaluation.module.student)
    scores = evaluator.scores(written)[config.benchmark.monitor]
    numbers = np.array([evaluation.data.evaluation.rows[n] for n in sorted(written)])  # type: ignore[union-attr]
    return Row(
        name,
        figures,
        metric=(lambda rows: float(scores[rows].mean())) if len(scores) else None,
        examples=len(scores),
        pairing=numbers.tobytes(),
        extra=samples_of(evaluation.module, f"Samples of {name}") if written else None,
    )


def sections(config: EvaluateConfig, rows: list[Row]) -> list[Section]:
    """A table of the models with the interval of the deciding metric, and samples of each."""
    monitor, benchmark = f"test/{config.benchmark.monitor}", generation_benchmark_of(config.benchmark)
    columns = ["model", *_COLUMNS, f"{LEVEL:.0%} interval", "parameters", "MB", "examples/s"]
    cells: list[list[Any]] = []
    for row in rows:
        low, high = (row.metrics.get(f"{monitor}_{end}") for end in ("low", "high"))
        costs = [row.metrics[key] for key in ("parameters", "size_mb", "examples_per_second")]
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        cells.append([row.name, *(row.metrics.get(f"test/{key}") for key in _COLUMNS), interval, *costs])
    note = (
        f"{config.data.name}: greedy completions of at most {benchmark.max_new_tokens} tokens; the interval is of "
        f"{benchmark.monitor}, by a bootstrap over the rows."
    )
    note += add_difference_column(columns, cells, rows, monitor, "rows")
    return [
        Table(f"benchmark={benchmark.name}", columns, cells, note),
        *(as_text(row.extra) for row in rows if row.extra),
    ]
