"""What is odd about the rows of a benchmark, counted before anything is trained on them."""

from __future__ import annotations

import numpy as np

from potstill.data.corpus.tokenizers import Vocabulary
from potstill.data.tasks.features import Features
from potstill.data.tasks.readers import Rows

UNKNOWN_SHARE = 0.05  # of the tokens; above it the tokenizer is not one of this language


def oddities(rows: Rows, features: Features, vocabulary: Vocabulary) -> dict[str, int]:
    """Counts of one part.

    Returns:
        `examples`, `tokens`, and `truncated` rows, `unknown` tokens, `empty` rows (a text is blank), `duplicates` (rows
        whose texts stand before), `broken` rows that were left out.
    """
    unknown = 0 if vocabulary.unk_id is None else int((features.ids == vocabulary.unk_id).sum())
    texts = list(zip(*rows.texts, strict=True))
    return {
        "examples": len(rows),
        "tokens": len(features.ids),
        "truncated": int(np.count_nonzero(features.truncated)),
        "unknown": unknown,
        "empty": sum(not all(text.strip() for text in row) for row in texts),
        "duplicates": len(texts) - len(set(texts)),
        "broken": rows.broken,
    }


def overlap(train: Rows, evaluation: Rows) -> int:
    """Rows of the evaluation whose texts are among those that are trained on."""
    known = set(zip(*train.texts, strict=True))
    return sum(row in known for row in zip(*evaluation.texts, strict=True))


def warnings_of(name: str, counts: dict[str, int], max_length: int, tokenizer: str) -> list[str]:
    """What a user should know of a part, a line each; empty where nothing is odd.

    Args:
        name: what messages call the part.
        counts: from `oddities`; with `overlap` where it was counted.
        max_length: most tokens of a row.
        tokenizer: its folder.
    """
    rows = counts["examples"]
    share = counts["unknown"] / counts["tokens"]
    said = {
        "truncated": f"longer than data.max_length={max_length} tokens, and cut",
        "empty": "with a blank text",
        "duplicates": "whose texts stand before",
        "overlap": "whose texts are trained on",
    }
    lines = [
        f"{name}: {counts[key]:,} of {rows:,} rows {words}" for key, words in said.items() if counts.get(key)
    ]
    if counts["broken"]:
        lines.append(f"{name}: {counts['broken']:,} rows with a wrong number of columns are left out")
    if share > UNKNOWN_SHARE:
        lines.append(
            f"{name}: {share:.0%} of the tokens are unknown to the tokenizer '{tokenizer}'; is it the right one?"
        )
    return lines
