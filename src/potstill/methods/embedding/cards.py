"""Model cards of sentence encoders, in the form of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from potstill.config import TrainConfig, teachers_of
from potstill.models.bigru import MODEL_TYPE as BIGRU
from potstill.models.sentence_folders import SentenceSettings
from potstill.reporting.model_card import code_span, figure_list


def encoder_card(
    config: TrainConfig, data: str, summary: dict[str, Any], settings: SentenceSettings, student: PreTrainedModel
) -> str:
    """The README.md of a student's folder.

    Args:
        config: of the run.
        data: the name of what it was trained on.
        summary: of the run.
        settings: how it makes a vector.
        student: as it is saved.
    """
    cache, names = config.teacher.cache, teachers_of(config)
    if cache.files or (not names and cache.replaces_teacher):
        names = [f"vectors of {Path(name).name}" for name in cache.files or [str(cache.folder)]]
    teacher = ", ".join(map(code_span, names)) or "none"
    steps = [f"{settings.pooling} pooling of at most {settings.max_length} tokens"]
    opened = "`transformers.AutoModel.from_pretrained` opens it, too, and gives the states before the pooling.\n"
    if settings.static:
        steps = ["the mean of a vector per token"]
        opened = "There is no transformer in it, so `transformers.AutoModel` cannot open it.\n"
    elif student.config.model_type == BIGRU:
        opened = "It opens after `import potstill.models.bigru`, which registers its architecture with transformers.\n"
    steps += ["a linear layer"] * (settings.dense is not None) + ["length 1"] * settings.normalize
    prompts = "".join(f"\n- {code_span(name)}: {code_span(text)}" for name, text in settings.prompts.items() if text)
    return (
        "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\n"
        "tags: [sentence-transformers, sentence-similarity, feature-extraction, distillation, potstill]\n---\n\n"
        "# Sentence encoder\n\n"
        f"Trained with {code_span(f'objective={config.objective.name}')} on {code_span(data)}; teacher: {teacher}; "
        f"seed {config.seed}. A vector is made by {', '.join(steps)}.\n\n"
        f"{figure_list(summary)}\n\n"
        + (f"Prompts, for `model.encode(texts, prompt_name=<name>)`:\n{prompts}\n\n" if prompts else "")
        + "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("<this folder>")\nvectors = model.encode(["A sentence.", "Another one."])\n'
        "print(model.similarity(vectors, vectors))\n```\n\n"
        f"{opened}"
    )
