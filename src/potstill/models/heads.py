"""Heads of task models, from config.json alone: their labels, what their logits mean, and those of a data set.

Like `specs`, this imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, get_args

Head = Literal["sequence", "tokens", "spans"]
# As in transformers: a squared error of scores, a softmax over labels, a sigmoid of each label.
Problem = Literal["regression", "single_label_classification", "multi_label_classification"]
PROBLEMS: tuple[Problem, ...] = get_args(Problem)

# The class of a model in transformers is the architecture's name and one of these.
SUFFIXES: dict[Head, str] = {
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
}
SPAN_LABELS = ("start", "end")  # the logits of each token of a head for spans; a config.json does not name them
# Without exponents: 1e5 may as well be a code.
_NUMBER = re.compile(r"(?:LABEL_)?([+-]?(?:\d+\.?\d*|\.\d+))")
_DATA: dict[Problem, str] = {
    "regression": "the data set of scores (benchmark=text_regression) is",
    "single_label_classification": "the data set with one label of each row (benchmark.multi_label=false) is",
    "multi_label_classification": "the data set with sets of labels (benchmark.multi_label=true) is",
}


def head_of(name: str) -> Head | None:
    """The head of a model class of transformers; None if it is not a task model's."""
    return next((head for head, suffix in SUFFIXES.items() if name.endswith(suffix)), None)


def head_from_settings(settings: Mapping[str, Any]) -> Head | None:
    """The head that the content of a config.json names."""
    return next((head for name in settings.get("architectures") or () if (head := head_of(str(name)))), None)


def labels_from_settings(settings: Mapping[str, Any], head: Head | None = None) -> tuple[str, ...] | None:
    """The labels that the content of a config.json names; `LABEL_0`, `LABEL_1`, ... if it names none.

    Args:
        settings: content of config.json.
        head: the required one; None for any.

    Returns:
        Names by number; None if the model has no such head.
    """
    own = head_from_settings(settings)
    if own is None or head not in (None, own):
        return None
    if own == "spans":
        return SPAN_LABELS
    names, numbers = settings.get("id2label") or {}, settings.get("label2id") or {}
    count = len(names) or settings.get("num_labels") or len(numbers) or 2  # 2 is the default of transformers
    known = [str(names[number]) for number in sorted(names, key=int)] or [f"LABEL_{n}" for n in range(count)]
    if unnamed(known) and sorted(numbers.values()) == list(range(count)):
        known = sorted(map(str, numbers), key=lambda name: numbers[name])
    return tuple(known)


def declared_problem(settings: Mapping[str, Any]) -> Problem | None:
    """The `problem_type` of a config.json; None if it is none of transformers'."""
    return next((problem for problem in PROBLEMS if problem == settings.get("problem_type")), None)


def problem_of(settings: Mapping[str, Any]) -> Problem:
    """Problem type of a head: as declared, otherwise as transformers infers it (one label: a score)."""
    one = len(labels_from_settings(settings) or ()) == 1
    return declared_problem(settings) or ("regression" if one else "single_label_classification")


def default_problem(labels: Sequence[str]) -> Problem:
    """Problem type of a head by default: single labels, or a score without labels."""
    return "single_label_classification" if labels else "regression"


def label_order(found: Sequence[str], wanted: Sequence[str], ordered: bool = True) -> list[int] | None:
    """The numbers that a model gives to the labels of a data set.

    Labels are matched by name (`named_order`). If a model names its labels by number alone (`LABEL_0`, `0`), their
    order is assumed to be that of the data set if the latter is a known one.

    Args:
        found: names of the model's labels, by number.
        wanted: names of the data set's labels, by number; empty for a regression.
        ordered: whether the order of `wanted` is published or configured, not the result of sorting.

    Returns:
        For each wanted label its number in the model; None if the labels differ, or cannot be matched by name.
    """
    if len(found) != max(len(wanted), 1):
        return None
    if not wanted or tuple(found) == tuple(wanted):
        return list(range(len(found)))
    numbered = all(name == f"LABEL_{number}" for number, name in enumerate(found))
    if ordered and (numbered or (unnamed(found) and not any(map(match_labels(wanted, found).get, wanted)))):
        return list(range(len(found)))
    return named_order(found, wanted)


def named_order(found: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """As `label_order`, by name alone."""
    matched = match_labels(wanted, found)
    order = [found.index(matched[name]) for name in wanted if name in matched]
    return order if len(order) == len(found) == len(set(order)) else None


def match_labels(written: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Find the name that each label means.

    Equal spellings are matched first. The others are compared as numbers (`1`, `1.0`, `+1`, `01` and `LABEL_1` are
    equal), or without case, spaces, hyphens and underscores, if one label of each side has that spelling.

    Args:
        written: distinct labels, as a file or a model has them.
        names: distinct names of labels.

    Returns:
        The name of each label that means one.
    """
    spelled, called = _by_spelling(written), _by_spelling(names)
    matched = {
        label: called[plain][0]
        for plain, labels in spelled.items()
        for label in labels
        if len(called.get(plain, ())) == 1 and (len(labels) == 1 or isinstance(plain, Decimal))
    }
    return matched | {label: label for label in set(written) & set(names)}


def number_of(label: str) -> Decimal | None:
    """The number that a label is (`-1`, `2.0`, `LABEL_3`); None for a name."""
    found = _NUMBER.fullmatch(label)
    return None if found is None else Decimal(found[1])


def unnamed(labels: Sequence[str]) -> bool:
    """Whether labels are numbers alone, `LABEL_0` or `0`."""
    return all(name in (f"LABEL_{number}", str(number)) for number, name in enumerate(labels))


def head_problem(found: Sequence[str] | None, labels: Sequence[str] | None, head: Head) -> str:
    """Error of a head whose labels are not those of a data set (None: not known)."""
    if found is None or labels is None:
        return f"has no trained head of its kind ({SUFFIXES[head]}); train one with objective=finetune"
    wanted = ", ".join(labels) or "one score"
    return (
        f"its labels are {', '.join(found)}, the data set's {wanted}: they cannot be matched by name; "
        "use a model of the same labels"
        + (", or name them in the model's order by benchmark.labels" if len(found) == len(labels) else "")
    )


def settings_problem(settings: Mapping[str, Any]) -> str | None:
    """Error of a config.json that is unclear or contradictory about the logits of its head; None if it is not."""
    problem = settings.get("problem_type")
    if problem is not None and declared_problem(settings) is None:
        return f"problem_type={problem!r} of its config.json is unknown; one of {', '.join(PROBLEMS)}"
    if head_from_settings(settings) in (None, "spans"):
        return None
    names, numbers = settings.get("id2label") or {}, settings.get("label2id") or {}
    count = settings.get("num_labels")
    if count is not None and (type(count) is not int or count < 1):
        return f"num_labels={count!r} of its config.json is not a number of labels; give 1 or more"
    if error := _numbering_problem(names, numbers):
        return f"{error}; number the labels from 0 on, each by a name of its own"
    if names and count is not None and count != len(names):
        error = f"num_labels={count} of its config.json contradicts id2label, which names {len(names)} labels"
        return f"{error}; correct one of them"
    if problem == "single_label_classification" and len(labels_from_settings(settings) or ()) == 1:
        error = f"problem_type={problem} of its config.json contradicts id2label, which names one label"
        return f"{error}; a single score is regression"
    return _contradiction({str(name): int(number) for number, name in names.items()}, numbers)


def problem_type_error(settings: Mapping[str, Any], head: Head, wanted: Problem | None) -> str | None:
    """Error of a head of sequences whose logits a data set would misread; None if it would not.

    Args:
        settings: content of config.json.
        head: that the data set needs; heads of tokens and of spans have one reading.
        wanted: the problem type of the data set.
    """
    if head != "sequence" or head_from_settings(settings) != head or wanted is None:
        return None
    found = problem_of(settings)
    if found == wanted:
        return None
    one = len(labels_from_settings(settings) or ()) == 1
    sets = "multi_label_classification"
    if sets not in (found, wanted) and (wanted == "regression") != one:
        return None  # another number of labels, which is reported by name
    own = f"problem_type={declared_problem(settings) or 'null'} of its config.json"
    other = ", or benchmark.multi_label=true for data with sets of labels" if found == sets else ""
    return f"{own} is not {wanted}, which {_DATA[wanted]}; use a model that is fine-tuned so{other}"


def _by_spelling(labels: Sequence[str]) -> dict[Decimal | str, list[str]]:
    groups: dict[Decimal | str, list[str]] = {}
    for label in labels:
        number = number_of(label)
        plain = re.sub(r"[\s_-]", "", label).lower() if number is None else number
        groups.setdefault(plain, []).append(label)
    return groups


def _numbering_problem(names: Any, numbers: Any) -> str | None:
    """Error of `id2label` and `label2id`, each by itself."""
    for key, value in (("id2label", names), ("label2id", numbers)):
        if not isinstance(value, Mapping):
            return f"{key}={value!r} of its config.json is not a dictionary"
    try:
        found = sorted(map(int, names))
    except (TypeError, ValueError):
        found = [-1]
    if found != list(range(len(names))) or len(set(map(str, names.values()))) < len(names):
        return f"id2label={dict(names)!r} of its config.json does not name labels"
    if not all(type(number) is int for number in numbers.values()):
        return f"label2id={dict(numbers)!r} of its config.json does not number labels"
    return None


def _contradiction(names: Mapping[str, int], numbers: Mapping[str, int]) -> str | None:
    """Contradiction of two numberings if both name labels, not only numbers."""
    ordered, numbered = (sorted(own, key=own.__getitem__) for own in (names, numbers))
    if not names or not numbers or unnamed(ordered) or unnamed(numbered) or names == numbers:
        return None
    wrong = next(name for name in [*ordered, *numbered] if numbers.get(name) != names.get(name))
    one, other = names.get(wrong, "none"), numbers.get(wrong, "none")
    return (
        f"id2label and label2id of its config.json contradict each other: '{wrong}' is label {one} in the one and "
        f"{other} in the other; correct one of them"
    )
