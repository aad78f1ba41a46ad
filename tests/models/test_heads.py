"""Labels and problem types of heads, as config.json gives them."""

import pytest

from potstill.models.heads import (
    PROBLEMS,
    SPAN_LABELS,
    label_order,
    labels_from_settings,
    problem_of,
    problem_type_error,
    settings_problem,
)

BERT = {"model_type": "bert"}


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        (BERT, None),
        (BERT | {"architectures": ["BertForMaskedLM"]}, None),
        (BERT | {"architectures": ["BertForTokenClassification"], "id2label": {"0": "O"}}, None),
        (BERT | {"architectures": ["BertForQuestionAnswering"]}, None),
        (BERT | {"architectures": ["BertForSequenceClassification"]}, ("LABEL_0", "LABEL_1")),
        (
            BERT | {"architectures": ["BertForSequenceClassification"], "id2label": {"1": "b", "0": "a", "10": "k"}},
            ("a", "b", "k"),
        ),
    ],
)
def test_labels_of_a_head_of_sequences(settings, labels):
    assert labels_from_settings(settings, "sequence") == labels


@pytest.mark.parametrize(
    ("name", "head", "labels"),
    [("TokenClassification", "tokens", ("O", "B-X")), ("QuestionAnswering", "spans", SPAN_LABELS)],
)
def test_labels_of_other_heads(name, head, labels):
    settings = BERT | {"architectures": [f"BertFor{name}"], "id2label": {"0": "O", "1": "B-X"}}
    assert labels_from_settings(settings, head) == labels_from_settings(settings) == labels
    assert labels_from_settings(settings, "sequence") is None


@pytest.mark.parametrize(
    ("found", "wanted", "order"),
    [
        (("no", "yes"), ("no", "yes"), [0, 1]),
        (("yes", "no"), ("no", "yes"), [1, 0]),
        (("CONTRADICTION", "Neutral", "entailment"), ("entailment", "neutral", "contradiction"), [2, 1, 0]),
        (("Not Entailment", "entailment"), ("entailment", "not_entailment"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("no", "yes"), [0, 1]),
        (("0", "1"), ("no", "yes"), [0, 1]),
        (("LABEL_0",), (), [0]),
        (("no", "yes"), (), None),
        (("NEG", "POS"), ("negative", "positive"), None),
        (("no", "yes", "maybe"), ("no", "yes"), None),
        (("a_b", "a-b"), ("ab", "c"), None),
        (("-1", "0", "1"), ("-1", "0", "1"), [0, 1, 2]),
        (("1", "-1"), ("-1", "1"), [1, 0]),
        (("a", "A"), ("A", "a"), [1, 0]),
        (("A-B", "AB", "c"), ("AB", "C", "A-B"), [1, 2, 0]),
        (("0.0", "1.0", "10.0", "2.0"), ("0", "1", "2", "10"), [0, 1, 3, 2]),
        (("0", "1"), ("1", "0"), [1, 0]),
        (("0", "1", "2"), ("-1", "0", "1"), None),
        (("LABEL_0", "LABEL_1"), ("1", "2"), [0, 1]),
        (("LABEL_1", "LABEL_0"), ("LABEL_0", "LABEL_1"), [1, 0]),
    ],
)
def test_labels_are_matched_by_name(found, wanted, order):
    assert label_order(found, wanted) == order


@pytest.mark.parametrize(
    ("found", "wanted", "order"),
    [
        (("LABEL_0", "LABEL_1"), ("no", "yes"), None),
        (("0", "1"), ("no", "yes"), None),
        (("LABEL_0", "LABEL_1"), ("0", "1"), [0, 1]),
        (("LABEL_0", "LABEL_1"), ("1", "2"), None),
        (("LABEL_0", "LABEL_1"), ("LABEL_0", "LABEL_1"), [0, 1]),
        (("yes", "no"), ("no", "yes"), [1, 0]),
        (("LABEL_0",), (), [0]),
    ],
)
def test_numbers_are_names_only_in_a_known_order(found, wanted, order):
    assert label_order(found, wanted, ordered=False) == order


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
def test_a_head_fits_data_of_its_own_problem_only(settings, problem):
    own = HEAD | settings
    assert settings_problem(own) is None
    assert problem_of(own) == problem
    assert problem_type_error(own, "sequence", problem) is None
    assert problem_type_error(own, "tokens", SETS) is None
    declared, one = settings.get("problem_type"), len(labels_from_settings(own)) == 1
    for wanted in set(PROBLEMS) - {problem}:
        error = problem_type_error(own, "sequence", wanted)
        if SETS not in (problem, wanted) and (wanted == REGRESSION) != one:
            assert error is None  # another number of labels, which are compared by name
        else:
            assert f"problem_type={declared or 'null'}" in error
            assert wanted in error


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
    assert shown in settings_problem(HEAD | settings)


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
def test_names_are_read_from_either_entry(settings, labels):
    assert settings_problem(HEAD | settings) is None
    assert labels_from_settings(HEAD | settings) == labels


def test_language_models_and_heads_of_spans_have_no_contradiction():
    for name in ("BertForMaskedLM", "BertForQuestionAnswering"):
        assert settings_problem({"architectures": [name], "num_labels": 5} | TWO) is None
