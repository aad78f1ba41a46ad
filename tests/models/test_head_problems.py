"""What config.json says of a head: which problem it is of, and contradictions."""

import pytest

from potstill.models.head_labels import labels_from_settings
from potstill.models.head_problems import PROBLEMS, problem_fault, problem_of, settings_fault

HEAD = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
REGRESSION, SINGLE, SETS = PROBLEMS
TWO = {"id2label": {"0": "a", "1": "b"}}
ONE = {"id2label": {"0": "a"}}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (TWO, SINGLE),
        ({}, SINGLE),
        (ONE, REGRESSION),
        ({"num_labels": 1}, REGRESSION),
        (TWO | {"problem_type": None}, SINGLE),
        *(((TWO if own != REGRESSION else ONE) | {"problem_type": own}, own) for own in PROBLEMS),
        (TWO | {"problem_type": REGRESSION}, REGRESSION),
        (ONE | {"problem_type": SETS}, SETS),
    ],
)
def test_a_head_fits_data_of_its_own_problem_alone(settings, problem):
    own = HEAD | settings
    assert settings_fault(own) is None
    assert problem_of(own) == problem
    assert problem_fault(own, "sequence", problem) is None
    assert problem_fault(own, "tokens", SETS) is None
    declared, one = settings.get("problem_type"), len(labels_from_settings(own)) == 1
    for wanted in set(PROBLEMS) - {problem}:
        fault = problem_fault(own, "sequence", wanted)
        if SETS not in (problem, wanted) and (wanted == REGRESSION) != one:
            assert fault is None  # another number of labels, which are compared by name
        else:
            assert f"problem_type={declared or 'null'}" in fault
            assert wanted in fault


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (TWO | {"problem_type": "ranking"}, "problem_type='ranking'"),
        (TWO | {"problem_type": ["regression"]}, "problem_type="),
        (ONE | {"problem_type": SINGLE}, "problem_type=single_label_classification"),
        (TWO | {"num_labels": 3}, "num_labels=3"),
        ({"num_labels": "two"}, "num_labels='two'"),
        ({"num_labels": 0}, "num_labels=0"),
        ({"num_labels": True}, "num_labels=True"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label="),
        ({"id2label": {"x": "a", "1": "b"}}, "id2label="),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label="),
        ({"id2label": ["a", "b"]}, "id2label="),
        (TWO | {"label2id": ["a", "b"]}, "label2id="),
        (TWO | {"label2id": {"a": "0", "b": 1}}, "label2id="),
        (TWO | {"label2id": {"a": 1, "b": 0}}, "'a' is label 0 in the one and 1 in the other"),
        (TWO | {"label2id": {"a": 0, "c": 1}}, "'b' is label 1 in the one and none in the other"),
        (TWO | {"label2id": {"a": 0, "b": 1, "c": 2}}, "'c' is label none in the one and 2 in the other"),
    ],
)
def test_contradictions_are_named(settings, shown):
    assert shown in settings_fault(HEAD | settings)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        (TWO | {"label2id": {"a": 0, "b": 1}, "num_labels": 2}, ("a", "b")),
        (TWO | {"label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ("a", "b")),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"b": 1, "a": 0}}, ("a", "b")),
        ({"label2id": {"c": 2, "b": 1, "a": 0}}, ("a", "b", "c")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
    ],
)
def test_names_are_taken_from_where_they_are(settings, labels):
    assert settings_fault(HEAD | settings) is None
    assert labels_from_settings(HEAD | settings) == labels


def test_language_models_and_heads_of_spans_have_no_labels_to_contradict():
    for name in ("BertForMaskedLM", "BertForQuestionAnswering"):
        assert settings_fault({"architectures": [name], "num_labels": 5} | TWO) is None
