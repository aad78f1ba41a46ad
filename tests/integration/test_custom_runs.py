"""A small CNN learns from a larger one on generated images: modules, data and adaptors in a file of the user's own."""

import csv
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, load_model

from potstill.errors import CheckpointError, ConfigError, PotstillError
from potstill.training.callbacks import LastCheckpoint

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own")]

SOURCE = '''
import torch
from lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def images(count, seed):
    """Stripes across, stripes down, a square and a cross, in noise."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draw)
    shapes = torch.zeros(4, 8, 8)
    shapes[0, ::2] = 1
    shapes[1, :, ::2] = 1
    shapes[2, 2:6, 2:6] = 1
    shapes[3, 3:5] = shapes[3, :, 3:5] = 1
    return (shapes[labels] + 0.6 * torch.randn(count, 8, 8, generator=draw))[:, None], labels


class Net(nn.Module):
    def __init__(self, width, drop=0.0):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.drop, self.head = nn.Dropout(drop), nn.Linear(64 * width, 4)

    def forward(self, images):
        first = self.first(images).relu()
        second = self.second(first).relu()
        return self.head(self.drop(second.flatten(1))), [first, second]


def l2(student, teacher, mask=None):
    return (student - teacher).square().mean()


def soft(student, teacher, temperature):
    return -((teacher / temperature).softmax(-1) * (student / temperature).log_softmax(-1)).sum(-1).mean()


def temperature(student, teacher, base):
    return base


def make_student(width=4, drop=0.1):
    return Net(width, drop)


class Normed(Net):
    """With running statistics, and a head whose bias is the first layer's too."""

    def __init__(self):
        super().__init__(4)
        self.norm, self.head.bias = nn.BatchNorm2d(1), self.first.bias

    def forward(self, images):
        return super().forward(self.norm(images))


def make_teacher(width=8):
    teacher = Net(width)
    inputs, labels = images(256, 0)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(inputs)[0], labels).backward()
        optimizer.step()
    return teacher


def make_loaders(train=256, batch=16):
    return (
        DataLoader(TensorDataset(*images(train, 1)), batch_size=batch, shuffle=True),
        DataLoader(TensorDataset(*images(128, 2)), batch_size=64),
    )


class Module(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(*images(64, 1)), batch_size=16)


def adaptor(batch, outputs):
    return {"logits": outputs[0], "labels": batch[1], "hidden": outputs[1]}


def named(batch, outputs):
    return {"logits": outputs[0], "hidden": {"last": outputs[1][-1]}}


def empty(batch, outputs):
    return {}


def broken(batch, outputs):
    return {"logits": outputs["logits"]}


def number():
    return 3
'''
NAME = "own_images"
BASE = [
    "objective=custom", f"custom.teacher._target_={NAME}.make_teacher",
    f"custom.student._target_={NAME}.make_student",
    f"custom.data._target_={NAME}.make_loaders", f"custom.adaptor={NAME}.adaptor", "logger=csv",
    "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "optimizer.lr=0.01",
]  # fmt: skip
MATCH = "objective.matches={teacher: 1, student: 1, loss: hidden_mse, projection: linear, name: maps}"
TIMED = ("train/step_seconds", "train/examples_per_second", "train/peak_memory_gb")


@pytest.fixture
def overrides():
    return BASE


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def logged(folder):
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if value and name not in TIMED} for row in rows]


def test_a_student_learns_from_soft_targets_and_a_match(run):
    _, before = run("start", MATCH, "trainer.max_steps=0")
    folder, after = done = run("run", MATCH, "trainer.max_epochs=4", "objective.gradient_shares_every=20")
    assert before["val/accuracy"] < 0.6 < 0.9 < after["val/accuracy"]
    assert after["val/agreement"] > 0.9
    assert done.value == after["val/loss"] < 0.3 * before["val/loss"]
    assert after["train/steps"] == 64
    assert after["train/examples_per_second"] > 0
    assert after["data/train_batches"] == 16
    assert after["train/gradient_share_ce"] + after["train/gradient_share_match_maps"] == pytest.approx(1)
    maps = [float(row["train/loss_match_maps"]) for row in logged(folder) if "train/loss_match_maps" in row]
    assert maps[-1] < 0.7 * maps[0]
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert saved["projections.maps.weight"].shape == (8, 4)
    assert not any(key.startswith("teacher.") for key in saved)
    assert f"{NAME}.make_loaders" in (folder / "report.html").read_text()
    # What the README says opens the student.
    readme = (folder / "student" / "README.md").read_text()
    code = readme.partition("```python\n")[2].partition("```")[0]
    opened = {}
    exec(code.replace('"model.safetensors"', repr(str(folder / "student" / "model.safetensors"))), opened)
    assert all(torch.equal(value, saved[f"student.{key}"]) for key, value in opened["student"].state_dict().items())


def test_functions_of_the_users_own_are_those_of_the_same_arithmetic(run):
    named = ["objective.soft_target=cross_entropy", MATCH]
    own = [
        f"objective.soft_target={NAME}.soft", f"objective.temperature_schedule={NAME}.temperature",
        MATCH.replace("hidden_mse", f"{NAME}.l2"),
    ]  # fmt: skip
    ends = [run(name, *keys, "trainer.max_steps=8").summary for name, keys in (("named", named), ("own", own))]
    for key in ("train/loss_ce", "train/loss_match_maps", "val/loss"):
        assert ends[0][key] == pytest.approx(ends[1][key], rel=1e-4)


def test_labels_alone_and_arguments_of_the_users_functions(run):
    folder, summary = run(
        "run", "custom.teacher._target_=null", "objective.terms.ce.weight=0", "objective.terms.label.weight=1",
        "+custom.student.width=6", "+custom.data.train=512", "trainer.max_epochs=3",
    )  # fmt: skip
    assert summary["val/accuracy"] > 0.9
    assert summary["data/train_batches"] == 32
    assert "val/agreement" not in summary
    assert load_file(folder / "student" / "model.safetensors")["first.weight"].shape == (6, 1, 3, 3)
    assert "make_student(width=6)" in (folder / "student" / "README.md").read_text()


def test_a_data_module_and_a_teachers_own_adaptor(run):
    match = "objective.matches={teacher: last, student: 1, loss: nst}"
    with pytest.raises(ConfigError, match=r"teacher=last: .* nst .* two"):
        run("wrong", match)
    done = run(
        "run", f"custom.teacher_adaptor={NAME}.named", f"custom.data._target_={NAME}.Module",
        "objective.matches={teacher: [last, last], student: [1, 1], loss: nst}", "trainer.max_epochs=2",
    )  # fmt: skip
    assert done.value is None
    assert done.summary["train/steps"] == 8
    assert done.summary["train/loss_match_0"] > 0


def test_a_step_gives_the_same_update_however_it_is_cut(run):
    states = {}
    for accumulate in (1, 4):
        folder, _ = run(
            f"cut{accumulate}", MATCH, "objective.terms.label.weight=0.5", "+custom.student.drop=0",
            f"+custom.data.batch={48 // accumulate}", f"trainer.accumulate_grad_batches={accumulate}",
            "trainer.max_epochs=2", "optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps",
            "trainer.gradient_clip_val=null",
        )  # fmt: skip
        states[accumulate] = load_file(folder / "student" / "model.safetensors")
        assert summary_of(folder)["train/steps"] == 12
    for key, value in states[1].items():
        torch.testing.assert_close(states[4][key], value, rtol=1e-4, atol=1e-6)


def test_measuring_shares_moves_nothing_and_shared_tensors_are_kept(run):
    states = []
    for every in ("null", 1):
        folder, _ = run(
            f"every{every}", f"custom.student._target_={NAME}.Normed", "trainer.max_steps=3",
            "objective.terms.label.weight=1", f"objective.gradient_shares_every={every}",
        )  # fmt: skip
        student = sys.modules[NAME].Normed()
        load_model(student, folder / "student" / "model.safetensors")
        saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(saved[f"student.{key}"], own) for key, own in student.state_dict().items())
        assert student.norm.num_batches_tracked == 3
        states.append(student.state_dict())
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())


def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(run, monkeypatch):
    common = [
        MATCH, "trainer.max_steps=21", "trainer.accumulate_grad_batches=3", "checkpoint.every_n_steps=4",
        "trainer.val_check_interval=5",
    ]  # fmt: skip
    whole, _ = run("whole", *common)
    original = LastCheckpoint.on_train_batch_end

    def killed(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 10:  # the second epoch of 6 steps, two steps after a checkpoint
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_end", killed)
        patch.setattr(LastCheckpoint, "on_train_end", lambda *_: None)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run("killed", *common)
    left = torch.load(whole.parent / "killed/checkpoints/last.ckpt", weights_only=True)
    assert left["global_step"] == 8
    resumed, _ = run("killed", *common, "resume=auto")
    ends = [load_file(folder / "student" / "model.safetensors") for folder in (whole, resumed)]
    assert all(torch.equal(ends[1][key], value) for key, value in ends[0].items())
    figures = [summary_of(folder) for folder in (whole, resumed)]
    for name in figures[0]:
        if name.startswith(("val/", "train/")) and name not in TIMED:
            assert figures[1][name] == figures[0][name], name
    assert logged(resumed) == logged(whole)
    with pytest.raises(CheckpointError, match=r"trainer\.accumulate_grad_batches=1: .* 3"):
        run("other", *common, "trainer.accumulate_grad_batches=1", f"ckpt_path={whole}/checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("further", "problem"),
    [
        ([f"custom.adaptor={NAME}.empty"], f"custom.adaptor={NAME}.empty: .* logits, logits_mask"),
        ([f"custom.adaptor={NAME}.gone"], f"custom.adaptor={NAME}.gone: .*gone"),
        (["custom.student._target_=no_such.thing"], "custom.student._target_=no_such.thing: .*no_such"),
        ([f"custom.student._target_={NAME}.number"], f"custom.student._target_={NAME}.number: .*nn.Module"),
        ([f"custom.data._target_={NAME}.number"], "custom.data: .* int"),
        ([f"custom.teacher_adaptor={NAME}.broken"], f"custom.teacher_adaptor={NAME}.broken: .* teacher: TypeError"),
        (["objective.matches={teacher: 1, student: 2, loss: cos}"], r"matches\[0\].student=2: .* 0, 1"),
        (["objective.matches={teacher: 1, student: 1, loss: cos}"], r"matches\[0\].loss=cos: .* 4 .* 8; .*projection="),
        (["custom.teacher._target_=null"], "custom.teacher._target_=null: objective.terms.ce"),
        (["custom.adaptor=adaptor"], "custom.adaptor=adaptor: "),
        (["custom.data._target_=null"], "custom.data._target_=null: "),
        ([f"objective.soft_target={NAME}.missing"], f"objective.soft_target={NAME}.missing: "),
        (["objective.terms.cos.weight=1"], "objective.terms.cos.weight=1: .*objective=custom"),
        (["teacher.model=somewhere"], "teacher.model=somewhere: "),
        (["benchmark=sst2"], "benchmark=sst2: "),
        (["trainer.strategy=fsdp"], "trainer.strategy=fsdp: .*strategy=ddp"),
        (["teacher.weights=[1]"], r"teacher.weights=\[1.0\]: .* 0 teachers"),
        ([f"custom.teachers=[{{_target_: {NAME}.make_teacher}}]"], "custom.teachers=.* with custom.teacher._target_="),
        ([f"custom.teacher_adaptor=[{NAME}.adaptor,{NAME}.named]"], "custom.teacher_adaptor=.*: .* 1 teachers"),
        (["objective=kd"], f"custom.student._target_={NAME}.make_student: "),
        (["objective.matches=L3"], "objective.matches.0.=L3: "),
    ],
)  # fmt: skip
def test_errors_are_found_before_training(further, problem, run, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(PotstillError, match=problem) as error:
        run("run", *further)
    assert "\n" not in str(error.value)


def test_the_command_finds_modules_in_the_working_directory(own, command, tmp_path):
    folder = tmp_path / "run"
    done = command("train.py", *BASE, MATCH, "trainer.max_epochs=3", f"hydra.run.dir={folder}", folder=own)
    assert done.returncode == 0, done.stderr
    assert summary_of(folder)["val/accuracy"] > 0.8
    assert {path.name for path in folder.iterdir()} >= {
        "summary.json", "metrics.csv", "checkpoints", "report.html", "config.yaml", "student",
    }  # fmt: skip
    student = __import__(NAME).make_student()
    load_model(student, folder / "student" / "model.safetensors")
    refused = command("train.py", *BASE, f"custom.adaptor={NAME}.empty", f"hydra.run.dir={tmp_path}/other", folder=own)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"custom.adaptor={NAME}.empty: " in refused.stderr
