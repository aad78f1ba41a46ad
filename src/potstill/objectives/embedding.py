"""The objective of sentence encoders: a student's vectors follow a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from potstill.losses.hidden import cosine_distance
from potstill.losses.vectors import contrastive, margin_mse, similarity_distance, vector_mse
from potstill.models.sentence import SentenceEncoder
from potstill.objectives.features import Features, Wanted, observed
from potstill.objectives.terms import TermSums, WeightedTerms

if TYPE_CHECKING:
    from potstill.data.corpus.sentence_steps import SentenceBatch, SentenceStep, StepRows, TextGroup

CONTRASTIVE, MARGIN = "contrastive", "margin_mse"  # terms of rows of several texts
RELATIONAL = ("similarity", CONTRASTIVE, MARGIN)  # terms over all texts of a step
FOLLOWING = ("mse", "cos", "similarity")  # terms that read the teacher's vectors
_TEXTS: dict[str, Callable[..., Tensor]] = {"mse": vector_mse, "cos": cosine_distance}


class Pair(NamedTuple):
    """Vectors of the same texts.

    Attributes:
        student: (texts, width).
        teacher: (texts, width of the targets); None where no term reads them.
    """

    student: Tensor
    teacher: Tensor | None


@dataclass(frozen=True)
class EmbeddingObjective(WeightedTerms):
    """sum_k weight_k * term k over the texts of the whole step.

    `mse` is the squared distance of the vectors, summed over their width, `cos` 1 - cosine; both are means over texts.
    `similarity` is the squared difference of the cosine similarities of two texts, mean over all pairs of the step,
    so its vectors are needed before its micro-batches (see `Pair`). Source: Reimers & Gurevych 2020
    (arXiv:2004.09813) for `mse`; Park et al. 2019 (arXiv:1904.05068), section 3.2, for relations of a batch.

    Rows of a query, a positive and negatives have two more terms over the whole step. `contrastive` is the cross
    entropy of each query's positive among the positives and negatives of all rows, mean over rows; a text that is the
    query itself, or a positive of the same query, is none of its negatives. `margin_mse` is the squared difference of
    the inner products' margins, positive less negative, mean over negatives; the other side is the teacher's margin,
    or that of the rows' own scores.

    With `widths`, each term is a mean over the first numbers of the vectors. `mse` and `cos` compare equally many of
    the teacher's, `similarity` and `margin_mse` all of them. Source: Kusupati et al. 2022 (arXiv:2205.13147),
    section 3.

    Attributes:
        widths: below the full one.
        normalized: whether vectors have length 1, then so have their first numbers.
        components: (width, teacher's width), what the teacher's vectors are multiplied with; None: nothing.
        scale: the cosines of `contrastive` are multiplied with it.
        scored: whether rows have scores, so that `margin_mse` reads no teacher.
    """

    widths: tuple[int, ...] = ()
    normalized: bool = False
    components: Tensor | None = None
    scale: float = 20.0
    scored: bool = False

    def denominators(self, step: SentenceStep) -> dict[str, float]:
        """What each active term is divided by in the whole step; at least 1."""
        rows = {} if step.rows is None else {CONTRASTIVE: step.rows.count, MARGIN: step.rows.negatives}
        return self.counted({**dict.fromkeys(FOLLOWING, step.sequences), **rows}, step)

    @property
    def is_relational(self) -> bool:
        """Whether a term reads all texts of a step."""
        return self._any(RELATIONAL)

    @property
    def needs_teacher(self) -> bool:
        """Whether an active term reads the teacher's vectors or states."""
        return self._any((*FOLLOWING, *self.matched)) or (not self.scored and self._any((MARGIN,)))

    def targets(self, vectors: Tensor) -> Tensor:
        """The teacher's vectors as the student is to have them."""
        if self.components is None:
            return vectors
        found = linear(vectors, self.components.to(vectors))
        return normalize(found, dim=-1) if self.normalized else found

    def target_vectors(self, teacher: SentenceEncoder | None, group: TextGroup) -> Tensor | None:
        """`targets` of some texts; computed once. None where no term reads them."""
        if group.targets is None and self.needs_teacher:
            inputs, vectors = group.other or group, group.vectors
            with torch.no_grad():
                if vectors is None and teacher is not None:
                    vectors = teacher(inputs.input_ids, inputs.attention_mask)
                group.targets = None if vectors is None else self.targets(vectors)
        return group.targets

    def __call__(
        self,
        student: SentenceEncoder,
        teacher: SentenceEncoder | None,
        micro: SentenceBatch,
        denominators: Mapping[str, float],
        step: Pair | None = None,
    ) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: gradients flow.
            teacher: no gradients; None if the micro-batch has its vectors, or if `needs_teacher` is false.
            micro: texts.
            denominators: from `denominators`, of the whole step.
            step: vectors of the whole step without gradient; None: the micro-batch is the whole step.
        """
        found: list[Pair] = []
        values: dict[str, Tensor] = {}
        for group in micro.groups:
            pair, matched = self._run(student, teacher, group, denominators)
            found.append(pair)
            values = {term: values.get(term, 0) + value for term, value in matched.items()}
        vectors = torch.cat([pair.student for pair in found])
        theirs = [pair.teacher for pair in found if pair.teacher is not None]
        targets = torch.cat(theirs) if theirs else None
        for term, distance in _TEXTS.items():
            if self.weights.get(term):
                assert targets is not None
                shares = [distance(*pair, denominator=denominators[term]) for pair in self._cut(vectors, targets)]
                values[term] = torch.stack(shares).mean()
        if self.is_relational:
            share = len(vectors) / micro.step_texts
            relations = self._relations(_whole(vectors, targets, micro, step), micro.rows)
            # The gradient is that of the whole step, with the own vectors alive; the value is a share.
            values |= {term: value + (share - 1) * value.detach() for term, value in relations.items()}
        zero = torch.zeros((), device=vectors.device)
        loss = sum((self.weights[term] * value for term, value in values.items()), zero)
        return TermSums(loss, {term: value.detach() for term, value in values.items()})

    def _run(
        self,
        student: SentenceEncoder,
        teacher: SentenceEncoder | None,
        group: TextGroup,
        denominators: Mapping[str, float],
    ) -> tuple[Pair, dict[str, Tensor]]:
        """The vectors of a group of texts, and its shares of the matches."""
        if self.matches is None:
            return Pair(student(group.input_ids, group.attention_mask), self.target_vectors(teacher, group)), {}
        theirs: list[Features] = []
        if self._any(self.matched):
            assert teacher is not None
            with torch.no_grad():
                hidden, theirs, _ = observed(teacher.backbone, "teacher", group, None, self.wanted(0))
                if group.targets is None and group.other is None:
                    group.targets = self.targets(teacher.vectors(hidden.base[0], group.attention_mask))
        targets = self.target_vectors(teacher, group)
        hidden, ours, _ = observed(student.backbone, "student", group, None, self.wanted(None))
        vectors = student.vectors(hidden.base[0], group.attention_mask)
        return Pair(vectors, targets), dict(self.matches(ours, [theirs], denominators, self.active))

    def _relations(self, step: Pair, rows: StepRows | None) -> dict[str, Tensor]:
        """The terms over all texts of a step."""
        values = {}
        cut = [step.student[:, :width] for width in (*self.widths, step.student.shape[1])]
        if self.weights.get("similarity"):
            assert step.teacher is not None
            targets = step.teacher
            values["similarity"] = torch.stack([similarity_distance(own, targets) for own in cut]).mean()
        if rows is None:
            return values
        if self.weights.get(CONTRASTIVE):
            documents, excluded = rows.documents()
            places = torch.arange(rows.count, device=documents.device)
            queries = rows.texts[:, 0]
            losses = [
                contrastive(own[queries], own[documents], places, scale=self.scale, excluded_NM=excluded) for own in cut
            ]
            values[CONTRASTIVE] = torch.stack(losses).mean()
        if self.weights.get(MARGIN):
            if self.normalized:
                cut = [*(normalize(own, dim=-1) for own in cut[:-1]), cut[-1]]
            theirs = rows.given_margins if step.teacher is None or self.scored else rows.margins(step.teacher)
            values[MARGIN] = torch.stack([margin_mse(rows.margins(own), theirs) for own in cut]).mean()
        return values

    def _cut(self, vectors: Tensor, targets: Tensor) -> list[Pair]:
        """The full vectors, and their first numbers."""
        pairs = [Pair(vectors, targets)]
        for width in self.widths:
            own = [side[:, :width] for side in (vectors, targets)]
            pairs.append(Pair(*(normalize(side, dim=-1) if self.normalized else side for side in own)))
        return pairs

    def wanted(self, teacher: int | None) -> Wanted:
        """Features that the active terms read of a teacher or of the student; always the last states."""
        return replace(super().wanted(teacher), end=True, logits=False, last=False)


def _whole(vectors: Tensor, targets: Tensor | None, micro: SentenceBatch, step: Pair | None) -> Pair:
    """The vectors of all texts of a step in their order, of which those of a micro-batch have a gradient."""
    places = micro.places
    if step is None:  # they are all
        order = torch.empty_like(places)
        order[places] = torch.arange(len(order), device=order.device)
        return Pair(vectors[order], None if targets is None else targets[order])
    return Pair(step.student.index_copy(0, places, vectors.to(step.student)), step.teacher)
