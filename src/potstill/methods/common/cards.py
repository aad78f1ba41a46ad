"""Model cards of students that transformers opens."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from potstill.config import TrainConfig, teachers_of
from potstill.models.backbone import task_head
from potstill.models.heads import SUFFIXES
from potstill.reporting.model_card import code_span, figure_list


def student_card(config: TrainConfig, data: str, summary: dict[str, Any], student: PreTrainedModel) -> str:
    """The README.md of a student's folder.

    Args:
        config: of the run.
        data: the name of what it was trained on.
        summary: of the run.
        student: as it is saved.
    """
    teacher = ", ".join(map(code_span, teachers_of(config))) or "none"
    opener = _opener(student)
    more = "" if opener != "AutoModel" else " (or the class for its head)"
    # transformers does not know the class of a recurrent student.
    own = student.config.model_type == "bigru"
    return (
        "---\nlibrary_name: transformers\ntags: [distillation, potstill]\n---\n\n"
        f"# Student\n\nTrained with {code_span(f'objective={config.objective.name}')} on "
        f"{code_span(data)}; teacher: {teacher}; "
        f"seed {config.seed}.\n\n{figure_list(summary)}\n\n"
        f"Open it with `transformers.{opener}.from_pretrained`{more}"
        + (", after `import potstill.models.bigru`: transformers alone cannot.\n" if own else ".\n")
    )


def _opener(student: PreTrainedModel) -> str:
    """The class of transformers that opens a student."""
    if student.config.is_encoder_decoder:
        return "AutoModelForSeq2SeqLM"
    head = task_head(student)
    return f"AutoModel{SUFFIXES[head]}" if head else "AutoModel"
