"""Problems of what an intervention swaps, in training and in a comparison of models."""

from __future__ import annotations

from potstill.config.objectives.interchange import SwapConfig
from potstill.errors import PotstillError
from potstill.interchange.mappings import read_mappings
from potstill.models.specs import ModelSpec


def mapping_problems(interchange: SwapConfig, teacher: ModelSpec, student: ModelSpec, key: str) -> list[str]:
    """Problems of a mapping, and of positions that only a masked language model has."""
    problems = []
    try:
        read_mappings(interchange.mapping, teacher, student, key=f"{key}.mapping")
    except PotstillError as error:
        problems.append(str(error))
    if student.kind == "causal" and interchange.positions == "masked":
        problems.append(f"{key}.positions=masked: a causal language model masks nothing; use consecutive or free")
    return problems
