"""Toolkit KD from end to end, in this process: matches, projections, teachers, schedules, resuming."""

import csv

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import CheckpointError, ConfigError, KeyNameError
from potstill.runs.checks import validate_train
from potstill.training.callbacks import LastCheckpoint

pytestmark = pytest.mark.integration

QUIET = ["logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
SMALL = ["data.max_length=16", "data.batch_size=8", "optimizer.lr=3e-3", "data.eval_batch_size=32"]


@pytest.fixture(scope="module")
def train(halves, trained):
    """The summary of a run."""
    parts = [f"benchmark.{part}_file={halves}/{part}.tsv" for part in ("train", "eval")]
    task = ["benchmark=text_classification", *parts, *SMALL, *QUIET]
    return lambda folder, *overrides: trained(folder, *task, *overrides).summary


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, bert_tokenizer, make_bert, train):
    """Two fine-tuned classifiers, of 4 blocks and of 2."""
    made = []
    for seed, layers in ((0, 4), (1, 2)):
        folder = tmp_path_factory.mktemp(f"teacher{seed}")
        encoder = make_bert(folder / "encoder", bert_tokenizer, seed=seed, layers=layers, initializer_range=0.05)
        train(folder, "objective=finetune", f"student.model={encoder}", "trainer.max_epochs=3")
        made.append(folder / "student")
    return made


SCRATCH = (
    "+student.config={model_type: bert, num_hidden_layers: 3, hidden_size: 16, num_attention_heads: 4, "
    "intermediate_size: 32, max_position_embeddings: 32}"
)


class KilledError(Exception):
    pass


def logged(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_a_student_with_matches_learns_and_leaves_its_projections_behind(train, teachers, tmp_path):
    matches = "objective.matches=[L3_small, {teacher: 4, student: 3, loss: attention_ce, name: attention}]"
    summary = train(
        tmp_path / "run", "objective=task_kd", f"teacher.model={teachers[0]}", "student.layers=[0,1,3]", matches,
        "trainer.max_epochs=4",
        "objective.gradient_shares_every=5", "objective.terms.label.weight=0.5",
    )  # fmt: skip
    assert summary["val/accuracy"] > 0.9
    preset = [f"match_{form}_{k}" for form in ("hidden_mse", "nst") for k in range(4)]
    terms = ["ce", "label", "match_attention", *preset]
    assert {f"train/loss_{term}" for term in terms} <= summary.keys()
    shares = [summary[f"train/gradient_share_{term}"] for term in terms]
    assert sum(shares) == pytest.approx(1)
    assert all(share > 0 for share in shares)
    losses = logged(tmp_path / "run", "train/loss_match_hidden_mse_3")
    assert losses[-1] < 0.7 * losses[0]
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert saved["projections.hidden_mse_3.weight"].shape == (32, 32)
    assert not any(key.startswith("teacher.") for key in saved)
    assert not any("projection" in key for key in load_file(tmp_path / "run/student/model.safetensors"))


def test_the_rates_of_projections_and_measuring_shares(train, teachers, tmp_path):
    common = ["objective=task_kd", f"teacher.model={teachers[0]}", SCRATCH, "trainer.max_steps=3"]
    one = "objective.matches={teacher: 4, student: 3, loss: hidden_mse, projection: tanh, projection_lr: %s}"
    saved = {}
    for name, *further in (
        ("slow", one % "1e-12"), ("fast", one % "0.01"),
        ("measured", one % "0.01", "objective.gradient_shares_every=1"),
    ):  # fmt: skip
        train(tmp_path / name, *common, *further)
        saved[name] = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    key = "projections.0.0.weight"
    assert saved["slow"][key].std() == pytest.approx(0.02, rel=0.2)
    assert (saved["slow"][key] - saved["fast"][key]).abs().max() > 5e-3
    assert all(torch.equal(saved["fast"][name], saved["measured"][name]) for name in saved["fast"])


def test_resuming_with_matches_and_schedules_ends_in_the_same_weights(train, teachers, tmp_path):
    common = [
        "objective=task_kd", f"teacher.model={teachers[0]}", "student.layers=[0,3]", "trainer.max_steps=12",
        "objective.terms.ce.schedule=cosine", "objective.terms.ce.end=0", "objective.terms.ce.steps=12",
        "objective.terms.label.schedule=linear", "objective.terms.label.end=1", "objective.terms.label.steps=12",
        "objective.matches=[{teacher: 2, student: 1, loss: hidden_mse, projection: linear, projection_lr: 0.01}]",
    ]  # fmt: skip
    train(tmp_path / "whole", *common)
    original = LastCheckpoint.on_train_batch_end

    def die_a_step_later(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 6:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_end", die_a_step_later)
        with pytest.raises(KilledError):
            train(tmp_path / "half", *common, "checkpoint.every_n_steps=5")
    resume = f"ckpt_path={tmp_path}/half/checkpoints/last.ckpt"
    with pytest.raises(CheckpointError, match=r"objective\.matches=null|objective\.terms"):
        train(tmp_path / "other", *common[:4], resume)
    train(tmp_path / "resumed", *common, resume)
    steps = logged(tmp_path / "whole", "train/loss")
    ce, label, match = (logged(tmp_path / "whole", f"train/loss_{term}") for term in ("ce", "label", "match_0"))
    assert steps[0] == pytest.approx(ce[0] + match[0], rel=1e-4)
    assert len(label) == 11  # a term of weight 0 is not computed
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    )
    assert "projections.0.weight" in whole
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_scores_are_distilled_by_their_distance(train, bert_teacher, tmp_path):
    for part in ("train", "dev"):
        rows = [f"the {'man' if i % 2 else 'of'} and\t{i % 2}.5" for i in range(16)]
        (tmp_path / f"{part}.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    score = [f"benchmark.{key}_file={tmp_path}/{name}.tsv" for key, name in (("train", "train"), ("eval", "dev"))]
    score += ["benchmark=text_regression", "benchmark.metrics=[mse]", "benchmark.monitor=mse", "benchmark.mode=min"]
    score += ["trainer.max_steps=2"]
    train(tmp_path / "teacher", "objective=finetune", f"student.model={bert_teacher}", *score)
    taught = ["objective=task_kd", f"teacher.model={tmp_path}/teacher/student", "student.layers=[0,3]"]
    summary = train(tmp_path / "run", *taught, "objective.matches={teacher: 4, student: 2, loss: cos}", *score)
    assert summary["train/loss_ce"] > 0
    assert summary["train/loss"] == pytest.approx(summary["train/loss_ce"] + summary["train/loss_match_0"])


def test_weights_that_are_all_0_at_some_time(train, teachers, tmp_path):
    growing = ["objective.terms.ce.schedule=linear", "objective.terms.ce.start=0", "objective.terms.ce.steps=5"]
    with pytest.raises(ConfigError, match=r"^objective\.terms"):
        train(
            tmp_path / "run", "objective=task_kd", f"teacher.model={teachers[0]}", "student.layers=[0,3]", *growing,
            "objective.terms.ce.end=1",
        )  # fmt: skip


def test_several_teachers(train, teachers, tmp_path):
    both = f"teacher.models=[{teachers[0]},{teachers[1]}]"
    common = ["objective=task_kd", both, SCRATCH, "trainer.max_steps=2"]
    match = "objective.matches={teacher: 2, student: 3, loss: hidden_mse, projection: linear, teacher_index: 1}"
    first = train(tmp_path / "logits", *common, match, "teacher.weights=[1,3]")
    assert first["train/loss_match_0"] > 0
    spread = train(tmp_path / "probabilities", *common, "teacher.average=probabilities", "objective.soft_target=jsd")
    assert spread["train/loss_ce"] > 0


@pytest.mark.parametrize("option", ["reverse_kl", "mse", "jsd", "flsw", "cwsm", "shift"])
def test_every_soft_target_trains(option, train, teachers, tmp_path):
    key = {
        "flsw": "objective.temperature_schedule=flsw", "cwsm": "objective.temperature_schedule=cwsm",
        "shift": "objective.probability_shift=true",
    }.get(option, f"objective.soft_target={option}")  # fmt: skip
    summary = train(
        tmp_path / "run", "objective=task_kd", f"teacher.model={teachers[0]}", "student.layers=[0,3]",
        "trainer.max_steps=2", key,
    )  # fmt: skip
    assert 0 < summary["train/loss_ce"] < 50


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective.soft_target=kd"], "objective.soft_target=kd: "),
        (["objective.temperature_schedule=up"], "objective.temperature_schedule=up: "),
        (["objective.beta=1"], "objective.beta=1.0"),
        (["objective.gradient_shares_every=0"], "objective.gradient_shares_every=0"),
        (["objective.terms.ce.schedule=linear"], "objective.terms.ce.end=null: "),
        (["objective.terms.ce.start=1"], "objective.terms.ce.start=1"),
        (["objective.matches=L6"], "objective.matches=L6: "),
        (["objective.matches={teacher: 5, student: 1, loss: cos}"], "objective.matches[0].teacher=5: "),
        (["objective.matches={teacher: 1, student: 1, loss: attention_mse}", "compile=true"], "compile=true "),
        (["benchmark=question_answering", "objective.temperature_schedule=flsw"], "objective.temperature_schedule="),
        (
            ["benchmark=text_regression", "objective.probability_shift=true"],
            "objective.probability_shift=true",
        ),
        (["teacher.weights=[1]"], "teacher.weights=[1"),
        (["teacher.models=[]"], "teacher.models=[]"),
        (["teacher.models=[a,b]"], "teacher.models="),
        (["teacher.model=null", "teacher.models=[{0},{1}]", "teacher.weights=[1]"], "teacher.weights=[1"),
        (["teacher.model=null", "teacher.models=[{0},{1}]", "objective.terms.cos.weight=1"], "objective.terms.cos"),
        (["teacher.model=null", "teacher.models=[{0},{encoder}]"], "teacher.models"),
        (["teacher.model=null", "teacher.models=[{0},{1}]", "teacher.average=median"], "teacher.average=median: "),
        (["~benchmark"], "benchmark=null: objective=task_kd "),
        (["teacher.model=null"], "teacher.model=null: "),
    ],
)  # fmt: skip
def test_invalid_options_are_rejected_before_torch(overrides, said, teachers, halves, compose_config):
    parts = [f"benchmark.{part}_file={halves}/{part}.tsv" for part in ("train", "eval")]
    encoder = teachers[0].parent / "encoder"
    given = [o.replace("{0}", str(teachers[0])).replace("{1}", str(teachers[1])) for o in overrides]
    given = [o.replace("{encoder}", str(encoder)) for o in given]
    known = ["objective=task_kd", *QUIET]
    if "~benchmark" in given:
        given.remove("~benchmark")
    else:
        known += ["benchmark=text_classification", *parts]
    with pytest.raises(ConfigError) as error:
        validate_train(compose_config(*known, f"teacher.model={teachers[0]}", *given))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_matches_of_language_models(kd, eval_file, compose_config, trained, tmp_path):
    common = [*kd, *SMALL, *QUIET, "trainer.max_steps=2", "data.num_proc=1", "student.layers=[0,1,3]"]
    common.append(f"data.eval_files=[{eval_file}]")
    matches = "objective.matches=[L3, {teacher: 4, student: 3, loss: relation_vv}]"
    _, summary = trained(tmp_path, *common, matches, "objective.gradient_shares_every=1")
    assert summary["train/loss_match_hidden_mse_3"] > 0
    assert summary["val/loss_match_8"] > 0
    assert sum(v for k, v in summary.items() if k.startswith("train/gradient_share_")) == pytest.approx(1)
    with pytest.raises(KeyNameError, match=r"^objective\.matches=L3: "):
        compose_config(*common, "objective=mlm", "objective.matches=L3")
    with pytest.raises(KeyNameError, match=r"^objective\.soft_target=jsd: "):
        compose_config(*common, "objective.soft_target=jsd")


GRU = ["student=bigru", "student.config.embedding_size=16", "student.config.hidden_size=32"]


def test_a_recurrent_student_learns_and_is_evaluated(train, teachers, halves, evaluated, tmp_path):
    nst = "{teacher: [0,4], student: [0,1], loss: nst}"
    match = f"objective.matches=[{{teacher: 4, student: 1, loss: hidden_mse}}, {nst}]"
    taught = ["objective=task_kd", f"teacher.model={teachers[0]}", "objective.terms.label.weight=1", match]
    summary = train(tmp_path / "run", *taught, *GRU, "trainer.max_epochs=8", "optimizer.lr=1e-2")
    assert summary["val/accuracy"] > 0.9
    assert summary["train/loss_match_1"] > 0
    assert "import potstill.models.bigru" in (tmp_path / "run/student/README.md").read_text()
    part = ["benchmark=text_classification", f"benchmark.eval_file={halves}/eval.tsv"]
    table = evaluated(tmp_path / "evaluated", *part, f"model={tmp_path}/run/student")
    assert table.value == pytest.approx(summary["val/accuracy"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.matches={teacher: 1, student: 1, loss: attention_mse}", "objective.matches"),
        ("student.checkpointing=full", "student.checkpointing=full"),
        ("compile=true", "compile=true"),
        ("benchmark=question_answering", "bigru"),
        ("objective=kd", "bigru"),
    ],
)
def test_invalid_options_of_a_recurrent_student(override, said, teachers, halves, compose_config):
    known = ["objective=task_kd", f"teacher.model={teachers[0]}", *GRU, *QUIET]
    if override != "objective=kd":
        known.append("benchmark=text_classification")
    with pytest.raises(ConfigError) as error:
        validate_train(compose_config(*known, override))
    assert said in str(error.value)
