"""What is odd about a part of a benchmark, counted before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.tokenizers import Vocabulary
from potstill.data.tasks.labels import SPANS, TOKENS
from potstill.errors import DataError

UNKNOWN_SHARE = 0.05  # of the tokens; above it the tokenizer is not one of this language
_EXAMPLES = {TOKENS: "sentences", SPANS: "questions"}  # what the examples of a task are; else rows


def oddities(
    examples: Sequence[Sequence[str]],
    ids: NDArray[np.integer],
    vocabulary: Vocabulary,
    train: Iterable[Sequence[str]] | None = None,
) -> dict[str, int]:
    """Counts of one part that any kind of task has.

    Args:
        examples: all texts, or all words, of each.
        ids: `(tokens,)` of all of them.
        vocabulary: of the tokenizer.
        train: the examples that are trained on, where this part is another.

    Returns:
        `examples`, `tokens`, and `unknown` tokens, `empty` examples (a text is blank), `duplicates` (examples that
        stand before), and with `train` the `overlap`: examples that are among those.
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
    """Refuse texts that the tokenizer does not know.

    Args:
        name: of the part, for messages.
        ids: `(tokens,)` of all texts.
        vocabulary: of the tokenizer.
        most: `data.max_unknown`, the largest share of unknown tokens.

    Raises:
        DataError: they are more.
    """
    share = float((ids == vocabulary.unk_id).mean()) if len(ids) and vocabulary.unk_id is not None else 0.0
    if share > most:
        raise DataError(
            f"data.max_unknown={most}: {share:.0%} of the tokens of '{name}' are unknown to the tokenizer "
            f"'{vocabulary.path}'; data.tokenizer=<folder of the one that the model was trained with>, or a larger "
            "share"
        )


def warnings_of(name: str, counts: dict[str, int], max_length: int, tokenizer: str, kind: str) -> list[str]:
    """What a user should know of a part, a line each; empty where nothing is odd.

    Args:
        name: what messages call the part.
        counts: from `oddities`, and those of its kind.
        max_length: most tokens of a sequence.
        tokenizer: its folder.
        kind: of the task.
    """
    rows, noun = counts["examples"], _EXAMPLES.get(kind, "rows")
    too_long = f"longer than data.max_length={max_length} tokens, and cut"
    said = {
        "truncated": too_long,
        "empty": "with a blank text",
        "duplicates": "whose texts stand before",
        "overlap": "whose texts are trained on",
        "skipped": "without an answer that is where its file says; left out",
    }
    counted = {
        "broken": "rows with a wrong number of columns are left out",
        "misplaced": "answers are not where their file says",
        "unknown_tags": "tags are none that the model knows; they count as missed",
        "blank": "words have no token",
        "shortened": f"words are longer than data.max_length={max_length} tokens, and cut",
    }
    if kind == SPANS:
        said["truncated"] = "longer than benchmark.max_question_length tokens, and cut"
    if kind == TOKENS:
        del said["truncated"], said["empty"]
        counted["truncated"] = f"words are cut off, of sentences {too_long.removesuffix(', and cut')}"
    lines = [
        f"{name}: {counts[key]:,} of {rows:,} {noun} {words}"
        for key, words in said.items()
        if counts.get(key)
    ]
    lines += [f"{name}: {counts[key]:,} {words}" for key, words in counted.items() if counts.get(key)]
    share = counts["unknown"] / max(counts["tokens"], 1)
    if share > UNKNOWN_SHARE:
        lines.append(
            f"{name}: {share:.0%} of the tokens are unknown to the tokenizer '{tokenizer}'; is it the right one?"
        )
    return lines
