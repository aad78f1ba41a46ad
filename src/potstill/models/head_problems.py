"""Facts of a head in config.json besides its labels: the loss its logits are made for, and contradictions.

Like `head_labels`, it reads config.json alone and imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from potstill.models.head_labels import Head, head_from_settings, labels_from_settings, unnamed

# transformers' names: a squared error of scores, a softmax over labels, a sigmoid of each label.
Problem = Literal["regression", "single_label_classification", "multi_label_classification"]
PROBLEMS: tuple[Problem, ...] = get_args(Problem)


def declared_problem(settings: Mapping[str, Any]) -> Problem | None:
    """The `problem_type` of a config.json; None where it names none of transformers'."""
    return next((problem for problem in PROBLEMS if problem == settings.get("problem_type")), None)


def problem_of(settings: Mapping[str, Any]) -> Problem:
    """Problem type of a head: as declared, otherwise as transformers infers it (one label: a score)."""
    one = len(labels_from_settings(settings) or ()) == 1
    return declared_problem(settings) or ("regression" if one else "single_label_classification")


def default_problem(labels: Sequence[str]) -> Problem:
    """Problem type of a head by default: single labels, or a score without labels."""
    return "single_label_classification" if labels else "regression"


def settings_fault(settings: Mapping[str, Any]) -> str | None:
    """Why a config.json cannot say what its head's logits mean; None where it can, or where there is no head."""
    problem = settings.get("problem_type")
    if problem is not None and declared_problem(settings) is None:
        return f"problem_type={problem!r} of its config.json is unknown; one of {', '.join(PROBLEMS)}"
    if head_from_settings(settings) in (None, "spans"):
        return None
    names, numbers = settings.get("id2label") or {}, settings.get("label2id") or {}
    count = settings.get("num_labels")
    if count is not None and (type(count) is not int or count < 1):
        return f"num_labels={count!r} of its config.json is not a number of labels; give 1 or more"
    if fault := _names_fault(names) or _numbers_fault(numbers):
        return f"{fault}; number the labels from 0 on, each by a name of its own"
    if names and count is not None and count != len(names):
        return (
            f"num_labels={count} of its config.json contradicts id2label, which names {len(names)} labels; "
            "correct one of them"
        )
    known = labels_from_settings(settings) or ()
    if problem == "single_label_classification" and len(known) == 1:
        return (
            f"problem_type={problem} of its config.json contradicts id2label, which names one label; "
            "a single score is regression"
        )
    return _contradiction({int(number): str(name) for number, name in names.items()}, numbers)


def problem_fault(settings: Mapping[str, Any], head: Head, wanted: Problem | None) -> str | None:
    """Why logits of a head of sequences would be misread on a data set; None where they would not.

    Args:
        settings: content of config.json.
        head: that the data set needs; heads of tokens and of spans have one reading.
        wanted: what the data set is.
    """
    if head != "sequence" or head_from_settings(settings) != head or wanted is None:
        return None
    declared, found = declared_problem(settings), problem_of(settings)
    if found == wanted:
        return None
    one = len(labels_from_settings(settings) or ()) == 1
    if "multi_label_classification" not in (found, wanted) and (wanted == "regression") != one:
        return None  # another number of labels, which their names say
    own = f"problem_type={'null' if declared is None else declared} of its config.json"
    return f"{own} is not {wanted}, which {_DATA[wanted]}; use a model that is fine-tuned so{_OTHER[found]}"


_DATA: dict[Problem, str] = {
    "regression": "the data set with benchmark.task=regression is",
    "single_label_classification": "the data set with one label of each row (benchmark.multi_label=false) is",
    "multi_label_classification": "the data set with sets of labels (benchmark.multi_label=true) is",
}
_OTHER: dict[Problem, str] = {
    "regression": "",
    "single_label_classification": "",
    "multi_label_classification": ", or benchmark.multi_label=true for data with sets of labels",
}


def _names_fault(names: Any) -> str | None:
    if not isinstance(names, Mapping):
        return f"id2label={names!r} of its config.json is not a dictionary"
    try:
        numbers = sorted(map(int, names))
    except (TypeError, ValueError):
        numbers = [-1]
    if numbers != list(range(len(names))) or len(set(map(str, names.values()))) < len(names):
        return f"id2label={dict(names)!r} of its config.json does not name labels"
    return None


def _numbers_fault(numbers: Any) -> str | None:
    if not isinstance(numbers, Mapping):
        return f"label2id={numbers!r} of its config.json is not a dictionary"
    if not all(type(number) is int for number in numbers.values()):
        return f"label2id={dict(numbers)!r} of its config.json does not number labels"
    return None


def _contradiction(names: Mapping[int, str], numbers: Mapping[str, int]) -> str | None:
    """Contradiction of `id2label` and `label2id` if both name labels, not only numbers."""
    ordered, numbered = (
        [names[number] for number in range(len(names))],
        sorted(numbers, key=numbers.__getitem__),
    )
    if not names or not numbers or unnamed(ordered) or unnamed(numbered) or numbers == _turned(names):
        return None
    wrong = next(name for name in [*ordered, *numbered] if numbers.get(name) != _turned(names).get(name))
    one, other = (known.get(wrong, "none") for known in (_turned(names), numbers))
    return (
        f"id2label and label2id of its config.json contradict each other: '{wrong}' is label {one} in the one and "
        f"{other} in the other; correct one of them"
    )


def _turned(names: Mapping[int, str]) -> dict[str, int]:
    return {name: number for number, name in names.items()}
