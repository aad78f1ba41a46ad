"""Faults of what an intervention swaps, in training and in a comparison of models."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from potstill.errors import PotstillError
from potstill.interchange.mappings import read_mappings
from potstill.models.specs import ModelSpec


def interchange_faults(interchange: DictConfig, key: str) -> list[str]:
    """Of what an intervention swaps, but for the mapping; `key` is the section's."""
    faults = []
    for name, options in (
        ("positions", ("consecutive", "free", "masked")),
        ("pairing", ("in_batch", "dataset")),
        ("read_site", ("block_output", "block_input")),
    ):
        if name in interchange and interchange[name] not in options:
            faults.append(f"{key}.{name}={interchange[name]}: one of {', '.join(options)}")
    return faults


def mapping_faults(interchange: DictConfig, teacher: ModelSpec, student: ModelSpec, key: str) -> list[str]:
    """Faults of a mapping, and of positions that only a masked language model has."""
    faults = []
    try:
        mapping = OmegaConf.to_container(OmegaConf.create({"of": interchange.mapping}), resolve=True)
        read_mappings(mapping["of"], teacher, student, key=f"{key}.mapping")  # type: ignore[index,call-overload]
    except PotstillError as fault:
        faults.append(str(fault))
    if student.kind == "causal" and interchange.positions == "masked":
        faults.append(
            f"{key}.positions=masked: a causal language model masks nothing; use consecutive or free"
        )
    return faults
