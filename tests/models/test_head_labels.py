import json

import pytest

from potstill.models.head_labels import SPAN_LABELS, label_order, read_labels

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
            BERT
            | {
                "architectures": ["BertForSequenceClassification"],
                "id2label": {"1": "b", "0": "a", "10": "k"},
            },
            ("a", "b", "k"),
        ),
    ],
)
def test_the_labels_of_a_head(settings, labels, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert read_labels("model", str(tmp_path), "sequence") == labels


def test_the_labels_of_other_heads(tmp_path):
    for name, head, labels in (
        ("TokenClassification", "tokens", ("O", "B-X")),
        ("QuestionAnswering", "spans", SPAN_LABELS),
    ):
        settings = BERT | {"architectures": [f"BertFor{name}"], "id2label": {"0": "O", "1": "B-X"}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert read_labels("model", str(tmp_path), head) == read_labels("model", str(tmp_path)) == labels
        assert read_labels("model", str(tmp_path), "sequence") is None


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
def test_labels_are_matched_by_name_or_not_at_all(found, wanted, order):
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
def test_numbers_stand_for_names_only_in_a_known_order(found, wanted, order):
    assert label_order(found, wanted, ordered=False) == order
