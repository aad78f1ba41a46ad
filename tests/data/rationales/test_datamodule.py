"""Batches have both tasks of a row and little padding; a step is a function of its seed."""

import numpy as np
import pytest
import torch

from potstill.data.common.steps import BatchSettings
from potstill.data.common.tokenizers import describe
from potstill.data.rationales.datamodule import VALID, RationaleDataModule, RationaleSequences
from potstill.data.rationales.features import RationaleFeatures, rationale_features
from potstill.data.rationales.forms import Tokens
from potstill.data.rationales.rows import EXPLAIN, PREDICT, RationaleRows

COUNT = 22


@pytest.fixture
def rows(arithmetic_rows):
    made = arithmetic_rows(COUNT)
    rationales = [row["rationale"] if n % 4 else None for n, row in enumerate(made)]
    none = [None] * COUNT
    columns = [row["input"] for row in made], [row["label"] for row in made], none, rationales, none
    return RationaleRows(*columns, [False] * COUNT, [""] * COUNT, "a.json", "data.folder")


@pytest.fixture
def features(rows, t5_tokenizer, tmp_path):
    return rationale_features(rows, describe(t5_tokenizer), cache=tmp_path)


def module_of(features, *, explains=True, choices=None, **settings):
    sequences = RationaleSequences(features, explains, choices)
    settings = BatchSettings(**{"seed": 3, "batch_size": 4, "accumulate": 2, "eval_batch_size": 5, **settings})
    return RationaleDataModule(sequences, {VALID: sequences}, pad_id=0, settings=settings)


def steps_of(module, loader):
    return [module.on_after_batch_transfer(item, 0) for item in loader]


def texts(tokens):
    ends = np.cumsum(tokens.lengths)
    return [tokens.ids[end - length : end].tolist() for end, length in zip(ends, tokens.lengths, strict=True)]


def test_every_row_comes_once_with_both_tasks(features):
    module = module_of(features)
    steps = steps_of(module, module.train_dataloader())
    assert len(steps) == module.steps_per_epoch == 3
    wanted = {name: texts(getattr(features, name)) for name in ("predict", "explain", "labels", "rationales")}
    seen = {PREDICT: [], EXPLAIN: []}
    for step in steps:
        for micro in step.micro:
            assert len(micro.rows[PREDICT]) <= 4
            assert micro.input_ids.shape[1] == int(micro.attention_mask.sum(1).max())  # no more than needed
            for task, inputs, targets in ((PREDICT, "predict", "labels"), (EXPLAIN, "explain", "rationales")):
                if task not in micro.rows:
                    continue
                own = micro.rows_of(task)
                assert micro.targets[task].shape[1] == int(micro.targets[task].ge(0).sum(1).max())
                for place, row in enumerate(micro.rows[task].tolist()):
                    ids, mask = micro.input_ids[own][place], micro.attention_mask[own][place].bool()
                    assert ids[mask].tolist() == wanted[inputs][row]
                    assert not ids[~mask].any()
                    target = micro.targets[task][place]
                    assert target[target.ge(0)].tolist() == wanted[targets][row]
                    seen[task].append(row)
        shown = [micro.targets[PREDICT].ge(0).sum() for micro in step.micro]
        assert step.targets[PREDICT] == int(sum(shown))
        shown = [micro.targets[EXPLAIN].ge(0).sum() for micro in step.micro if EXPLAIN in micro.targets]
        assert step.targets[EXPLAIN] == int(sum(shown))
    assert sorted(seen[PREDICT]) == list(range(COUNT))
    assert sorted(seen[EXPLAIN]) == [row for row in range(COUNT) if row % 4]
    tokens = sum(int(getattr(features, name).lengths.sum()) for name in wanted)
    assert sum(step.tokens for step in steps) == tokens


def test_labels_alone(features):
    module = module_of(features, explains=False)
    steps = steps_of(module, module.train_dataloader())
    assert {task for step in steps for micro in step.micro for task in micro.rows} == {PREDICT}
    assert all(set(step.targets) == {PREDICT} for step in steps)


def test_order_is_a_function_of_the_seed(features):
    def order(module):
        return [
            micro.rows[PREDICT].tolist() for step in steps_of(module, module.train_dataloader()) for micro in step.micro
        ]

    assert order(module_of(features)) == order(module_of(features))
    assert order(module_of(features)) != order(module_of(features, seed=4))


def test_micro_batches_of_tokens_stay_within_them(features):
    module = module_of(features, max_tokens=200)
    longest = int(RationaleSequences(features, budgeted=True).lengths.max())
    for step in steps_of(module, module.train_dataloader()):
        for micro in step.micro:
            assert len(micro.rows[PREDICT]) * longest <= 200 + 3 * longest
            real = int(micro.attention_mask.sum()) + sum(int(t.ge(0).sum()) for t in micro.targets.values())
            assert real <= 200


def test_evaluation_batches_bring_choices(features):
    choices = [[[5, 1], [6, 7, 1]] if row % 2 else [] for row in range(COUNT)]
    module = module_of(features, choices=choices)
    seen = []
    for step in steps_of(module, module.val_dataloader()[0]):
        (micro,) = step.micro
        numbers = micro.rows[PREDICT].tolist()
        seen += numbers
        expected = [(place, own) for place, row in enumerate(numbers) for own in choices[row]]
        if not expected:
            assert micro.choices is None
            continue
        assert micro.choice_rows.tolist() == [place for place, _ in expected]
        assert [own[own.ge(0)].tolist() for own in micro.choices] == [own for _, own in expected]
    assert sorted(seen) == list(range(COUNT))


def test_rows_of_similar_lengths_share_a_batch():
    draw = np.random.default_rng(0)
    count = 600
    lengths = {"predict": draw.integers(20, 80, count), "rationales": draw.integers(10, 70, count)}
    lengths = {**lengths, "explain": lengths["predict"], "labels": np.full(count, 3)}
    features = RationaleFeatures(*(
        Tokens(np.ones(int(lengths[name].sum()), np.int32), lengths[name].astype(np.int32), np.zeros(count, bool))
        for name in ("predict", "explain", "labels", "rationales")
    ))  # fmt: skip

    def waste(**settings):
        module, padded, real = module_of(features, batch_size=16, **settings), 0, 0
        for step in steps_of(module, module.train_dataloader()):
            real += step.tokens
            padded += sum(part.numel() for micro in step.micro for part in (micro.input_ids, *micro.targets.values()))
        return padded / real

    assert waste() < 1.25 < 1.4 < waste(length_bin=0)


def test_long_targets_of_the_only_task_share_a_batch():
    """Of an encoder-decoder whose target is a label and a rationale; of a decoder-only student the sum counts."""
    draw = np.random.default_rng(0)
    lengths = {"predict": draw.integers(20, 80, 600), "labels": draw.integers(10, 70, 600)}
    bins = RationaleSequences(tokens_of(lengths), explains=False, padded_by="labels").lengths
    order = np.argsort(bins, kind="stable")
    assert (np.diff(lengths["labels"][order] // 8) >= 0).all()
    plain = RationaleSequences(tokens_of(lengths), explains=False, padded_by=None)
    assert np.array_equal(plain.lengths, lengths["predict"] + lengths["labels"])
    budgeted = RationaleSequences(tokens_of(lengths), explains=False, padded_by="labels", budgeted=True)
    assert np.array_equal(budgeted.lengths, plain.lengths)


def tokens_of(lengths):
    none = np.zeros(600, np.int64)
    columns = (lengths.get(name, none) for name in ("predict", "explain", "labels", "rationales"))
    return RationaleFeatures(*(
        Tokens(np.ones(int(own.sum()), np.int32), own.astype(np.int32), np.zeros(600, bool)) for own in columns
    ))  # fmt: skip


def test_rows_without_a_rationale_can_have_an_explanation_input(rows, t5_tokenizer, tmp_path):
    features = rationale_features(rows, describe(t5_tokenizer), cache=tmp_path, explain_all=True)
    module = module_of(features)
    for step in steps_of(module, module.val_dataloader()[0]):
        (micro,) = step.micro
        assert torch.equal(micro.rows[EXPLAIN], micro.rows[PREDICT])
        without = [place for place, row in enumerate(micro.rows[EXPLAIN].tolist()) if row % 4 == 0]
        assert not micro.targets[EXPLAIN][without].ge(0).any()
