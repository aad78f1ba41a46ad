"""Tags of named entities: schemes, entities, and the labels of a model.

A tag is `O`, or a prefix and a type: `B-PER`. The schemes:

- `IOB1`: every word of an entity has I; B only where an entity follows another of its type without a gap.
- `BIO` (IOB2): the first word has B, the others I.
- `BIOES`: the first word has B, the last E, those between I, a lone one S.

Plain tags, such as parts of speech, have no prefix and mark single words, not entities.

BMES and BILOU are BIOES in other letters (M and I, L and E, U and S); `split_tag` translates them. seqeval does not
know M; here a BMES sequence has the entities of the same sequence in BIOES.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.batching import IGNORED

OUTSIDE = "O"
IOB1, BIO, BIOES = "IOB1", "BIO", "BIOES"
PREFIXES = {IOB1: "BI", BIO: "BI", BIOES: "BIES"}  # by scheme, in the order of the labels
LETTERS = {"M": "I", "L": "E", "U": "S"}  # BMES and BILOU in BIOES


class Entity(NamedTuple):
    """Words `start` (inclusive) to `end` (exclusive) of a sentence."""

    type: str
    start: int
    end: int


def is_tag(text: str) -> bool:
    """Whether a text is `O`, or a prefix (B I E S M L U), a hyphen and a type."""
    prefix, hyphen, kind = text.partition("-")
    if not hyphen:
        return text == OUTSIDE
    return bool(kind) and len(prefix) == 1 and prefix in "BIESMLU"


def are_plain(tags: Iterable[str]) -> bool:
    """Whether some tags are plain: without prefix, and not `O`."""
    return any(not is_tag(tag) for tag in tags)


def mixed_tags(tags: Iterable[str]) -> tuple[str, str] | None:
    """A plain tag and one with a prefix, if there are both."""
    distinct = sorted(set(tags) - {OUTSIDE})
    plain, prefixed = ([tag for tag in distinct if is_tag(tag) == wanted] for wanted in (False, True))
    return (plain[0], prefixed[0]) if plain and prefixed else None


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix (B, I, E or S) and type of a tag; `("O", "")` for `O`.

    Raises:
        ValueError: An invalid tag.
    """
    if not is_tag(tag):
        raise ValueError(f"invalid tag '{tag}', expected such as O or B-PER")
    prefix, _, kind = tag.partition("-")
    return LETTERS.get(prefix, prefix), kind


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """The scheme of tagged sentences: `IOB1`, `BIO` or `BIOES`.

    E or S indicate BIOES. Otherwise it is IOB1 if an entity starts with I and every B follows a word of its own type.
    The remaining mixtures are BIO with errors, which `entities_of` reads as seqeval does. Sentences without entities
    are BIO.

    Raises:
        ValueError: An invalid tag.
    """
    started_by_i = needless_b = False
    for tags in sentences:
        before = ""
        for prefix, kind in map(split_tag, tags):
            if prefix in "ES":
                return BIOES
            started_by_i |= prefix == "I" and kind != before
            needless_b |= prefix == "B" and kind != before
            before = kind
    return IOB1 if started_by_i and not needless_b else BIO


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence, in order.

    Every word that is not `O` belongs to an entity, in any scheme and with any errors: an entity starts at
    B, at S, after `O`, after E or S, and where the type changes. These are the rules of conlleval and of seqeval's
    default mode (`seqeval.metrics.sequence_labeling.get_entities`, whose ends are of the last word).

    Raises:
        ValueError: An invalid tag.
    """
    found: list[Entity] = []
    before = (OUTSIDE, "")
    for at, (prefix, kind) in enumerate(map(split_tag, tags)):
        if kind and (prefix in "BS" or before[0] in "ES" or kind != before[1]):
            found.append(Entity(kind, at, at + 1))
        elif kind:
            found[-1] = found[-1]._replace(end=at + 1)
        before = (prefix, kind)
    return found


def tags_of(entities: Iterable[Entity], length: int, scheme: str) -> list[str]:
    """Tags of a sentence of `length` words; the inverse of `entities_of` for valid sequences.

    Raises:
        ValueError: An entity is empty, overlaps another, or lies outside the sentence.
    """
    tags = [OUTSIDE] * length
    before = Entity("", 0, 0)
    for entity in sorted(entities, key=lambda one: one.start):
        kind, start, end = entity
        if not before.end <= start < end <= length:
            raise ValueError(f"{entity} is empty, overlaps {before}, or is not within {length} words")
        tags[start:end] = [f"I-{kind}"] * (end - start)
        touches = (before.type, before.end) == (kind, start)
        if scheme != IOB1 or touches:
            tags[start] = f"B-{kind}"
        if scheme == BIOES:
            tags[end - 1] = f"E-{kind}" if end - start > 1 else f"S-{kind}"
        before = entity
    return tags


def converted(tags: Sequence[str], scheme: str) -> list[str]:
    """Tags of the same entities in another scheme; invalid sequences become valid.

    Raises:
        ValueError: An invalid tag.
    """
    return tags_of(entities_of(tags), len(tags), scheme)


def tag_labels(sentences: Iterable[Sequence[str]], scheme: str | None = None) -> tuple[str, ...]:
    """Labels of a model for tagged sentences: `O`, then sorted by type and prefix (B, I, E, S); plain tags are sorted.

    Args:
        sentences: Tags of a training set.
        scheme: None for the tags that occur, in letters of BIOES; `BIO` or `BIOES` for all its tags of the types that
            occur, so that rare ones, such as S of a type, are known in another part.

    Raises:
        ValueError: A mixture of plain tags and tags with prefixes.
    """
    sentences = list(sentences)
    if are_plain(distinct := {tag for tags in sentences for tag in tags}) and not mixed_tags(distinct):
        return tuple(sorted(distinct))
    found = {split_tag(tag) for tags in sentences for tag in tags} - {(OUTSIDE, "")}
    if scheme is not None:
        found = {(prefix, kind) for _, kind in found for prefix in PREFIXES[scheme]}
    order = sorted(found, key=lambda tag: (tag[1], "BIES".index(tag[0])))
    return (OUTSIDE, *(f"{prefix}-{kind}" for prefix, kind in order))


def unknown_tags(sentences: Iterable[Sequence[str]], labels: Sequence[str]) -> dict[str, int]:
    """Counts of the tags that are not among a model's labels, most frequent first.

    A model never predicts them, so they lower its recall. Tags and labels must have one scheme (`converted`).
    """
    known = set(labels)
    counts = Counter(tag for tags in sentences for tag in tags if tag not in known)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def inside(tags: Sequence[str]) -> list[str]:
    """The tags of words for their tokens after the first: those within an entity where the word begins one."""
    return [f"I-{tag[2:]}" if is_tag(tag) and split_tag(tag)[0] in ("B", "S") else tag for tag in tags]


def tag_numbers(sentences: Iterable[Sequence[str]], labels: Sequence[str]) -> NDArray[np.int64]:
    """Label numbers of all words, end to end: `(words,)`; -100 for unknown tags, which are not trained on."""
    numbers: Mapping[str, int] = {label: number for number, label in enumerate(labels)}
    return np.array([numbers.get(tag, IGNORED) for tags in sentences for tag in tags], dtype=np.int64)
