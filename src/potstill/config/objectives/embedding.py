"""Keys of `objective=embed`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from potstill.config.objectives.base import MatchingConfig
from potstill.config.objectives.terms import TermConfig, TermsConfig
from potstill.runtime.ranges import POSITIVE, SIZE, option, within


@dataclass
class EmbedTerms(TermsConfig):
    """The terms of a sentence encoder that follows a teacher's vectors."""

    mse: TermConfig = option(TermConfig, "squared distance of the vectors, summed over their width; mean over texts")
    cos: TermConfig = option(TermConfig, "1 - cosine of the vectors; mean over texts")
    similarity: TermConfig = option(
        TermConfig,
        "squared difference of the cosine similarities of two texts, mean over all pairs of texts of an optimizer step",
    )
    contrastive: TermConfig = option(
        TermConfig,
        "`data=text_pairs`: cross entropy of a query's positive among the positives and negatives of all rows of an "
        "optimizer step (InfoNCE), mean over rows, nats; needs no teacher",
    )
    margin_mse: TermConfig = option(
        TermConfig,
        "`data=text_pairs` with negatives: squared difference of the margins (inner product of query and positive less "
        "that of query and negative) of student and teacher, or scores of the rows; mean over negatives",
    )


@dataclass
class EmbedConfig(MatchingConfig):
    """Distillation of sentence encoders."""

    cacheable = True
    trains_task = False

    terms: EmbedTerms = field(default_factory=EmbedTerms)
    pooling: str | None = option(
        None,
        "how token states become a vector, where the teacher's folder has no modules.json: `mean`, `cls`, `last`, "
        "`weighted` by place, `max` or `mean_sqrt_len`; null: as modules.json says",
        choices=("mean", "cls", "last", "weighted", "max", "mean_sqrt_len"),
    )
    prompt: str | None = option(
        None,
        "text before every training text: the name of one of the teacher's prompts, or the text itself; null: the "
        "teacher's default prompt, if it has one",
    )
    query_prompt: str | None = option(
        None,
        "the same before queries of `data=text_pairs`; null: the teacher's prompt `query`, else its default prompt",
    )
    document_prompt: str | None = option(
        None,
        "the same before positives and negatives; null: the teacher's prompt `document`, `passage` or `corpus`, else "
        "its default prompt",
    )
    scale: float = within(20.0, POSITIVE, "factor of the cosines of `contrastive`, 1 / temperature")
    margin_scale: float = within(1.0, POSITIVE, "factor of the rows' scores of `margin_mse`")
    projection: str | None = option(
        None,
        "if the vectors' widths differ: `teacher`, the teacher's vectors are reduced to their first principal "
        "components, as wide as the student; `student`, the student gets a linear layer to the teacher's width, which "
        "is saved with it; null: `teacher` for a narrower student, else `student`",
        choices=("teacher", "student"),
    )
    widths: list[int] | None = within(
        None,
        SIZE,
        "widths below the full one at which the first numbers of a vector are to be a vector, too (Matryoshka); each "
        "term is the mean over them and the full width",
    )


def embedding_of(config: Any) -> EmbedConfig:
    """The objective of a run that distils a sentence encoder."""
    assert isinstance(config.objective, EmbedConfig)
    return config.objective
