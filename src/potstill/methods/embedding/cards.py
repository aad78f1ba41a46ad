"""Model cards of sentence encoders, in the form of sentence-transformers."""

from __future__ import annotations

from typing import Any

from potstill.config import TrainConfig, teachers_of
from potstill.models.sentence_folders import SentenceSettings
from potstill.reporting.model_card import code_span, figure_list


def encoder_card(config: TrainConfig, data: str, summary: dict[str, Any], settings: SentenceSettings) -> str:
    """The README.md of a student's folder.

    Args:
        config: of the run.
        data: the name of what it was trained on.
        summary: of the run.
        settings: how it makes a vector.
    """
    teacher = ", ".join(map(code_span, teachers_of(config))) or "none"
    steps = [f"{settings.pooling} pooling of at most {settings.max_length} tokens"]
    steps += ["a linear layer"] * (settings.dense is not None) + ["length 1"] * settings.normalize
    prompts = "".join(f"\n- {code_span(name)}: {code_span(text)}" for name, text in settings.prompts.items() if text)
    return (
        "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\n"
        "tags: [sentence-transformers, sentence-similarity, feature-extraction, distillation, potstill]\n---\n\n"
        "# Sentence encoder\n\n"
        f"Trained with {code_span(f'objective={config.objective.name}')} on {code_span(data)}; teacher: {teacher}; "
        f"seed {config.seed}. A vector is made by {', '.join(steps)}.\n\n"
        f"{figure_list(summary)}\n\n"
        + (f"Prompts:\n{prompts}\n\n" if prompts else "")
        + "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("<this folder>")\nvectors = model.encode(["A sentence.", "Another one."])\n'
        "print(model.similarity(vectors, vectors))\n```\n\n"
        "`transformers.AutoModel.from_pretrained` opens it, too, and gives the states before the pooling.\n"
    )
