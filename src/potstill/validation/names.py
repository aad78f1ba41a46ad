"""Names of evaluated models, and of the files that are written of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from potstill.config import EvaluateConfig

STEM_BYTES = 160


def models_of(config: EvaluateConfig) -> list[str]:
    """`model=` as a list of folders or hub ids; empty where none is given."""
    if config.model is None:
        return []
    return [str(m) for m in config.model] if isinstance(config.model, list) else [str(config.model)]


def stem_of(name: str) -> str:
    """The start of the names of the files of an evaluated model; `name` is that of its row.

    The stem stays in its folder and leaves space for a suffix in the 255 bytes of a file's name.
    """
    stem = re.sub(r"^\.+", "_", re.sub(r"[^\w.-]", "_", name)) or "_"
    if len(stem.encode()) > STEM_BYTES:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        stem = f"{stem.encode()[: STEM_BYTES - 9].decode(errors='ignore')}-{digest}"
    return stem


def named_models(config: EvaluateConfig) -> dict[str, str]:
    """The models of an evaluation by the names of their rows: `names`, else the shortest distinct ends of the paths."""
    models = models_of(config)
    names = list(map(str, config.names)) if config.names is not None else _distinct_ends(models)
    return dict(zip(names, models, strict=True))


def _distinct_ends(models: Sequence[str]) -> list[str]:
    parts = [Path(model).parts for model in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(map(stem_of, names))) == len(names):
            return names
    return [f"{model} #{i + 1}" for i, model in enumerate(models)]


def name_problems(names: Sequence[str]) -> list[str]:
    """Two models whose metrics or files would replace each other's."""
    first: dict[str, str] = {}
    for name in names:
        if (stem := stem_of(name)) in first:
            same = name if name == first[stem] else f"{first[stem]} and {name}, which are both {stem} in files"
            return [f"names=[{', '.join(names)}]: two models are called {same}; give each a name of its own"]
        first[stem] = name
    return []
