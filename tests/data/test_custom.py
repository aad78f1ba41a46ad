"""Loaders of the user's own as steps: every batch once, the same ones from any place on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

from potstill.data.custom import CustomBatch, CustomDataModule, CustomStep, StepLoader, examples_of
from potstill.errors import CheckpointError, ConfigError, DataError


class Noisy(Dataset):
    """Examples that are drawn anew each time, by both generators."""

    def __len__(self):
        return 22

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()).item(), np.random.rand()])


def steps(loader, done=0, batches=2, seed=7):
    return [torch.cat([own.batch for own in step.micro]) for step in StepLoader(loader, batches, seed, lambda: done)]


def test_a_step_has_so_many_batches_and_every_example_comes_once():
    loader = StepLoader(DataLoader(Noisy(), batch_size=4, shuffle=True), 4, 0, lambda: 0)
    made = list(loader)
    assert len(loader) == len(made) == 2
    assert [[own.examples for own in step.micro] for step in made] == [[4, 4, 4, 4], [4, 2]]
    assert [step.examples for step in made] == [16, 6]
    seen = torch.cat([own.batch[:, 0] for step in made for own in step.micro])
    assert sorted(seen.tolist()) == list(range(22))
    assert seen.tolist() != list(range(22))


def test_processes_take_the_batches_of_a_step_in_turn():
    loader = DataLoader(Noisy(), batch_size=3, shuffle=True)  # 8 batches
    whole = list(StepLoader(loader, 6, 0, lambda: 0))
    shares = [list(StepLoader(loader, 3, 0, lambda: 0, ranks=(rank, 2))) for rank in (0, 1)]
    assert [len(steps) for steps in shares] == [2, 2]
    for step, *own in zip(whole, *shares, strict=True):
        for rank, share in enumerate(own):
            assert (share.examples, share.batches, share.seed) == (step.examples, step.batches, step.seed)
            wanted = [micro.batch for micro in step.micro[rank::2]]
            assert all(torch.equal(*pair) for pair in zip([micro.batch for micro in share.micro], wanted, strict=True))
    # The last step of 5 batches in steps of 4 has none for a second process.
    short = StepLoader(DataLoader(Noisy(), batch_size=5), 2, 0, lambda: 0, ranks=(1, 2))
    assert [step.batches for step in short] == [4]
    assert len(short) == 1


@pytest.mark.parametrize("which", ["training", "validation"])
def test_each_process_needs_a_batch(which):
    few, many = DataLoader(Noisy(), batch_size=22), DataLoader(Noisy(), batch_size=4)
    data = CustomDataModule((few, many) if which == "training" else (many, few), seed=0, accumulate=1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2, global_step=0)
    with pytest.raises(DataError, match=rf"trainer\.devices=2: the {which} loader has 1 batches"):
        data.train_dataloader() if which == "training" else data.val_dataloader()


def test_a_loader_that_is_already_divided_is_rejected():
    data = Noisy()
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    with pytest.raises(ConfigError, match=r"custom\.data: .* DistributedSampler"):
        CustomDataModule((loader, None), seed=0, accumulate=1)


@pytest.mark.parametrize("own", [False, True])
def test_order_and_augmentation_are_a_function_of_seed_and_step(own):
    def loader():
        generator = torch.Generator().manual_seed(1) if own else None
        sampler = RandomSampler(Noisy(), generator=generator)
        return DataLoader(Noisy(), batch_size=4, sampler=sampler, generator=generator)

    kept = loader()
    first, second = steps(kept), steps(kept, done=3)
    for done in range(3):
        torch.manual_seed(done)  # whatever was drawn before
        fresh = steps(loader(), done=done)
        assert len(fresh) == 3 - done
        assert all(torch.equal(*pair) for pair in zip(fresh, first[done:], strict=True))
    assert all(torch.equal(*pair) for pair in zip(steps(loader(), done=4), second[1:], strict=True))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], steps(loader(), seed=8)[0])


def test_a_sampler_gets_the_epoch():
    class Told(RandomSampler):
        epoch = None

        def set_epoch(self, epoch):
            self.epoch = epoch

    sampler = Told(Noisy())
    steps(DataLoader(Noisy(), batch_size=11, sampler=sampler), done=5, batches=1)
    assert sampler.epoch == 2


def test_examples_are_counted_in_batches_of_any_form():
    rows = torch.zeros(3, 2)
    assert examples_of(rows) == examples_of((rows, None)) == examples_of([{"scale": torch.tensor(1.0)}, rows]) == 3
    assert examples_of({"name": "x", "inner": {"rows": rows}}) == 3
    assert examples_of("text") is None
    assert examples_of(torch.tensor(1.0)) is None


class OwnModule(LightningDataModule):
    """Counts what is asked of it, and moves images in its hook."""

    def __init__(self, evaluation=True):
        super().__init__()
        self.calls, self.with_evaluation = [], evaluation

    def prepare_data(self):
        self.calls.append("prepare")

    def setup(self, stage):
        self.calls.append(stage)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(6, 2)), batch_size=2)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1]


def test_a_data_module_of_the_users_is_used_with_its_hooks():
    own = OwnModule()
    data = CustomDataModule(own, seed=0, accumulate=2)
    assert own.calls == ["prepare", "fit"]
    assert data.evaluation is None
    assert data.val_dataloader() == []
    assert torch.equal(data.first_batch()[0], torch.ones(2, 2))
    assert data.state_dict() == {"steps_an_epoch": 2}
    moved = data.on_after_batch_transfer(CustomStep([CustomBatch([torch.zeros(1)], 1)], 3, 5, 2), 0)
    assert moved == CustomStep([CustomBatch([torch.ones(1)], 1)], 3, 5, 2)
    data.load_state_dict({"steps_an_epoch": 5})
    with pytest.raises(CheckpointError, match=r"^ckpt_path: .* 5 steps.* 2;"):
        data.train_dataloader()


class Endless(IterableDataset):
    def __iter__(self):
        yield from torch.zeros(5, 1)


WHOLE = DataLoader(Noisy(), batch_size=4)


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (WHOLE, "DataLoader"),
        ((WHOLE, [WHOLE]), "validation .* list"),
        ((DataLoader(Endless()), None), "training"),
        ((DataLoader([]), None), "training"),
        ((None, WHOLE), "training"),
    ],
)
def test_invalid_data(made, problem):
    with pytest.raises(ConfigError, match=f"^custom.data: .*{problem}"):
        CustomDataModule(made, seed=0, accumulate=1)


def test_a_batch_without_tensors_is_rejected():
    texts = DataLoader(["a", "b"], batch_size=2)
    with pytest.raises(ConfigError, match=r"^custom\.data: "):
        CustomDataModule((texts, None), seed=0, accumulate=1).first_batch()
