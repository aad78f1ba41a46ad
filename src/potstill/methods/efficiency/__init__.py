"""`benchmark=efficiency`: the cost of models, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from potstill.data.tasks.splits import EFFICIENCY
from potstill.methods.base import Evaluator
from potstill.methods.common.checks import evaluation_problems
from potstill.validation.benchmarks import cost_faults, unread_faults
from potstill.validation.data import data_faults
from potstill.validation.exports import forms_of
from potstill.validation.models import spec_of

if TYPE_CHECKING:
    from potstill.evaluation.rows import Row
    from potstill.reporting.report import Section


class EfficiencyEvaluator(Evaluator):
    """Parameters, size, arithmetic, memory and latency of models."""

    def applies(self, config: DictConfig) -> bool:
        """With `benchmark=efficiency`."""
        return bool(config.benchmark.task == EFFICIENCY)

    def problems(self, config: DictConfig, models: Sequence[str]) -> list[str]:
        """User errors of passes and models."""
        own = data_faults(config.data, evaluating=True, corpus=False)
        own += unread_faults(config.benchmark)
        for model in models:
            own += cost_faults(config.benchmark, model, spec_of("model", model, []))
        return evaluation_problems(config, models, own)

    def evaluate(self, config: DictConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """Costs of every model and of its exported forms; the models are timed in turn."""
        from potstill.evaluation.rows import Row
        from potstill.methods.common.costs import Costs, measure_costs, time_passes

        costs: dict[str, Costs] = {}
        for name, model in models.items():
            forms = forms_of(config) if costs or len(models) == 1 else []
            costs |= measure_costs(config, name, model, folder, forms)
        time_passes(config, costs)
        return [Row(name, own.figures, extra=own) for name, own in costs.items()]

    def sections(self, config: DictConfig, rows: list[Row]) -> list[Section]:
        """Tables of costs."""
        from potstill.methods.common.costs import cost_sections

        return cost_sections(config, {row.name: row.extra for row in rows})

    def deciding(self, config: DictConfig) -> str:
        """The benchmark's metric, without a prefix."""
        return str(config.benchmark.monitor)
