"""Evaluation of sentence encoders: on scored pairs, and in retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from potstill.config import EvaluateConfig
from potstill.config.data import SequenceDataConfig
from potstill.evaluation.bootstrap import LEVEL, paired_bootstrap
from potstill.evaluation.encoders import Measured
from potstill.evaluation.latency import Timed
from potstill.evaluation.rows import Row, add_difference_column, add_differences
from potstill.methods.common.candidates import evaluated
from potstill.methods.common.comparison import (
    LATENCY_NOTE,
    LONGEST_TIMED,
    add_latencies,
    cost_columns,
    evaluation_trainer,
    form_name,
    quality_against_latency,
)
from potstill.methods.common.costs import size_figures
from potstill.methods.common.exported_models import Deployed, deploy
from potstill.methods.embedding.benchmarks import benchmark_of, benchmark_rows
from potstill.methods.embedding.models import open_encoder
from potstill.models.export.runtime import ExportedModel
from potstill.models.sentence import EncoderModule, SentenceEncoder
from potstill.reporting.report import Section, Table
from potstill.teacher_cache.computing import frozen
from potstill.validation.names import stem_of


class ExportedEncoder(SentenceEncoder):
    """A sentence encoder whose vectors an exported model makes."""

    def __init__(self, source: SentenceEncoder, exported: ExportedModel) -> None:
        super().__init__(source.backbone.model, replace(source.settings, static=False))
        self.exported = exported

    def __call__(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """See `SentenceEncoder`."""
        return self.exported(input_ids_BL, attention_mask_BL)


def evaluate(config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
    """Rows of the models and their exports; writes what each found, predictions, with its name where there are several.

    Raises:
        PotstillError: a model that cannot be used or exported.
    """
    data, rows = config.data, list[Row]()
    limits = (data.max_examples, data.skip) if isinstance(data, SequenceDataConfig) else (data.max_examples, None)
    found = benchmark_rows(config, limits)
    device = evaluation_trainer(config, folder).strategy.root_device
    for name, value, forms, _ in evaluated(config, models):
        side, limit = open_encoder("model", value)
        length = limit
        if isinstance(data, SequenceDataConfig) and data.max_length is not None:
            length = min(limit, data.max_length)
        benchmark = benchmark_of(config, found, side.vocabulary, side.settings, length)
        module = EncoderModule(side.encoder)
        exported = [*deploy(forms, module, side.vocabulary.path, folder, name)]  # before its precision changes
        encoders: list[tuple[Deployed | None, SentenceEncoder]] = [(None, side.encoder)]
        encoders += [(form, ExportedEncoder(side.encoder, form.model)) for form in exported]
        figures = {"width": side.encoder.width, **size_figures(value, side.model)}
        with frozen(side.model, config.trainer.precision, device):
            measured = [benchmark.measure(encoder) for _, encoder in encoders]
        module.cpu()
        for (form, _), own in zip(encoders, measured, strict=True):
            ends = [] if len(models) + len(forms) == 1 else [stem_of(form_name(name, form))]
            own.write(folder / "_".join(["predictions", *ends]))
            timed = Timed(module, device) if form is None else Timed(form.model)
            rows.append(
                _row(config, form_name(name, form), own, figures | (form.figures if form else {}), timed, length)
            )
    add_latencies(rows)
    add_differences(rows, f"test/{config.benchmark.monitor}")
    return rows


def _row(
    config: EvaluateConfig, name: str, measured: Measured, sizes: dict[str, Any], timed: Timed, length: int
) -> Row:
    """A row with the metrics and the interval of the one that decides."""
    monitor = f"test/{config.benchmark.monitor}"
    metric = measured.metric(config.benchmark.monitor)
    interval = paired_bootstrap(metric, lambda _: 0.0, len(measured))
    figures: dict[str, Any] = {f"test/{own}": score for own, score in measured.figures().items()}
    figures |= {f"{monitor}_low": interval.low, f"{monitor}_high": interval.high, **sizes}
    extra = (measured.metrics, measured.examples)
    return Row(
        name,
        figures,
        metric=metric,
        examples=len(measured),
        timed=timed,
        length=min(LONGEST_TIMED, length),
        extra=extra,
    )


def sections(config: EvaluateConfig, rows: list[Row]) -> list[Section]:
    """A table of the models with the interval of the deciding metric, and quality against latency."""
    monitor = f"test/{config.benchmark.monitor}"
    names, examples = rows[0].extra
    named, costs = cost_columns(rows)
    columns = ["model", "width", *named, *names, f"share of {rows[0].name}", f"{LEVEL:.0%} interval"]
    cells: list[list[Any]] = []
    for row, own in zip(rows, costs, strict=True):
        low, high = (row.metrics[f"{monitor}_{end}"] for end in ("low", "high"))
        scores = [row.metrics[f"test/{name}"] for name in names]
        share = f"{row.metrics[monitor] / rows[0].metrics[monitor]:.1%}" if rows[0].metrics[monitor] else ""
        cells.append([row.name, row.metrics["width"], *own, *scores, share, f"{low:.4f} to {high:.4f}"])
    note = f"{rows[0].examples:,} {examples}; {LATENCY_NOTE} "
    note += f"Share and interval (by a bootstrap) are of {config.benchmark.monitor}."
    note += add_difference_column(columns, cells, rows, monitor, examples)
    table = Table(f"benchmark={config.benchmark.name}", columns, cells, note)
    return [table, *quality_against_latency(config, rows, monitor)]
