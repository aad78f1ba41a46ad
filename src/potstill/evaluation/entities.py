"""Precision, recall and F1 of named entities: an entity is right when its type and all its words are.

The numbers equal seqeval's (Nakayama 2018) and conlleval's (Tjong Kim Sang and De Meulder 2003) on the same tags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from potstill.data.tasks.entities import entities_of


@dataclass(frozen=True)
class EntityScores:
    """Counts of entities, and what follows from them; counts of two halves of a set add up to those of the whole.

    Attributes:
        correct: entities that are predicted as they are.
        predicted: entities that are predicted.
        gold: entities that there are.
    """

    correct: int = 0
    predicted: int = 0
    gold: int = 0

    def __add__(self, other: EntityScores) -> EntityScores:
        return EntityScores(
            self.correct + other.correct, self.predicted + other.predicted, self.gold + other.gold
        )

    @property
    def precision(self) -> float:
        """Share of the predicted entities that is correct; 0 where there are none, as seqeval has it."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the entities that is found; 0 where there are none."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where both are."""
        both = self.predicted + self.gold
        return 2 * self.correct / both if both else 0.0


def entity_scores(
    gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]], *, strict: str | None = None
) -> dict[str, EntityScores]:
    """Scores by type, in the order of the alphabet: of every type that occurs, in the data or among the predictions.

    Args:
        gold: the tags of all words of each sentence.
        predicted: as many of each sentence; `O` for words that a model has not seen, so that they count as missed.
        strict: None to read broken sequences as conlleval does, or the scheme, `BIO` or `BIOES`, to read only what it
            allows (see `entities_of`); both sequences are read alike.

    Raises:
        ValueError: there are more sentences, or tags of a sentence, on one side, or a text is no tag.
    """
    counts: dict[str, Counter[str]] = {"correct": Counter(), "predicted": Counter(), "gold": Counter()}
    for number, (wanted, given) in enumerate(zip(gold, predicted, strict=True)):
        if len(wanted) != len(given):
            raise ValueError(f"sentence {number} has {len(wanted)} tags, {len(given)} are predicted")
        there, said = set(entities_of(wanted, strict=strict)), set(entities_of(given, strict=strict))
        for name, entities in (("correct", there & said), ("predicted", said), ("gold", there)):
            counts[name].update(entity.type for entity in entities)
    kinds = sorted(counts["predicted"].keys() | counts["gold"].keys())
    return {kind: EntityScores(**{name: count[kind] for name, count in counts.items()}) for kind in kinds}


def micro(scores: Iterable[EntityScores]) -> EntityScores:
    """Scores over the entities of all types, which is what is published for CoNLL-2003 and MSRA."""
    return sum(scores, EntityScores())
