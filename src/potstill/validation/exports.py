"""Faults of the forms that a model is to be exported to."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from potstill.errors import PotstillError
from potstill.models.export.folders import require_packages

ONNX, INT8 = "onnx", "int8"


def forms_of(config: DictConfig) -> list[str]:
    """`export=` as a list; empty where nothing is exported."""
    if config.export is None:
        return []
    return [str(form) for form in config.export] if OmegaConf.is_list(config.export) else [str(config.export)]


def export_faults(config: DictConfig) -> list[str]:
    """Of unknown forms, of packages that are not installed, and of what an exported model cannot do."""
    forms, faults = forms_of(config), []
    if unknown := [form for form in forms if form not in (ONNX, INT8)]:
        faults.append(f"export={unknown[0]}: {ONNX}, {INT8}, or both, [{ONNX},{INT8}]")
    if forms and config.benchmark.interchange.mapping is not None:
        faults.append(
            f"export={','.join(forms)}: benchmark={config.benchmark.name} swaps hidden states, which an exported model "
            "does not show; export=null"
        )
    if forms and not faults:
        try:
            require_packages("onnx", "onnxruntime", "onnxscript")
        except PotstillError as fault:
            faults.append(str(fault))
    return faults
