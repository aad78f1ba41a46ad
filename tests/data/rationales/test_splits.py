"""Rows for training, validation and test."""

import json
import shutil

import pytest

from potstill.config.data import SetDataConfig
from potstill.data.rationales.rows import with_others_rationales
from potstill.data.rationales.splits import evaluated_part, training_parts
from potstill.errors import DataError, FileError, FormatError

LETTERS = "abcde"


def svamp(folder, name="svamp", *, train=20, test=4, outputs=("train", "test"), unparsed=()):
    home = folder / name
    (home / "llm").mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        rows = [{"input": f"{split} {n}", "label": f"({n} + 1)"} for n in range(count)]
        (home / f"{name}_{split}.json").write_text("\n".join(map(json.dumps, rows)))
        if split in outputs:
            texts = [
                "nothing" if n in unparsed else f"as {n}. The answer is ({n} + {1 + n % 2})." for n in range(count)
            ]
            (home / "llm" / f"{split}_CoT_0.json").write_text(json.dumps(texts))
    return folder


@pytest.fixture
def data(compose_config, tmp_path):
    def make(*overrides, **kwargs):
        folder = svamp(tmp_path / "sets", **kwargs)
        return compose_config("data=svamp", f"data.folder={folder}", "data.max_unparsed=0.3", *overrides).data

    return make


def test_parts_of_a_published_set(data):
    parts = training_parts(data(unparsed=(3, 4)), mode="task_prefix", seed=0)
    assert (len(parts.valid), len(parts.test)) == (2, 4)
    assert not set(parts.train.inputs) & set(parts.valid.inputs)
    whole = [f"train {n}" for n in range(20) if n not in (3, 4)]
    assert set(parts.train.inputs) == set(whole) - set(parts.valid.inputs)
    assert None not in parts.train.rationales
    assert parts.train.labels == [f"({text.split()[1]} + 1)" for text in parts.train.inputs]


def test_training_on_labels_of_the_llm_evaluates_on_gold_labels(data):
    parts = training_parts(data("data.labels=llm"), mode="standard", seed=0)
    assert any(label.endswith("+ 2)") for label in parts.train.labels)
    assert all(label.endswith("+ 1)") for label in [*parts.valid.labels, *parts.test.labels, *parts.read.labels])


def test_gold_labels_alone_need_no_outputs_and_keep_every_row(data):
    parts = training_parts(data(outputs=()), mode="standard", seed=0)
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (18, 2, 4)


def test_gold_labels_alone_keep_rows_with_unparsed_outputs(data):
    parts = training_parts(data(unparsed=(3, 4)), mode="standard", seed=0)
    assert len(parts.train) == 18


def test_rationales_need_outputs(data):
    with pytest.raises(FileError, match=r"'palm' .*svamp/train"):
        training_parts(data(outputs=()), mode="task_prefix", seed=0)


def test_a_test_part_without_outputs_has_no_rationales(data):
    parts = training_parts(data(outputs=("train",)), mode="task_prefix", seed=0)
    assert parts.test.rationales == [None] * 4
    assert None not in parts.valid.rationales


def test_a_file_of_outputs_is_that_of_the_training_rows(data, tmp_path):
    outputs = [{"rationale": f"since {n}", "label": f"({n})"} for n in range(20)]
    (tmp_path / "own.json").write_text(json.dumps(outputs))
    parts = training_parts(data(f"data.rationales={tmp_path}/own.json"), mode="task_prefix", seed=0)
    assert [text.replace("since", "train") for text in parts.train.rationales] == parts.train.inputs
    assert None not in parts.valid.rationales
    assert parts.test.rationales == [None] * 4


def test_rationales_of_other_rows_are_a_derangement(data):
    settings = data()
    parts = training_parts(settings, mode="label_then_rationale", seed=0)
    settings.shuffle_rationales = True
    one, again, other = (training_parts(settings, mode="task_prefix", seed=seed).train for seed in (3, 3, 4))
    assert one.rationales == again.rationales != other.rationales
    own = dict(zip(parts.train.inputs, parts.train.rationales, strict=True))
    assert len(set(own.values())) == len(own)
    assert (one.inputs, one.labels) == (parts.train.inputs, parts.train.labels)
    assert sorted(one.rationales) == sorted(own.values())
    assert all(own[text] != rationale for text, rationale in zip(one.inputs, one.rationales, strict=True))
    with pytest.raises(DataError, match=r"^data\.shuffle_rationales=true: .* has one row"):
        with_others_rationales(one.select([0]), 0)


def test_shares_are_parts_of_each_other_and_leave_the_other_parts(data):
    settings = data()
    found = {}
    for share in (0.25, 0.5, 1.0):
        settings.share = share
        parts = training_parts(settings, mode="task_prefix", seed=5)
        found[share] = set(parts.train.inputs)
        assert (len(parts.valid), len(parts.test)) == (2, 4)
    assert found[0.25] < found[0.5] < found[1.0]
    assert len(found[0.5]) == 9


def test_other_sets_are_added_to_what_is_trained_on(data, tmp_path):
    settings = data("data.more_sets=[asdiv]")
    home = tmp_path / "sets" / "asdiv"
    (home / "llm").mkdir(parents=True)
    rows = [{"Body": "more", "Question": str(n), "Answer": f"{n} (pens)"} for n in range(3)]
    (home / "asdiv_train.json").write_text("\n".join(map(json.dumps, rows)))
    (home / "llm" / "train_CoT_0.json").write_text(json.dumps([f"So. The answer is ({n})." for n in range(3)]))
    parts = training_parts(settings, mode="task_prefix", seed=0)
    assert len(parts.train) == 18 + 3
    assert parts.train.inputs[-1] == "more\n2"
    assert len(parts.valid) == 2


def test_outputs_and_rows_that_differ_in_number(data, tmp_path):
    settings = data()
    (tmp_path / "sets" / "svamp" / "llm" / "train_CoT_0.json").write_text(json.dumps(["a. The answer is (1)."]))
    with pytest.raises(FormatError, match=r"20 rows.* 1 outputs"):
        training_parts(settings, mode="task_prefix", seed=0)


def test_parts_for_evaluation(data, tmp_path, compose_config):
    settings = data()
    assert evaluated_part(settings, "test").inputs == [f"test {n}" for n in range(4)]
    assert len(evaluated_part(settings, "valid")) == 2
    settings.max_examples = 3
    assert len(evaluated_part(settings, "test")) == 3
    rows = [{"input": letter, "label": letter} for letter in LETTERS]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = compose_config("data=rationales", f"data.test_files=[{tmp_path}/own.jsonl]").data
    assert evaluated_part(own, "test").labels == list(LETTERS)


def test_own_files_take_the_place_of_their_part_alone(data, tmp_path):
    (tmp_path / "own.jsonl").write_text(json.dumps({"input": "own", "label": "1"}) + "\n")
    for key, part, other in (("eval", "valid", "test"), ("test", "test", "valid")):
        settings = data(f"data.{key}_files=[{tmp_path}/own.jsonl]")
        parts = training_parts(settings, mode="task_prefix", seed=0)._asdict()
        for given in (parts[part], evaluated_part(settings, part)):
            assert given.inputs == ["own"]
        assert parts[other].inputs == evaluated_part(settings, other).inputs
        assert "own" not in [*parts[other].inputs, *parts["train"].inputs]
        shutil.rmtree(tmp_path / "sets")


def test_validation_rows_are_the_same_however_many_outputs_there_are(data, tmp_path):
    settings = data("data.allow_partial=true")
    whole = training_parts(settings, mode="task_prefix", seed=0)
    outputs = [f"as {n}. The answer is ({n} + 1)." for n in range(12)]
    (tmp_path / "sets/svamp/llm/train_CoT_0.json").write_text(json.dumps(outputs))
    alone, both = (training_parts(settings, mode=mode, seed=0) for mode in ("standard", "task_prefix"))
    assert (alone.train.inputs, alone.valid.inputs) == (whole.train.inputs, whole.valid.inputs)
    answered = {f"train {n}" for n in range(12)}
    assert both.train.inputs == [text for text in whole.train.inputs if text in answered]
    assert both.valid.inputs == [text for text in whole.valid.inputs if text in answered] != []
    assert both.valid.rationales == [text.replace("train", "as") + "." for text in both.valid.inputs]


def test_outputs_of_no_validation_row(data, tmp_path):
    settings = data("data.allow_partial=true")
    held_out = training_parts(settings, mode="standard", seed=0).valid.inputs
    assert "train 0" not in held_out
    (tmp_path / "sets/svamp/llm/train_CoT_0.json").write_text(json.dumps(["a. The answer is (1)."]))
    with pytest.raises(DataError, match=r"1 of 20 rows .* validation"):
        training_parts(settings, mode="task_prefix", seed=0)


def test_gold_labels_alone_do_not_read_outputs(data, tmp_path, compose_config):
    settings = data()
    for split in ("train", "test"):
        (tmp_path / f"sets/svamp/llm/{split}_CoT_0.json").write_text("damaged")
    parts = training_parts(settings, mode="standard", seed=0)
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (18, 2, 4)
    rows = [{"input": letter, "label": letter, "rationale": " "} for letter in LETTERS]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = [f"data.{part}_files=[{tmp_path}/own.jsonl]" for part in ("train", "eval", "test")]
    settings = compose_config("data=rationales", *own).data
    assert len(training_parts(settings, mode="standard", seed=0).test) == 5
    with pytest.raises(FormatError, match="5 of 5 outputs"):
        training_parts(settings, mode="task_prefix", seed=0)


def test_an_evaluation_has_the_validation_rows_of_a_share_that_was_drawn_before(data_dir):
    """With the same keys and seed; another seed, or the whole part, would have rows that were trained on."""
    data = SetDataConfig(name="svamp", set="svamp", folder=f"{data_dir}/stepbystep")
    data.share, data.share_before_split = 0.5, True
    parts = training_parts(data, mode="standard", seed=3)
    assert (len(parts.train), len(parts.valid)) == (360, 40)
    assert evaluated_part(data, "valid", seed=3).inputs == parts.valid.inputs
    trained = set(parts.train.inputs)
    assert not trained & set(parts.valid.inputs)
    assert trained & set(evaluated_part(data, "valid", seed=4).inputs)
