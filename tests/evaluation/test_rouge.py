"""ROUGE-L against values worked out by hand."""

import pytest

from potstill.evaluation.rouge import rouge_l


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # Lin 2004, section 3.1: the candidates of "police killed the gunman", with beta 1.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        # Subsequence of 3 words; precision 3/4, recall 3/6.
        ("the cat sat down", "the black cat sat on it", 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6)),
        ("The SEA, is: wet!", "the sea is wet", 1.0),
        ("sea", "pond", 0.0),
        ("", "pond", 0.0),
        ("das Männchen läuft", "das Weibchen läuft", 2 / 3),
    ],
)
def test_value(prediction, reference, expected):
    assert rouge_l([prediction], [reference]) == [pytest.approx(expected, abs=1e-6)]


def test_a_value_for_each_pair():
    assert rouge_l(["a b", "c"], ["a b", "d"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        rouge_l(["a"], [])
