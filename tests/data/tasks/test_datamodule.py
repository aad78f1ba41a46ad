import numpy as np
import pytest
import torch

from potstill.data.common.batching import StepSampler
from potstill.data.common.steps import BatchSettings
from potstill.data.tasks.augment import Augmentation, Noise
from potstill.data.tasks.datamodule import OwnInputs, TaskDataModule, TaskSet
from potstill.data.tasks.features import Features

PAD = 9


def part(count=37, labels=True, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, count).astype(np.int32)
    total = int(lengths.sum())
    return TaskSet(
        Features(
            rng.integers(10, 90, total).astype(np.int32), rng.integers(0, 2, total).astype(np.uint8), lengths,
            np.zeros(count, bool),
        ),
        rng.integers(0, 3, count) if labels else None,
    )  # fmt: skip


def module(train=None, evaluation=None, token_types=True, **settings):
    return TaskDataModule(
        train, evaluation or {}, pad_id=PAD, token_types=token_types,
        settings=BatchSettings(seed=1, **({"batch_size": 4} | settings)),
    )  # fmt: skip


def steps(data, loader):
    return [data.on_after_batch_transfer(item, 0) for item in loader]


@pytest.mark.parametrize("settings", [{"accumulate": 3}, {"max_tokens": 30, "accumulate": 2}])
def test_an_epoch_has_every_row_once_with_its_own_tokens_and_label(settings):
    rows = part()
    data = module(rows, **settings)
    starts = np.cumsum(rows.features.lengths) - rows.features.lengths
    seen = []
    for step in steps(data, data.train_dataloader()):
        assert step.predictions == sum(len(micro.rows) for micro in step.micro)
        assert step.tokens == sum(int(micro.attention_mask.sum()) for micro in step.micro)
        lengths = torch.cat([micro.attention_mask.sum(1) for micro in step.micro])
        assert (step.sequences, step.pairs) == (len(lengths), int(lengths.square().sum()))
        for micro in step.micro:
            seen += micro.rows.tolist()
            assert settings.get("max_tokens") or len(micro.rows) <= 4
            for i, number in enumerate(micro.rows.tolist()):
                length, start = int(rows.features.lengths[number]), int(starts[number])
                assert micro.input_ids[i, :length].tolist() == rows.features.ids[start : start + length].tolist()
                assert (micro.input_ids[i, length:] == PAD).all()
                assert micro.attention_mask[i].tolist() == [1] * length + [0] * (micro.input_ids.shape[1] - length)
                types = rows.features.types[start : start + length].tolist()
                assert micro.token_type_ids[i, :length].tolist() == types
                assert (micro.token_type_ids[i, length:] == 0).all()
                assert micro.labels[i] == rows.labels[number]
    assert sorted(seen) == list(range(37))


def test_evaluation_sets_have_a_loader_each_in_a_fixed_order():
    data = module(evaluation={"": part(20), "mismatched": part(9, labels=False)}, token_types=False)
    first, second = data.val_dataloader()
    orders = [[m.rows.tolist() for s in steps(data, loader) for m in s.micro] for loader in (first, first, second)]
    assert orders[0] == orders[1]
    assert sorted(row for micro in orders[0] for row in micro) == list(range(20))
    assert sorted(row for micro in orders[2] for row in micro) == list(range(9))
    assert all(m.labels is None and m.token_type_ids is None for s in steps(data, second) for m in s.micro)


def test_epochs_differ_and_are_a_function_of_the_seed():
    rows = part()
    data = module(rows)
    sampled = data._steps
    orders = [[sampled[(epoch, s)]["rows"].tolist() for s in range(len(sampled.plan(epoch)))] for epoch in (0, 1, 0)]
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    seeds = {sampled[(epoch, s)]["seed"] for epoch in (0, 1) for s in range(5)}
    assert len(seeds) == 10


def test_scores_stay_floating():
    rows = part()
    scored = TaskSet(rows.features, rows.labels.astype(np.float32))
    data = module(scored)
    assert next(iter(steps(data, data.train_dataloader()))).micro[0].labels.dtype == torch.float32


def test_noise_changes_training_rows_alone_and_anew_in_every_epoch():
    rows = part(labels=True)
    noise = Noise(Augmentation(share=0.5, mask=0.3, delete=0.2, disorder=0.5), special_ids=(10, 11), mask_id=8)
    data = TaskDataModule(
        rows, {"": rows}, pad_id=PAD, token_types=True, noise=noise,
        settings=BatchSettings(seed=1, batch_size=4, eval_batch_size=4),
    )  # fmt: skip
    starts = np.cumsum(rows.features.lengths) - rows.features.lengths

    def read(loader):
        found = {}
        for step in steps(data, loader):
            assert step.tokens == sum(int(micro.attention_mask.sum()) for micro in step.micro)
            for micro in step.micro:
                for i, row in enumerate(micro.rows.tolist()):
                    found[row] = micro.input_ids[i][micro.attention_mask[i].bool()].tolist()
                    assert micro.labels[i] == rows.labels[row]
        return found

    whole = {
        row: rows.features.ids[start : start + length].tolist()
        for row, (start, length) in enumerate(zip(starts.tolist(), rows.features.lengths.tolist(), strict=True))
    }
    (evaluation,) = data.val_dataloader()
    assert read(evaluation) == whole
    loader = data.train_dataloader()
    first, again = read(loader), read(data.train_dataloader())
    assert first == again
    assert first.keys() == whole.keys()
    changed = [row for row in whole if first[row] != whole[row]]
    assert 0.2 < len(changed) / len(whole) < 0.7
    for row in changed:
        assert set(first[row]) <= {*whole[row], 8}
    later = iter(StepSampler(data.steps_per_epoch, lambda: data.steps_per_epoch))
    second = read([data._steps[at] for at in later])
    assert second.keys() == whole.keys()
    assert second != first


def test_each_teacher_reads_its_own_tokens_of_the_rows_of_a_micro_batch():
    rows, other = part(), part(seed=5)
    data = TaskDataModule(
        rows, {"": rows}, pad_id=PAD, token_types=True, settings=BatchSettings(seed=1, batch_size=4, accumulate=2),
        teachers=[None, OwnInputs(other.features, pad_id=3, token_types=False)],
    )  # fmt: skip
    starts = np.cumsum(other.features.lengths) - other.features.lengths
    for step in steps(data, data.train_dataloader()):
        for micro in step.micro:
            assert micro.read_by(0) is micro
            theirs = micro.read_by(1)
            assert theirs.rows.tolist() == micro.rows.tolist()
            assert theirs.token_type_ids is None
            assert theirs.input_ids.shape[1] == int(other.features.lengths[micro.rows].max())
            for i, number in enumerate(micro.rows.tolist()):
                length, start = int(other.features.lengths[number]), int(starts[number])
                own = other.features.ids[start : start + length].tolist()
                assert theirs.input_ids[i, :length].tolist() == own
                assert (theirs.input_ids[i, length:] == 3).all()
                assert int(theirs.attention_mask[i].sum()) == length
    (loader,) = data.val_dataloader()
    assert all(not micro.teachers for step in steps(data, loader) for micro in step.micro)
