"""An evaluation: evaluate the models, compare them, and write the results into the run folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from potstill.config import EvaluateConfig
from potstill.evaluation.rows import Row
from potstill.methods import evaluator_of
from potstill.reporting.report import Collapsible, Section, Table, print_table, write_report
from potstill.runs.machine_errors import as_user_errors
from potstill.runs.summary import config_text, provenance, write_config, write_summary
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import quiet
from potstill.validation.names import named_models

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig, folder: Path) -> float | None:
    """Evaluate the models as configured; writes summary.json and report.html, prints the tables.

    Returns:
        The benchmark's deciding metric of the first row.

    Raises:
        PotstillError: models or data that cannot be used, too little memory, a process that was lost.
    """
    quiet()
    use_kernels()
    evaluator = evaluator_of(config)
    with as_user_errors(config):
        rows = evaluator.evaluate(config, named_models(config), folder)
        sections = evaluator.sections(config, rows)
    _write(config, folder, rows, sections)
    return rows[0].metrics.get(evaluator.deciding(config))


def _write(config: EvaluateConfig, folder: Path, rows: list[Row], sections: list[Section]) -> None:
    """Write the summary, the configuration and the report, and print the tables."""
    summary: dict[str, Any] = {}
    for row in rows:
        prefix = "" if len(rows) == 1 else f"{row.name}/"
        summary |= {f"{prefix}{name}": value for name, value in row.metrics.items()}
    summary |= provenance(config)
    write_config(folder, config)
    settings = Collapsible("Configuration", config_text(config))
    write_report(folder, title=f"benchmark={config.benchmark.name}", sections=[*sections, settings])
    write_summary(folder, summary)
    for section in sections:
        if isinstance(section, Table):
            print_table(section)
    log.info("%s", folder / "report.html")
