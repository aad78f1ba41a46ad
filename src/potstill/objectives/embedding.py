"""The objective of sentence encoders: a student's vectors follow a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from potstill.losses.hidden import cosine_distance
from potstill.losses.vectors import similarity_distance, vector_mse
from potstill.models.sentence import SentenceEncoder
from potstill.objectives.features import Features, Wanted, observed
from potstill.objectives.terms import TermSums, WeightedTerms

if TYPE_CHECKING:
    from potstill.data.corpus.sentences import SentenceBatch, SentenceStep

RELATIONAL = ("similarity",)  # terms over all texts of a step
_ROWS: dict[str, Callable[..., Tensor]] = {"mse": vector_mse, "cos": cosine_distance}


class Pair(NamedTuple):
    """Vectors of the same texts.

    Attributes:
        student: (texts, width).
        teacher: (texts, width of the targets).
    """

    student: Tensor
    teacher: Tensor


@dataclass(frozen=True)
class EmbeddingObjective(WeightedTerms):
    """sum_k weight_k * term k over the texts of the whole step.

    `mse` is the squared distance of the vectors, summed over their width, `cos` 1 - cosine; both are means over texts.
    `similarity` is the squared difference of the cosine similarities of two texts, mean over all pairs of the step,
    so its vectors are needed before its micro-batches (see `share`). Source: Reimers & Gurevych 2020
    (arXiv:2004.09813) for `mse`; Park et al. 2019 (arXiv:1904.05068), section 3.2, for relations of a batch.

    With `widths`, each term is a mean over the first numbers of the vectors. `mse` and `cos` compare equally many of
    the teacher's, `similarity` all of them. Source: Kusupati et al. 2022 (arXiv:2205.13147), section 3.

    Attributes:
        widths: below the full one.
        normalized: whether vectors have length 1, then so have their first numbers.
        components: (width, teacher's width), what the teacher's vectors are multiplied with; None: nothing.
    """

    widths: tuple[int, ...] = ()
    normalized: bool = False
    components: Tensor | None = None

    def denominators(self, step: SentenceStep) -> dict[str, float]:
        """What each active term is divided by in the whole step; at least 1."""
        return self.counted(dict.fromkeys((*_ROWS, *RELATIONAL), step.sequences), step)

    @property
    def is_relational(self) -> bool:
        """Whether a term reads all texts of a step."""
        return self._any(RELATIONAL)

    @property
    def needs_teacher(self) -> bool:
        """Always: every term reads the teacher's vectors."""
        return True

    def targets(self, vectors: Tensor) -> Tensor:
        """The teacher's vectors as the student is to have them."""
        if self.components is None:
            return vectors
        found = linear(vectors, self.components.to(vectors))
        return normalize(found, dim=-1) if self.normalized else found

    def target_vectors(self, teacher: SentenceEncoder, micro: SentenceBatch) -> Tensor:
        """`targets` of the texts of a micro-batch; computed once."""
        if micro.targets is None:
            inputs = micro.other or micro
            with torch.no_grad():
                micro.targets = self.targets(teacher(inputs.input_ids, inputs.attention_mask))
        return micro.targets

    def __call__(
        self,
        student: SentenceEncoder,
        teacher: SentenceEncoder,
        micro: SentenceBatch,
        denominators: Mapping[str, float],
        step: Pair | None = None,
    ) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: gradients flow.
            teacher: no gradients.
            micro: texts.
            denominators: from `denominators`, of the whole step.
            step: vectors of the whole step without gradient; None: the micro-batch is the whole step.
        """
        theirs: list[Features] = []
        if self._any(self.matched):
            with torch.no_grad():
                hidden, theirs, _ = observed(teacher.backbone, "teacher", micro, None, self.wanted(0))
                if micro.targets is None and micro.other is None:
                    micro.targets = self.targets(teacher.vectors(hidden.base[0], micro.attention_mask))
        targets = self.target_vectors(teacher, micro)
        hidden, ours, _ = observed(student.backbone, "student", micro, None, self.wanted(None))
        vectors = student.vectors(hidden.base[0], micro.attention_mask)
        values: dict[str, Tensor] = {}
        for term, distance in _ROWS.items():
            if self.weights.get(term):
                shares = [distance(*pair, denominator=denominators[term]) for pair in self._cut(vectors, targets)]
                values[term] = torch.stack(shares).mean()
        if self.is_relational:
            values["similarity"] = self._similarity(vectors, targets, step, micro.start)
        if self.matches is not None:
            values |= self.matches(ours, [theirs], denominators, self.active)
        zero = torch.zeros((), device=vectors.device)
        loss = sum((self.weights[term] * value for term, value in values.items()), zero)
        return TermSums(loss, {term: value.detach() for term, value in values.items()})

    def _similarity(self, vectors: Tensor, targets: Tensor, step: Pair | None, start: int) -> Tensor:
        """The share of the step's mean over pairs: the gradient is that of the whole, with the own vectors alive."""
        share = 1.0
        if step is not None:
            end = start + len(vectors)
            share = len(vectors) / len(step.student)
            vectors = torch.cat([step.student[:start], vectors, step.student[end:]])
            targets = step.teacher
        widths = (*self.widths, vectors.shape[1])
        whole = torch.stack([similarity_distance(vectors[:, :width], targets) for width in widths]).mean()
        return whole + (share - 1) * whole.detach()

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
