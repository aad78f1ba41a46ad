"""Irregularities of a part of a benchmark, counted before training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.tokenizers import Vocabulary
from potstill.data.tasks.labels import SPANS, TOKENS
from potstill.errors import TokenizerError

UNKNOWN_SHARE = 0.05  # of the tokens; above it the tokenizer does not fit the language
_EXAMPLES = {TOKENS: "sentences", SPANS: "questions"}  # else rows


def oddities(
    examples: Sequence[Sequence[str]],
    ids: NDArray[np.integer],
    vocabulary: Vocabulary,
    train: Iterable[Sequence[str]] | None = None,
) -> dict[str, int]:
    """Counts of a part for any kind of task.

    Args:
        examples: All texts, or all words, of each example.
        ids: `(tokens,)` ids of all examples.
        vocabulary: Vocabulary of the tokenizer.
        train: Training examples, if this is another part.

    Returns:
        `examples`, `tokens`, `unknown` tokens, `empty` examples (with a blank text), `duplicates` of earlier examples,
        and with `train` the `overlap` with it.
    """
    texts = [tuple(example) for example in examples]
    counts = {
        "examples": len(texts),
        "tokens": len(ids),
        "unknown": 0 if vocabulary.unk_id is None else int((ids == vocabulary.unk_id).sum()),
        "empty": sum(not all(text.strip() for text in own) for own in texts),
        "duplicates": len(texts) - len(set(texts)),
    }
    if train is not None:
        known = {tuple(example) for example in train}
        counts["overlap"] = sum(own in known for own in texts)
    return counts


def refuse_unknown(name: str, ids: NDArray[np.integer], vocabulary: Vocabulary, most: float) -> None:
    """Reject texts with too many unknown tokens.

    Args:
        name: Name of the part for messages.
        ids: `(tokens,)` ids of all texts.
        vocabulary: Vocabulary of the tokenizer.
        most: `data.max_unknown`, the largest share of unknown tokens.

    Raises:
        TokenizerError: The share is larger.
    """
    share = float((ids == vocabulary.unk_id).mean()) if len(ids) and vocabulary.unk_id is not None else 0.0
    if share > most:
        raise TokenizerError(
            f"data.max_unknown={most}: {share:.0%} of the tokens of '{name}' are unknown to the tokenizer "
            f"'{vocabulary.path}'; set data.tokenizer=<the tokenizer of the model>, or a larger share"
        )


def warnings_of(name: str, counts: dict[str, int], max_length: int, tokenizer: str, kind: str) -> list[str]:
    """Warnings about a part, one line each.

    Args:
        name: Name of the part for messages.
        counts: From `oddities`, and those of the kind of task.
        max_length: Maximum number of tokens of a sequence.
        tokenizer: Folder of the tokenizer.
        kind: Kind of the task.
    """
    rows, noun = counts["examples"], _EXAMPLES.get(kind, "rows")
    too_long = f"longer than data.max_length={max_length} tokens, and cut"
    said = {
        "truncated": too_long,
        "empty": "with a blank text",
        "duplicates": "that repeat earlier ones",
        "overlap": "that are also in the training set",
        "skipped": "without an answer at its stated place, skipped",
    }
    counted = {
        "broken": "rows with a wrong number of columns are skipped",
        "misplaced": "answers are not at their stated place",
        "unknown_tags": "tags are unknown to the model and count as errors",
        "blank": "words have no token",
        "shortened": f"words are longer than data.max_length={max_length} tokens, and cut",
    }
    if kind == SPANS:
        said["truncated"] = "longer than benchmark.max_question_length tokens, and cut"
    if kind == TOKENS:
        del said["truncated"], said["empty"]
        counted["truncated"] = f"words are cut off, of sentences {too_long.removesuffix(', and cut')}"
    lines = [f"{name}: {counts[key]:,} of {rows:,} {noun} {words}" for key, words in said.items() if counts.get(key)]
    lines += [f"{name}: {counts[key]:,} {words}" for key, words in counted.items() if counts.get(key)]
    share = counts["unknown"] / max(counts["tokens"], 1)
    if share > UNKNOWN_SHARE:
        lines.append(
            f"{name}: {share:.0%} of the tokens are unknown to the tokenizer '{tokenizer}'; is it the right one?"
        )
    return lines
