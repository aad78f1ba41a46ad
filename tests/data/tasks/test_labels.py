import pytest

from potstill.data.tasks.labels import Task, encode_labels, labels_of, other_spellings, with_known_labels
from potstill.data.tasks.readers import Rows
from potstill.errors import DataError


def rows(*labels):
    places = [f"line {number}" for number in range(2, len(labels) + 2)]
    return Rows((["a"] * len(labels),), list(labels), places, "rows.csv", "benchmark.eval_file")


def task(*labels, ordered=False, **aliases):
    return Task("own", "classification", labels, ("accuracy",), "accuracy", "max", aliases, ordered)


def encoded(labels, own):
    return encode_labels(rows(*labels), own).tolist()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("b", "a", "b"), ("a", "b")),
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("10.0", "2.0", "11.0"), ("2.0", "10.0", "11.0")),
        (("1", "1.0", "2", "02", "+2"), ("1", "2")),
        (("a", "A"), ("A", "a")),
        (("A-B", "AB"), ("A-B", "AB")),
        (("1", "x"), ("1", "x")),
    ],
)
def test_spellings_of_one_number_are_one_label(labels, names):
    assert labels_of(rows(*labels)) == names


@pytest.mark.parametrize("written", ["2", "2.0", "+2", "02", "2.", "002.00", " 2 "])
def test_a_number_is_the_same_label_in_any_spelling(written):
    names = ("0.0", "1.0", "2.0", "10.0", "11.0")
    assert encoded([written, "10", "11.0", "0"], task(*names)) == [2, 3, 4, 0]
    assert encoded([written, "1"], task("0", "1", "2")) == [2, 1]
    assert encoded([written, "0"], task("LABEL_0", "LABEL_1", "LABEL_2")) == [2, 0]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (("-1", "0", "1"), ("-1", "0", "1"), [0, 1, 2]),
        (("a", "A"), ("A", "a"), [1, 0]),
        (("A-B", "AB"), ("AB", "A-B"), [1, 0]),
        (("Positive", "NEGATIVE"), ("negative", "positive"), [1, 0]),
        (("1e0", "1"), ("1", "1e0"), [1, 0]),
    ],
)
def test_equal_names_come_before_alike_ones(labels, names, numbers):
    assert encoded(labels, task(*names)) == numbers


@pytest.mark.parametrize(
    ("labels", "own"),
    [
        (("ab",), task("AB", "A-B")),
        (("AB", "A-B"), task("AB", "c")),
        (("1",), task("1.0", "+1")),
        (("3",), task("0", "1", "2")),
        (("-1",), task("0", "1", "2")),
        (("3",), task("a", "b", "c", ordered=True)),
        (("-1",), task("a", "b", "c", ordered=True)),
        (("0.5",), task("a", "b", "c", ordered=True)),
    ],
)
def test_what_could_be_several_labels_or_none_is_rejected(labels, own):
    with pytest.raises(DataError, match=r"line .: label '") as raised:
        encode_labels(rows(*labels), own)
    assert "benchmark.eval_file" in str(raised.value)


def test_positions_are_those_of_a_known_order():
    names = ("entailment", "neutral", "contradiction")
    part = rows("0", "2", "1.0", "neutral")
    assert encode_labels(part, task(*names, ordered=True)).tolist() == [0, 2, 1, 1]
    spellings = other_spellings(part, task(*names, ordered=True))
    assert spellings == "0 = entailment, 1.0 = neutral, 2 = contradiction"
    with pytest.raises(DataError, match=r"benchmark\.labels"):
        encode_labels(part, task(*sorted(names)))
    with pytest.raises(DataError, match=r"benchmark\.labels"):
        encode_labels(rows("no"), task("LABEL_0", "LABEL_1"))


def test_an_alias_is_a_label():
    own = task("no", "yes", ordered=True, nope="no")
    assert encoded(["nope", "yes", "0"], own) == [0, 1, 0]
    assert other_spellings(rows("nope", "yes"), own) == ""


@pytest.mark.parametrize(
    ("labels", "names", "kept"),
    [(("-1",), ("no", "yes"), False), (("", "-1"), ("0", "1"), False), (("-1",), ("-1", "1"), True)],
)
def test_minus_one_marks_a_missing_label_unless_it_is_one(labels, names, kept):
    known = with_known_labels(rows(*labels), task(*names))
    assert (known.labels is not None) == kept
