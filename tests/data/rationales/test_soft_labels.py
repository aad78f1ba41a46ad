"""Label probabilities: reading, validation, order of the choices."""

import json
import os
import re

import pytest

from potstill.data.common import text_files
from potstill.data.rationales.readers import read_own, read_split
from potstill.data.rationales.rows import split_validation, subsample
from potstill.data.rationales.soft_labels import aligned, read_probabilities
from potstill.errors import DataError, FormatError

CHOICES = ["lake", "pond"]


@pytest.fixture
def sets(tmp_path):
    """20 rows of `cqa` with PaLM's outputs and label probabilities of all but the first."""
    home = tmp_path / "cqa"
    (home / "llm").mkdir(parents=True)
    rows = [{"question": f"where {n} ?", "choices": CHOICES, "answer": CHOICES[n % 2]} for n in range(20)]
    (home / "cqa_train.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    outputs = [f"It is so. So the answer is ({'ab'[n % 2]}) {CHOICES[n % 2]}." for n in range(20)]
    (home / "llm" / "train_CoT_0.json").write_text(json.dumps(outputs))
    soft = [None, *({"lake": 1 - n / 20, "pond": n / 20} for n in range(1, 20))]
    (home / "llm" / "train_labels.json").write_text(json.dumps(soft))
    return tmp_path


def test_probabilities_stay_with_their_rows(sets):
    train, valid = (read_split(sets, "cqa", split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (18, 2)
    for rows in (train, valid, subsample(train, 0.5, 3), split_validation(train)[0]):
        for text, soft in zip(rows.inputs, rows.soft, strict=True):
            number = int(text.split()[1])
            assert (soft is None) == (number == 0)
            if soft is not None:
                assert soft["pond"] == pytest.approx(number / 20)


def test_probabilities_are_optional(sets):
    assert set(read_split(sets, "cqa", "train", rationales=None).soft) == {None}
    (sets / "cqa" / "llm" / "train_labels.json").unlink()
    assert set(read_split(sets, "cqa", "train").soft) == {None}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[null]", "1 rows.*20 outputs"),
        ("{}", "20 outputs"),
        ("[", "invalid JSON"),
        (json.dumps([{"lake": 0.9, "pond": 0.9}] * 20), "row 0: invalid"),
        (json.dumps([None, {"lake": "high"}] * 10), "row 1: invalid"),
    ],
)
def test_invalid_probabilities(sets, content, said):
    path = sets / "cqa" / "llm" / "train_labels.json"
    path.write_text(content)
    with pytest.raises(FormatError, match=said) as error:
        read_split(sets, "cqa", "train")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_of_ones_own_have_a_field(tmp_path):
    row = {"input": "where ?", "label": "lake", "rationale": "so", "choices": CHOICES}
    lines = [row | {"label_probabilities": {"pond": 0.25, "lake": 0.75}}, row]
    (tmp_path / "own.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = read_own(tmp_path / "own.jsonl")
    assert rows.soft == [{"pond": 0.25, "lake": 0.75}, None]
    assert aligned(rows.soft[0], rows.choices[0]) == [0.75, 0.25]


def test_probabilities_in_the_order_of_the_choices():
    assert aligned({"sea": 1.0}, CHOICES) is None
    assert aligned(None, CHOICES) is None
    assert aligned({"lake": 1.0}, None) is None
    assert aligned({"lake": 0.2, "sea": 0.8}, CHOICES) == [1.0, 0.0]


@pytest.mark.parametrize("kind", ["pipe", "device", "long"])
def test_a_file_that_would_not_end_is_rejected(sets, kind, monkeypatch):
    path = sets / "cqa" / "llm" / "train_labels.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.setattr(text_files, "DOCUMENT_BYTES", 1000)
        path.write_text(json.dumps([None] * 20) + " " * 1000)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_probabilities(path, 20)
