"""Evaluation of what decoders write."""

from __future__ import annotations

from potstill.evaluation.generation import SAMPLE_COLUMNS
from potstill.reporting.report import Table
from potstill.training.generative import GenerativeDistillation

SAMPLES = 8  # rows that are shown


def samples_of(module: GenerativeDistillation, title: str = "Samples") -> Table:
    """The first rows with what the student writes, greedily."""
    evaluator = module.generation.evaluator
    assert evaluator is not None
    written = module.written or module.write(evaluator.numbers[:SAMPLES])
    return Table(title, SAMPLE_COLUMNS, evaluator.samples(written, SAMPLES), "The first rows of the evaluation.")
