"""How a student of step-by-step distillation is asked, in its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asked:
    """The form of a student's inputs and targets.

    Attributes:
        prefixes: of the input, by task.
        chat: whether the input is a user's message in the chat template of the tokenizer; None: unknown.
        separator: text between label and rationale in one target; None if they are targets of their own.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    chat: bool | None = None
    separator: str | None = None

    def remember(self, config: Any) -> None:
        """Write into the configuration of a student, in the entry that T5 uses."""
        shared = {"chat": self.chat or None, "separator": self.separator}
        more = {name: value for name, value in shared.items() if value is not None}
        config.task_specific_params = {task: {"prefix": prefix, **more} for task, prefix in self.prefixes.items()}


def asked_of(settings: Mapping[str, Any], task: str) -> Asked | None:
    """Read the content of a config.json; None without a prefix of a task.

    Args:
        settings: the decoded config.json.
        task: that a student of step-by-step distillation has.
    """
    tasks = settings.get("task_specific_params") or {}
    prefixes = {name: own["prefix"] for name, own in tasks.items() if isinstance(own.get("prefix"), str)}
    if task not in prefixes:
        return None
    return Asked(prefixes, bool(tasks[task].get("chat")), tasks[task].get("separator"))
