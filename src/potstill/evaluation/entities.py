"""Precision, recall and F1 of named entities; an entity is correct if its type and all its words are.

The numbers equal seqeval's (Nakayama 2018) and conlleval's (Tjong Kim Sang and De Meulder 2003) on the same tags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from potstill.data.tasks.entities import entities_of


@dataclass(frozen=True)
class EntityScores:
    """Counts of entities, which can be added over parts of a set, and their scores.

    Attributes:
        correct: predicted entities that are gold entities.
        predicted: number of predicted entities.
        gold: number of gold entities.
    """

    correct: int = 0
    predicted: int = 0
    gold: int = 0

    def __add__(self, other: EntityScores) -> EntityScores:
        return EntityScores(self.correct + other.correct, self.predicted + other.predicted, self.gold + other.gold)

    @property
    def precision(self) -> float:
        """Share of the predicted entities that is correct; 0 without any, as in seqeval."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold entities that is found; 0 without any."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if both are 0."""
        both = self.predicted + self.gold
        return 2 * self.correct / both if both else 0.0


def entity_scores(gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> dict[str, EntityScores]:
    """Scores per type, sorted, of every type in the data or among the predictions.

    Args:
        gold: the tags of all words of each sentence.
        predicted: as `gold`; `O` for words that a model has not seen, so that they count as missed.

    Raises:
        ValueError: different numbers of sentences or tags, or an invalid tag.
    """
    counts: dict[str, Counter[str]] = {"correct": Counter(), "predicted": Counter(), "gold": Counter()}
    for number, (wanted, given) in enumerate(zip(gold, predicted, strict=True)):
        if len(wanted) != len(given):
            raise ValueError(f"sentence {number}: {len(given)} predicted tags for {len(wanted)} words")
        true, found = set(entities_of(wanted)), set(entities_of(given))
        for name, entities in (("correct", true & found), ("predicted", found), ("gold", true)):
            counts[name].update(entity.type for entity in entities)
    kinds = sorted(counts["predicted"].keys() | counts["gold"].keys())
    return {kind: EntityScores(**{name: count[kind] for name, count in counts.items()}) for kind in kinds}


def micro(scores: Iterable[EntityScores]) -> EntityScores:
    """Scores over the entities of all types, as published for CoNLL-2003 and MSRA."""
    return sum(scores, EntityScores())
