"""Vectors of different widths: principal components of the teacher's, and linear layers of students."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from potstill.config import TrainConfig
from potstill.config.objectives.embedding import embedding_of
from potstill.data.corpus.sentences import SentenceRows, Sentences, TextVectors
from potstill.errors import ConfigError, PairError
from potstill.methods.embedding.models import Side
from potstill.methods.embedding.vectors import Taught
from potstill.models.sentence import DENSE, add_dense

log = logging.getLogger(__name__)

SAMPLED = 8192  # texts whose vectors give the principal components


def fit_widths(
    config: TrainConfig, student: Side, taught: Taught | None, texts: Sentences | SentenceRows
) -> Tensor | None:
    """Give the student a linear layer if it needs one; returns what the teacher's vectors are multiplied with.

    Args:
        config: of the run.
        student: may get the layer.
        taught: the teacher's vectors; None where no term reads them.
        texts: of the training.

    Raises:
        PairError: widths that cannot be made equal.
        ConfigError: a smaller width that is none.
    """
    objective = embedding_of(config)
    ours, widths = student.encoder.width, objective.widths or []
    theirs = ours if taught is None else taught.width
    way = None if taught is None else objective.projection or _default_way(student, ours, theirs, bool(widths))
    if way == "teacher" and ours > theirs:
        raise PairError(f"objective.projection=teacher: the student's vectors are {ours} wide, the teacher's {theirs}")
    full = ours if way == "teacher" else theirs
    if wrong := [width for width in widths if width >= full]:
        raise ConfigError(f"objective.widths={widths}: {wrong[0]} is not below the full width, {full}")
    if way is None or taught is None:
        return None
    needed = bool(widths) or ours < theirs
    components = _components(config.seed, taught.training, texts) if needed else None
    if way == "teacher":
        return None if components is None else components[:full]
    turned = components is not None and bool(widths)
    dense = getattr(student.model, DENSE, None)
    if ours == theirs and dense is None:
        start = components if turned and components is not None else torch.eye(theirs)
    elif ours < theirs and not turned:
        assert components is not None
        start = components[:ours].T
    else:
        start = torch.eye(theirs, ours)
    if dense is None:
        add_dense(student.model, start)
    elif student.settings.activation != "Identity":
        raise PairError(
            "objective.projection=student: the student's own linear layer has an activation, so no other can follow; "
            "use objective.projection=teacher"
        )
    else:  # both in one
        if ours == theirs and turned and components is not None:
            start = components
        add_dense(student.model, start @ dense.weight, None if dense.bias is None else start @ dense.bias)
    student.settings = replace(student.settings, dense="2_Dense")
    return components if turned else None


def _default_way(student: Side, ours: int, theirs: int, widths: bool) -> str | None:
    """The default of objective.projection; a static student has no linear layer."""
    if ours < theirs or (student.settings.static and (widths or ours > theirs)):
        return "teacher"
    return "student" if ours > theirs or widths else None


def _components(seed: int, vectors: TextVectors, texts: Sentences | SentenceRows) -> Tensor:
    """The principal components of the teacher's vectors, not centred, as rows, the largest first, (width, width)."""
    chosen = np.random.default_rng(seed).permutation(texts.used)[:SAMPLED]
    log.info("principal components of the teacher's vectors of %d texts", len(chosen))
    return principal_components(vectors(texts.texts[np.sort(chosen)]))


def principal_components(vectors_ND: Tensor) -> Tensor:
    """Orthonormal rows by falling mean square of the vectors along them, float32, (width, width).

    The vectors are not centred, so inner products with the first components are as close as possible.

    Args:
        vectors_ND: (texts, width).
    """
    double = vectors_ND.double()
    _, found = torch.linalg.eigh(double.T @ double)
    rows = found.flip(1).T
    signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()  # eigenvectors have none of their own
    return (rows * signs).float().contiguous()
