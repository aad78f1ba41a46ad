"""`benchmark=efficiency`: the cost of models, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.config import EvaluateConfig
from potstill.config.benchmarks import EfficiencyConfig, efficiency_of
from potstill.methods.base import Evaluator
from potstill.methods.common.checks import evaluation_problems
from potstill.validation.benchmarks import cost_problems
from potstill.validation.exports import forms_of
from potstill.validation.models import spec_of

if TYPE_CHECKING:
    from potstill.evaluation.rows import Row
    from potstill.reporting.report import Section


class EfficiencyEvaluator(Evaluator):
    """Parameters, size, arithmetic, memory and latency of models."""

    def applies(self, config: EvaluateConfig) -> bool:
        """With `benchmark=efficiency`."""
        return isinstance(config.benchmark, EfficiencyConfig)

    def problems(self, config: EvaluateConfig, models: Sequence[str]) -> list[str]:
        """User errors of passes and models."""
        own: list[str] = []
        for model in models:
            own += cost_problems(efficiency_of(config.benchmark), model, spec_of("model", model, []))
        return evaluation_problems(config, models, own)

    def evaluate(self, config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """Costs of every model and of its exported forms; the models are timed in turn."""
        from potstill.evaluation.rows import Row
        from potstill.methods.common.costs import Costs, measure_costs, time_passes

        costs: dict[str, Costs] = {}
        for name, model in models.items():
            forms = forms_of(config) if costs or len(models) == 1 else []
            costs |= measure_costs(config, name, model, folder, forms)
        time_passes(config, costs)
        return [Row(name, own.figures, extra=own) for name, own in costs.items()]

    def sections(self, config: EvaluateConfig, rows: list[Row]) -> list[Section]:
        """Tables of costs."""
        from potstill.methods.common.costs import cost_sections

        return cost_sections(config, {row.name: row.extra for row in rows})

    def deciding(self, config: EvaluateConfig) -> str:
        """The benchmark's metric, without a prefix."""
        return str(config.benchmark.monitor)
