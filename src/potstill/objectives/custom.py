"""Adaptors of a user's own modules: features of a run from (batch, outputs).

Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, adaptors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.losses.soft_targets import IGNORED_LABEL
from potstill.objectives.features import Features, Wanted
from potstill.objectives.matching import ATTENTION, HIDDEN, SEQUENCES, Place
from potstill.objectives.task import Observed, Stored, TaskObjective
from potstill.objectives.terms import LABEL

SOFT_LOGITS = ("ce", "mse")  # terms that compare logits
KNOWN = ("logits", "logits_mask", "labels", "losses", HIDDEN, ATTENTION, "inputs_mask", "rows")


@dataclass(frozen=True)
class AdaptorReader:
    """Runs a module on a batch and reads its features with an adaptor.

    An adaptor is a function of a batch and of what the module returned for it. It returns a dictionary with some of
    the keys below; each value is a tensor or a list of tensors, for matches also a dictionary of tensors, and None
    counts as absent.

    - `logits`: (examples, labels), or (examples, positions, labels) with one prediction per position. Several tensors
      are several heads; each is paired with the teacher's of the same place, and the terms of all heads are added up.
    - `logits_mask`: (examples, positions), nonzero where a prediction of logits with positions counts. One mask for
      each tensor of logits, or one for all; logits without positions have nothing to mask.
    - `labels`: (examples,), or (examples, positions) for logits with positions; -100 where there is no label.
    - `losses`: losses of the user's own, added up: a scalar, the mean over the batch, or (examples,). They take the
      place of the cross entropy of `labels` in the term `label`.
    - `hidden`: (examples, positions, width) for matches; see `states_of` for other shapes.
    - `attention`: scores before the softmax, (examples, heads, length, length); (examples, length, length) is one head.
    - `inputs_mask`: (examples, positions), nonzero where hidden states and attention of the student count.
    - `rows`: (examples,), numbers of the examples in the training data, from 0, where a teacher's logits are stored.

    Attributes:
        model: the module.
        adaptor: (batch, outputs) -> dictionary.
        key: names the adaptor in messages.
        forward: (model, batch) -> outputs.

    Source: the dictionary of TextBrewer's adaptors (Yang et al. 2020), with its keys and shapes.

    Example:
        >>> import torch
        >>> from potstill.objectives.custom import AdaptorReader, call_model
        >>> def adaptor(batch, outputs):
        ...     return {"logits": (outputs,), "logits_mask": (batch["attention_mask"],)}
        >>> class Tagger(torch.nn.Linear):
        ...     def forward(self, states):
        ...         return super().forward(states)
        >>> batch = {"states": torch.zeros(2, 3, 8), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
        >>> (features,) = AdaptorReader(Tagger(8, 5), adaptor, "adaptor", call_model)((batch, 2)).base
        >>> features.logits[0].shape
        torch.Size([3, 5])
    """

    model: nn.Module
    adaptor: Callable[[Any, Any], Any]
    key: str
    forward: Callable[[nn.Module, Any], Any]

    def __call__(self, micro: tuple[Any, int], wanted: Wanted | None = None) -> Observed:
        """Features of the module on a batch with so many examples.

        Raises:
            ConfigError: the adaptor returns something else.
        """
        batch, examples = micro
        return Observed([read_features(self.adaptor(batch, self.forward(self.model, batch)), self.key, examples)])


def call_model(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch of one of the usual forms.

    A dictionary is passed by name, without the names that `forward` does not accept. A tuple or list is passed by
    position, as many items as `forward` accepts: a model of images gets the images of (images, labels). Anything else
    is passed as it is.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    if isinstance(batch, Mapping):
        named = {parameter.name for parameter in parameters}
        every = inspect.Parameter.VAR_KEYWORD in kinds
        return model(**{name: value for name, value in batch.items() if every or name in named})
    if not isinstance(batch, list | tuple):
        return model(batch)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    accepted = sum(parameter.kind in positional for parameter in parameters)
    return model(*(batch if inspect.Parameter.VAR_POSITIONAL in kinds else batch[:accepted]))


def read_features(returned: Any, key: str, examples: int) -> Features:
    """Features from the dictionary that an adaptor returned.

    Args:
        returned: the dictionary, see `AdaptorReader`.
        key: names the adaptor in messages.
        examples: number of examples of the batch.

    Returns:
        The selected predictions of each head as (predictions, labels), with their labels; hidden features as (examples,
        positions, width); losses as sums over the examples.

    Raises:
        ConfigError: not a dictionary, an unknown key, no known key, a value that is not a tensor, or shapes that do
            not fit.
    """
    known = ", ".join(KNOWN)
    if not isinstance(returned, Mapping):
        raise ConfigError(f"{key}: returns a {type(returned).__name__}; must be a dictionary with keys of {known}")
    given = {name: value for name, value in returned.items() if value is not None}
    if unknown := next((name for name in given if name not in KNOWN), None):
        raise ConfigError(f"{key}: returns the key {unknown}; the known keys are {known}")
    if not given:
        raise ConfigError(f"{key}: returns none of the known keys {known}")
    tensors = {name: _tensors(given.get(name, ()), name, key) for name in KNOWN}
    _check_examples(tensors, examples, key)
    for name in ("inputs_mask", "rows"):
        if len(tensors[name]) > 1:
            raise ConfigError(f"{key}: returns {len(tensors[name])} tensors of {name}; must be one")
    rows = next(iter(tensors["rows"].values()), None)
    if rows is not None and (rows.ndim != 1 or rows.is_floating_point()):
        raise ConfigError(
            f"{key}: rows has shape {tuple(rows.shape)} and type {rows.dtype}; must be integers, (examples,)"
        )
    heads, masks, targets = (tuple(tensors[name].values()) for name in KNOWN[:3])
    logits, labels, kept = _predictions(heads, masks, targets, key)
    losses = tensors["losses"].values()
    return Features(
        logits=logits,
        labels=labels,
        losses=tuple(loss if loss.ndim else loss * examples for loss in losses),  # a scalar is the mean
        hidden={place: states_of(feature) for place, feature in tensors[HIDDEN].items()},
        attention={place: own[:, None] if own.ndim == 3 else own for place, own in tensors[ATTENTION].items()},
        mask=next(iter(tensors["inputs_mask"].values()), None),
        by_example=all(head.ndim == 2 for head in heads),
        rows=rows,
        kept=kept,
    )


def states_of(feature: Tensor) -> Tensor:
    """A feature as (examples, positions, width).

    Args:
        feature: (examples, width) is one position; (examples, length, width) is unchanged; in (examples, channels, ...)
            every pixel is a position.
    """
    if feature.ndim == 2:
        return feature[:, None]
    return feature if feature.ndim <= 3 else feature.flatten(2).transpose(1, 2)


def _tensors(value: Any, name: str, key: str) -> dict[Place, Tensor]:
    """One tensor, a list of tensors, or a dictionary of tensors, by place."""
    if not isinstance(value, Mapping):
        value = dict(enumerate(value if isinstance(value, list | tuple) else [value]))
    for place, tensor in value.items():
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"{key}: {name}[{place}] is a {type(tensor).__name__}; must be a tensor")
    return dict(value)


def _check_examples(tensors: Mapping[str, Mapping[Place, Tensor]], examples: int, key: str) -> None:
    for name, own in tensors.items():
        for place, tensor in own.items():
            scalar = name == "losses" and not tensor.ndim
            if not scalar and (not tensor.ndim or len(tensor) != examples):
                raise ConfigError(
                    f"{key}: {name}[{place}] has shape {tuple(tensor.shape)}; the first dimension must be the batch's "
                    f"{examples} examples"
                )
            if name == "losses" and tensor.ndim > 1:
                raise ConfigError(
                    f"{key}: losses[{place}] has shape {tuple(tensor.shape)}; must be (examples,) or a scalar, the mean"
                )


def _predictions(
    logits: tuple[Tensor, ...], masks: tuple[Tensor, ...], labels: tuple[Tensor, ...], key: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """The predictions of all heads that their masks select, the labels of these, and their positions."""
    if masks and len(masks) not in (1, len(logits)):
        raise ConfigError(
            f"{key}: {len(masks)} tensors of logits_mask and {len(logits)} of logits; must be one for each, or one"
        )
    if labels and len(labels) != len(logits):
        raise ConfigError(
            f"{key}: {len(labels)} tensors of labels and {len(logits)} of logits; each tensor of logits needs labels"
        )
    found: list[Tensor] = []
    of_found: list[Tensor] = []
    positions: list[Tensor | None] = []
    for number, head in enumerate(logits):
        if head.ndim not in (2, 3):
            raise ConfigError(
                f"{key}: logits[{number}] has shape {tuple(head.shape)}; must be (examples, labels) or (examples, "
                "positions, labels)"
            )
        own = labels[number] if labels else None
        if own is not None:
            _check_positions(own, head, f"labels[{number}]", f"logits[{number}]", key)
        kept = None
        if head.ndim == 3:
            kept = torch.ones(head.shape[:-1], dtype=torch.bool, device=head.device)
            if masks:
                mask = masks[number if len(masks) > 1 else 0]
                _check_positions(mask, head, "logits_mask", f"logits[{number}]", key)
                kept = mask.bool()
        positions.append(kept)
        found.append(head if kept is None else head[kept])
        if own is not None:
            of_found.append(own if kept is None else own[kept])
    return tuple(found), tuple(of_found), tuple(positions)


def _check_positions(tensor: Tensor, logits: Tensor, name: str, of: str, key: str) -> None:
    if tensor.shape != logits.shape[:-1]:
        raise ConfigError(
            f"{key}: {name} has shape {tuple(tensor.shape)} and {of} {tuple(logits.shape)}; must be "
            f"{tuple(logits.shape[:-1])}"
        )


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher whose logits of the training data are stored.

    Attributes:
        heads: (batch,) numbers of rows -> logits of each head: (batch, labels), (batch, positions, labels) of all
            positions, or (predictions, labels) of those that the teacher's mask selected.
        rows: number of rows.
        key: names the logits in messages.
    """

    heads: Sequence[Stored]
    rows: int
    key: str

    def __call__(self, student: Features) -> Observed:
        """The teacher's predictions of the examples of a batch, at the positions of the student's.

        Raises:
            ConfigError: the student's adaptor returns no numbers of rows, or others.
        """
        if student.rows is None:
            raise ConfigError(f"{self.key}: the student's adaptor returns no rows, the numbers of the examples")
        lowest, highest = (int(number) for number in student.rows.aminmax())
        if lowest < 0 or highest >= self.rows:
            wrong = lowest if lowest < 0 else highest
            raise ConfigError(f"{self.key}: has {self.rows:,} rows, and the student's adaptor returns the row {wrong}")
        device = student.logits[0].device if student.logits else student.rows.device
        kept = (*student.kept, *[None] * len(self.heads))
        logits = (head(student.rows).to(device) for head in self.heads)
        return Observed([Features(tuple(self._selected(*pair) for pair in zip(logits, kept, strict=False)))])

    def _selected(self, logits: Tensor, kept: Tensor | None) -> Tensor:
        if logits.ndim == 2 or kept is None:
            return logits
        if logits.shape[1] < kept.shape[1]:
            raise ConfigError(
                f"{self.key}: has {logits.shape[1]} positions for each row, and a batch has {kept.shape[1]}"
            )
        return logits[:, : kept.shape[1]][kept]


def units_of(objective: TaskObjective, student: Features, examples: int) -> dict[str, Tensor]:
    """What each active term is a mean over, in one batch of a user's own module.

    Args:
        objective: weighted terms.
        student: features of the student.
        examples: number of examples of the batch.

    Returns:
        Integers by term. For terms on logits (heads,): the selected predictions of each head, for `label` those with a
        label. Examples for losses of the user's own. For matches the kept positions, pairs of them, or examples.
    """
    device = next((own.device for own in (*student.logits, *student.losses, *student.hidden.values())), None)
    predictions = torch.tensor([len(logits) for logits in student.logits], device=device)
    rows = torch.tensor(examples, device=device)
    counts = dict.fromkeys(("ce", "mse"), predictions)
    if student.losses:
        counts[LABEL] = rows
    elif student.labels:
        counts[LABEL] = torch.stack([(labels != IGNORED_LABEL).sum() for labels in student.labels])
    if objective.matches is not None:
        counts |= objective.matches.units(student)
    return {term: counts[term] for term in objective.active}


def counts_examples(objective: TaskObjective, student: Features) -> bool:
    """Whether every term is a mean over examples, whose number is known before the student runs."""
    known = {LABEL: bool(student.losses), **dict.fromkeys(SOFT_LOGITS, student.by_example)}
    if objective.matches is not None:
        known |= {match.term: match.over == SEQUENCES for match in objective.matches.matches}
    return all(known[term] for term in objective.active)


def unequal_logits(student: Features, teacher: Features) -> str | None:
    """Why the logits of two models cannot be compared; None if they can."""
    ours, theirs = ([tuple(logits.shape) for logits in side.logits] for side in (student, teacher))
    if ours and ours == theirs:
        return None
    return (
        f"the adaptors return logits of shapes {ours} of the student and {theirs} of the teacher (positions that "
        "logits_mask selects, labels); they must be equal"
    )


def term_errors(objective: TaskObjective, student: Features, teachers: Sequence[Features]) -> Iterator[str]:
    """Reasons why the terms cannot be computed from such features, by keys of `objective`."""
    weights = objective.weights
    if weights.get(LABEL) and not (student.losses or student.labels):
        yield "terms.label.weight: the student's adaptor returns neither labels nor losses; use 0"
    soft = next((term for term in SOFT_LOGITS if weights.get(term)), None)
    if soft:
        problems = (unequal_logits(student, teacher) for teacher in teachers)
        yield from (f"terms.{soft}.weight: {problem}, or use 0" for problem in problems if problem)
    if soft and objective.soft.shift and not student.labels:
        yield "probability_shift=true: the student's adaptor returns no labels; use false"
    if objective.matches is None or not teachers:
        return
    for term in objective.matched:
        try:
            objective.matches([student], [[teacher] for teacher in teachers], {term: 1.0}, (term,))
        except (ValueError, RuntimeError) as error:
            yield f"matches: {term}: {' '.join(str(error).split())}"


def correct(features: Features) -> tuple[int, int]:
    """Number of correct predictions, and of labels."""
    met = seen = 0
    for logits_NC, labels_N in zip(features.logits, features.labels, strict=False):
        known_N = labels_N != IGNORED_LABEL
        met += int((logits_NC.argmax(-1) == labels_N)[known_N].sum())
        seen += int(known_N.sum())
    return met, seen


def agreeing(student: Features, teacher: Features) -> tuple[int, int]:
    """Number of predictions on which both models agree, and of all predictions."""
    pairs = list(zip(student.logits, teacher.logits, strict=False))
    return sum(int((ours.argmax(-1) == theirs.argmax(-1)).sum()) for ours, theirs in pairs), sum(
        len(ours) for ours, _ in pairs
    )
