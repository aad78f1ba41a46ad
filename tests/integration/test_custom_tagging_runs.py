"""A custom tagger learns from larger ones, by adaptors in the form of TextBrewer's CoNLL-2003 example."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from potstill.errors import PotstillError
from potstill.methods.custom import stored
from potstill.objectives.custom import call_model

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("own")]

SOURCE = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Sentences(Dataset):
    """A tag is the word's residue by 3, unless the word before is 0: then it is 3."""

    def __init__(self, count, seed, whole=False):
        draw = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(30, (count, 9), generator=draw)
        lengths = torch.randint(9 if whole else 2, 10, (count,), generator=draw)
        self.mask = (torch.arange(9) < lengths[:, None]).long()
        before = torch.nn.functional.pad(self.ids[:, :-1], (1, 0), value=1)
        self.tags = torch.where(before % 10 == 0, 3, self.ids % 3)
        self.tags[self.mask == 0] = -100

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        return {"input_ids": self.ids[row], "attention_mask": self.mask[row], "labels": self.tags[row], "row": row}


class Noisy(Sentences):
    """Words change from epoch to epoch."""

    def __getitem__(self, row):
        return {**super().__getitem__(row), "input_ids": torch.randint(30, (9,))}


class Tagger(nn.Module):
    def __init__(self, width, layers=2):
        super().__init__()
        self.embed = nn.Embedding(30, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(layers))
        self.head, self.ends = nn.Linear(width, 4), nn.Linear(width, 2)

    def forward(self, input_ids, attention_mask, labels=None):
        states = [self.embed(input_ids) * attention_mask[..., None]]
        for layer in self.layers:
            after = layer(states[-1].transpose(1, 2)).transpose(1, 2).relu()
            states.append((states[-1] + after) * attention_mask[..., None])
        logits = self.head(states[-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        attention = [own @ own.transpose(1, 2) for own in states]
        return loss, logits, states, attention, self.ends(states[-1])


def make_student(width=8):
    return Tagger(width)


def make_teacher(width=24, layers=3, seed=0):
    torch.manual_seed(seed)
    teacher, data = Tagger(width, layers), Sentences(256, 3)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        teacher(data.ids, data.mask, data.tags)[0].backward()
        optimizer.step()
    return teacher


def make_loaders(batch=16, count=96):
    return (
        DataLoader(Sentences(count, 1), batch_size=batch, shuffle=True),
        DataLoader(Sentences(88, 2), batch_size=8),
    )


def make_dropped(batch=16):
    return DataLoader(Sentences(90, 1), batch_size=batch, drop_last=True), None


def make_noisy(batch=16):
    return DataLoader(Noisy(90, 1), batch_size=batch), None


def numbered(batch, model_output):
    """Tags and ends, with the numbers of the rows."""
    return {**labelled(batch, model_output), "rows": batch["row"]}


def one_head(batch, model_output):
    kept = {"logits": model_output[1], "logits_mask": batch["attention_mask"], "labels": batch["labels"]}
    return {**kept, "rows": batch["row"]}


def pooled(batch, model_output):
    """The first tag of a sentence."""
    return {"logits": model_output[1][:, 0], "labels": batch["labels"][:, 0], "rows": batch["row"]}


def beyond(batch, model_output):
    return {**numbered(batch, model_output), "rows": batch["row"] + 50}


def twice(batch, model_output):
    return {**numbered(batch, model_output), "rows": batch["row"] // 2}


def adaptor(batch, model_output):
    return {"logits": (model_output[1],), "logits_mask": (batch["attention_mask"],)}


def whole(batch, model_output):
    """Everything that an adaptor may return."""
    return {
        "logits": [model_output[1], model_output[4]],
        "logits_mask": [batch["attention_mask"]] * 2,
        "labels": [batch["labels"], batch["labels"].clamp(max=1)],
        "losses": [model_output[0]],
        "hidden": model_output[2],
        "attention": model_output[3],
        "inputs_mask": batch["attention_mask"],
    }


def labelled(batch, model_output):
    return {**whole(batch, model_output), "losses": None}


def shifted(batch, model_output):
    """A mask that selects other positions."""
    return {"logits": model_output[1], "logits_mask": torch.ones_like(batch["attention_mask"])}
'''
NAME = "own_tagger"
BASE = [
    "objective=custom", f"custom.teacher._target_={NAME}.make_teacher", f"custom.student._target_={NAME}.make_student",
    f"custom.data._target_={NAME}.make_loaders", f"custom.adaptor={NAME}.adaptor", "logger=csv",
    "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "optimizer.lr=0.02",
]  # fmt: skip
MATCHES = (
    "objective.matches=[{teacher: 3, student: 2, loss: hidden_mse, projection: linear, name: top}, "
    "{teacher: 1, student: 1, loss: pkd, projection: tanh, name: first}, "
    "{teacher: [0, 0], student: [0, 0], loss: nst, weight: 0.1, name: words}, "
    "{teacher: 2, student: 1, loss: attention_mse_sum, weight: 0.001, name: scores}, "
    "{teacher: 3, student: 2, loss: attention_ce, published: true, name: published}, "
    "{teacher: [1, 2, 3], student: [1, 2], loss: emd, projection: linear, name: layers}]"
)
TERMS = [MATCHES, f"custom.adaptor={NAME}.labelled", "objective.terms.label.weight=0.5", "objective.temperature=2"]
SGD = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps"]


@pytest.fixture
def overrides():
    return BASE


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def weights_of(folder):
    return load_file(folder / "student" / "model.safetensors")


def test_a_tagger_learns_from_an_adaptor_of_the_published_form(run):
    start, _ = run("start", "objective.soft_target=cross_entropy", "trainer.max_steps=0")
    folder, _ = run("run", "objective.soft_target=cross_entropy", "trainer.max_epochs=12")
    before, after = summary_of(start), summary_of(folder)
    assert before["val/agreement"] < 0.6 < 0.85 < after["val/agreement"]
    assert after["val/loss"] < before["val/loss"]


def test_the_first_step_and_the_validation_are_the_published_arithmetic(run):
    """One batch of all examples: the terms in plain torch, from the same weights."""
    folder, _ = run(
        "run", f"custom.adaptor={NAME}.whole", "objective.terms.label.weight=0.5", "objective.temperature=2",
        "objective.soft_target=cross_entropy", "+custom.data.batch=96", "trainer.max_steps=1", *SGD, "optimizer.lr=0",
        "objective.matches=[{teacher: 3, student: 2, loss: hidden_mse, projection: linear, name: top}]",
    )  # fmt: skip
    module = sys.modules[NAME]
    torch.manual_seed(42)
    student, teacher = module.make_student().eval(), module.make_teacher().eval()
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    student.load_state_dict({key[8:]: own for key, own in checkpoint.items() if key.startswith("student.")})
    projection = [checkpoint[f"projections.top.{name}"] for name in ("weight", "bias")]

    def terms(data):
        kept = data.mask.bool()
        ours, theirs = (model(data.ids, data.mask, data.tags) for model in (student, teacher))
        soft = sum(
            -((theirs[head][kept] / 2).softmax(-1) * (ours[head][kept] / 2).log_softmax(-1)).sum(-1).mean()
            for head in (1, 4)
        )
        gap = (functional.linear(ours[2][2], *projection) - theirs[2][3]).square() * data.mask[..., None]
        return float(soft), float(ours[0]), float(gap.sum() / (data.mask.sum() * 24))

    with torch.no_grad():
        ce, label, top = terms(module.Sentences(96, 1))
        eval_ce, _, eval_top = terms(module.Sentences(88, 2))
    summary = summary_of(folder)
    for name, expected in (("ce", ce), ("label", label), ("match_top", top)):
        assert summary[f"train/loss_{name}"] == pytest.approx(expected, rel=1e-4), name
    # The validation set in batches of 8: soft targets and match are those of all positions; the losses of the user's
    # own are means over batches.
    batches = module.make_loaders()[1]
    with torch.no_grad():
        own = sum(float(call_model(student, batch)[0]) * len(batch["labels"]) for batch in batches) / 88
    assert summary["val/loss"] == pytest.approx(eval_ce + 0.5 * own + eval_top, rel=1e-4)


def test_a_masked_step_is_the_same_however_it_is_cut(run):
    pytest.importorskip("ot")
    terms = [own.replace("published: true", "published: false") for own in TERMS]  # whose mean is that of a batch
    terms = [own.replace("{teacher: [1, 2, 3], student: [1, 2], loss: emd", "{teacher: 3, student: 1, loss: cos")
             for own in terms]  # fmt: skip
    states, figures = [], []
    for accumulate in (1, 4):
        folder, _ = run(
            f"cut{accumulate}", *terms, *SGD, f"+custom.data.batch={48 // accumulate}", "trainer.max_steps=4",
            f"trainer.accumulate_grad_batches={accumulate}", "trainer.gradient_clip_val=null",
        )  # fmt: skip
        states.append(weights_of(folder))
        figures.append(summary_of(folder))
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6)
    names = [name for name in figures[0] if name.startswith(("train/loss", "val/"))]
    assert {"train/loss_match_words", "train/loss_match_scores", "val/loss", "val/accuracy"} <= set(names)
    for name in names:
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-4), name


@pytest.mark.parametrize(("accumulate", "count"), [(1, 90), (3, 82)])
def test_two_processes_make_the_update_of_one(accumulate, count, own, command, tmp_path):
    """12 batches of 8 sentences in steps of 2, or 11 in steps of 6 and 5; with masks, gradient shares, validation."""
    pytest.importorskip("ot")
    common = [
        *BASE, *TERMS, *SGD, "+custom.data.batch=8", f"+custom.data.count={count}", "trainer.max_epochs=1",
        "objective.gradient_shares_every=2", "trainer.accelerator=cpu", "trainer.precision=32-true",
    ]  # fmt: skip
    folders = {}
    for devices, strategy in ((1, "cpu"), (2, "ddp")):
        folders[devices] = tmp_path / f"devices{devices}"
        done = command(
            "train.py", *common, f"strategy={strategy}", f"trainer.devices={devices}",
            f"trainer.accumulate_grad_batches={2 * accumulate // devices}", f"hydra.run.dir={folders[devices]}",
            folder=own,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (weights_of(folder) for folder in folders.values())
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)
    figures = [summary_of(folder) for folder in folders.values()]
    names = [name for name in figures[0] if name.startswith(("train/loss", "train/gradient_share", "val/"))]
    assert {"train/loss_ce", "train/loss_match_layers", "val/loss", "val/accuracy", "val/agreement"} <= set(names)
    for name in names:
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-3), name
    assert figures[1]["train/steps"] == figures[0]["train/steps"]


def test_several_teachers_are_averaged_and_a_match_names_one(run):
    two = [
        "custom.teacher._target_=null",
        f"custom.teachers=[{{_target_: {NAME}.make_teacher}}, {{_target_: {NAME}.make_teacher, width: 16, seed: 1}}]",
        "+custom.data.batch=96", "trainer.max_steps=1", *SGD, "optimizer.lr=0", "teacher.weights=[3,1]",
        "objective.matches=[{teacher: 2, student: 2, loss: cos, projection: linear, teacher_index: 1, name: other}]",
        f"custom.adaptor={NAME}.labelled",
    ]  # fmt: skip
    one, _ = run("one", *two, f"custom.teacher_adaptor=[{NAME}.labelled,{NAME}.labelled]")
    module = sys.modules[NAME]
    checkpoint = torch.load(one / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert checkpoint["projections.other.weight"].shape == (16, 8)
    assert not any(key.startswith("teacher.") for key in checkpoint)
    student = module.make_student()
    student.load_state_dict({key[8:]: own for key, own in checkpoint.items() if key.startswith("student.")})
    teachers = [module.make_teacher(), module.make_teacher(16, seed=1)]
    data = module.Sentences(96, 1)
    kept = data.mask.bool()
    with torch.no_grad():
        ours, *theirs = (model(data.ids, data.mask, data.tags) for model in (student, *teachers))
        loss = 0.0
        for head in (1, 4):
            mean = 0.75 * theirs[0][head] + 0.25 * theirs[1][head]
            pair = (ours[head][kept] / 4).log_softmax(-1), (mean[kept] / 4).softmax(-1)
            loss += float(functional.kl_div(*pair, reduction="batchmean")) * 16
    summary = summary_of(one)
    assert summary["train/loss_ce"] == pytest.approx(loss, rel=1e-4)
    assert 0 < summary["train/loss_match_other"] < 2


def test_batches_whose_masks_do_not_fit_are_one_line(run):
    with pytest.raises(PotstillError, match=r"terms.ce.weight: .* of the student .* of the teacher") as error:
        run("run", f"custom.teacher_adaptor={NAME}.shifted")
    assert "\n" not in str(error.value)
    with pytest.raises(PotstillError, match=r"teacher_index=2: the teachers are 0 to 0"):
        run("run", "objective.matches=[{teacher: 0, student: 0, loss: cos, teacher_index: 2}]")


def test_a_resumed_run_with_masks_equals_the_uninterrupted_one(run):
    pytest.importorskip("ot")
    common = [*TERMS, "trainer.accumulate_grad_batches=2", "schedule=constant", "+custom.data.batch=8"]
    whole, _ = run("whole", *common, "trainer.max_steps=7")
    run("part", *common, "trainer.max_steps=3")
    resumed, _ = run("part", *common, "trainer.max_steps=7", "resume=auto")
    ends = [weights_of(folder) for folder in (whole, resumed)]
    assert all(torch.equal(ends[1][key], value) for key, value in ends[0].items())
    rows = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in (whole, resumed)]
    assert [row["train/loss"] for row in rows[0]][-1] == [row["train/loss"] for row in rows[1]][-1]


TAUGHT = [
    f"custom.adaptor={NAME}.numbered", "objective.terms.label.weight=0.5", "objective.temperature=2", *SGD,
    "trainer.accumulate_grad_batches=2", "trainer.max_steps=9",
]  # fmt: skip


def same_weights(one, two):
    first, second = weights_of(one), weights_of(two)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-5, atol=1e-6)


def losses_of(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss_ce"]) for row in csv.DictReader(file) if row.get("train/loss_ce")]


def test_a_cached_teacher_is_the_live_one_and_is_computed_once(run, tmp_path, monkeypatch):
    live, _ = run("live", *TAUGHT)
    cache = ["teacher/cache=on", f"teacher.cache.folder={tmp_path}/stores"]
    cached, _ = run("cached", *TAUGHT, *cache)
    same_weights(live, cached)
    assert losses_of(cached) == pytest.approx(losses_of(live), rel=1e-5)
    assert sorted(path.name for path in (tmp_path / "stores").iterdir() if path.is_dir()) == [
        "train_head_0", "train_head_1",
    ]  # fmt: skip
    summary = summary_of(cached)
    assert summary["val/accuracy"] == pytest.approx(summary_of(live)["val/accuracy"])
    assert "val/agreement" not in summary
    assert summary["teacher/parameters"] == summary_of(live)["teacher/parameters"]
    with monkeypatch.context() as patch:
        patch.setattr(stored, "_over_epoch", lambda *_: pytest.fail("a teacher was asked"))
        again, _ = run("again", *TAUGHT, *cache)
    assert all(torch.equal(own, weights_of(again)[key]) for key, own in weights_of(cached).items())
    with pytest.raises(PotstillError, match=r"teacher\.weights is \w+\.\.\. in the store"):
        run("other", *TAUGHT, *cache, "+custom.teacher.seed=1")
    with pytest.raises(PotstillError, match=r"data is \w+\.\.\. in the store"):
        run("other", *TAUGHT, *cache, "+custom.data.count=80")


def test_several_cached_teachers_in_the_default_folder(run, tmp_path):
    """One head, of one prediction per sentence."""
    two = [
        *TAUGHT, f"custom.adaptor={NAME}.pooled", "custom.teacher._target_=null", "teacher.weights=[3,1]",
        "teacher.average=probabilities",
        f"custom.teachers=[{{_target_: {NAME}.make_teacher}}, {{_target_: {NAME}.make_teacher, width: 16, seed: 1}}]",
    ]  # fmt: skip
    live, _ = run("live", *two)
    cached, _ = run("cached", *two, "teacher/cache=on", f"data.cache={tmp_path}/cache")
    same_weights(live, cached)
    assert losses_of(cached) == pytest.approx(losses_of(live), rel=1e-5)
    assert len([path for path in (tmp_path / "cache" / "teacher_outputs").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_logits_of_ones_own_are_those_of_the_teacher(form, run, tmp_path):
    """Logits of all positions, of one head or of both."""
    live_keys = TAUGHT if form == "safetensors" else [*TAUGHT, f"custom.adaptor={NAME}.one_head"]
    module = __import__(NAME)
    data = module.Sentences(96, 1)
    teacher = module.make_teacher().eval()
    with torch.no_grad():
        outputs = teacher(data.ids, data.mask, data.tags)
    file = tmp_path / f"logits.{form}"
    if form == "npy":
        np.save(file, outputs[1].numpy())
    else:
        save_file({"logits.0": outputs[1].contiguous(), "logits.1": outputs[4].contiguous()}, file)
    live, _ = run("live", *live_keys)
    own, _ = run("own", *live_keys, "custom.teacher._target_=null", f"teacher.cache.file={file}")
    same_weights(live, own)
    assert losses_of(own) == pytest.approx(losses_of(live), rel=1e-5)
    assert "teacher/parameters" not in summary_of(own)


def test_two_processes_read_stored_logits(own, command, tmp_path):
    folders = {}
    for devices, strategy in ((1, "cpu"), (2, "ddp")):
        folders[devices] = tmp_path / f"devices{devices}"
        done = command(
            "train.py", *BASE, *TAUGHT, "teacher/cache=on", f"teacher.cache.folder={tmp_path}/stores{devices}",
            "trainer.accelerator=cpu", "trainer.precision=32-true", f"strategy={strategy}",
            f"trainer.devices={devices}", f"trainer.accumulate_grad_batches={2 // devices}",
            f"hydra.run.dir={folders[devices]}", folder=own,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    same_weights(*folders.values())


@pytest.mark.parametrize(
    ("further", "problem"),
    [
        (["teacher/cache=on", f"custom.adaptor={NAME}.labelled"], r"labelled: returns no rows"),
        (["teacher/cache=on", f"custom.adaptor={NAME}.twice"], r"twice: the row \d+ comes twice"),
        (["teacher/cache=on", f"custom.data._target_={NAME}.make_dropped"], r"80 rows .* the row 80; .* 0 to 89"),
        (["teacher/cache=on", f"custom.data._target_={NAME}.make_noisy"], r"the row \d+ change from epoch to epoch"),
        (["teacher/cache=on", MATCHES], r"objective\.matches=.*teacher/cache=on"),
        (["teacher/cache=on", "objective.terms.ce.weight=0"], r"objective\.terms\.ce\.weight=0"),
        (["teacher.cache.file={file}"], r"custom\.teacher\._target_=.*make_teacher: teacher\.cache\.file="),
        (["{alone}", "teacher.cache.file={file}", "+custom.data.count=80"], r"has 96 rows, and 80 are trained on"),
        (["{alone}", "teacher.cache.file={file}", f"custom.adaptor={NAME}.labelled"], r"npy: .* returns no rows"),
        (["{alone}", "teacher.cache.file={file}", f"custom.adaptor={NAME}.beyond"], r"has 96 rows, and .* row 1\d\d"),
        (["{alone}", "teacher.cache.file={file}"], r"shapes \[.*\(\d+, 2\)\] of the student and \[\(\d+, 3\)\]"),
    ],
)  # fmt: skip
def test_stored_logits_that_do_not_fit(further, problem, run, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    np.save(tmp_path / "logits.npy", np.zeros((96, 9, 3), np.float32))
    names = {"file": tmp_path / "logits.npy", "alone": "custom.teacher._target_=null"}
    given = [own if own.startswith("objective.matches") else own.format(**names) for own in further]
    cache = [f"teacher.cache.folder={tmp_path}/stores"] if "teacher/cache=on" in given else []
    with pytest.raises(PotstillError, match=problem) as error:
        run("run", *TAUGHT, *given, *cache)
    assert "\n" not in str(error.value)
