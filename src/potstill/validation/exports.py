"""Problems of the forms that a model is to be exported to."""

from __future__ import annotations

from potstill.config import EvaluateConfig
from potstill.config.benchmarks import swaps_of
from potstill.errors import PotstillError
from potstill.runtime.packages import require_packages

ONNX, INT8 = "onnx", "int8"


def forms_of(config: EvaluateConfig) -> list[str]:
    """`export=` as a list; empty where nothing is exported."""
    if config.export is None:
        return []
    return [str(form) for form in config.export] if isinstance(config.export, list) else [str(config.export)]


def export_problems(config: EvaluateConfig) -> list[str]:
    """Problems of exports: unknown formats, missing packages, and features that exported models lack."""
    forms, problems = forms_of(config), []
    if unknown := [form for form in forms if form not in (ONNX, INT8)]:
        problems.append(f"export={unknown[0]}: {ONNX}, {INT8}, or both, [{ONNX},{INT8}]")
    if forms and swaps_of(config.benchmark).mapping is not None:
        problems.append(
            f"export={','.join(forms)}: benchmark={config.benchmark.name} swaps hidden states, which an exported model "
            "does not show; export=null"
        )
    if forms and not problems:
        try:
            require_packages("export", "export", "onnx", "onnxruntime", "onnxscript")
        except PotstillError as error:
            problems.append(str(error))
    return problems
