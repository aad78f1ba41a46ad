"""Which keys may differ from those that a checkpoint was made with."""

import shutil

import pytest

from potstill.validation.resuming import differences, identity_of, resume_problems

FEW = ["data.batch_size=4", "objective=diito"]


@pytest.fixture
def identity(text_file, bert_teacher, compose_config):
    def of(*overrides, world=1):
        own = ["data=text_files", f"data.train_files=[{text_file}]", f"teacher.model={bert_teacher}", "logger=csv"]
        return identity_of(compose_config(*own, *FEW, *overrides), world)

    return of


@pytest.mark.parametrize(
    ("override", "before", "after"),
    [
        ("seed=7", "42", "7"),
        ("data.mlm_share=0.3", "0.15", "0.3"),
        ("data.mlm_replace=[1,0,0]", "[0.8, 0.1, 0.1]", "[1.0, 0.0, 0.0]"),
        ("data.batch_size=8", "4", "8"),
        ("data.max_length=16", "null", "16"),
        ("data.group_size=8", "null", "8"),
        ("data.max_tokens=64", "null", "64"),
        ("trainer.accumulate_grad_batches=2", "1", "2"),
        ("objective.interchange.proportion=0.5", "0.3", "0.5"),
        ("objective.temperature=3", "2.0", "3.0"),
        ("student.dropout=0.5", "null", "0.5"),
        ("optimizer._target_=torch.optim.SGD", "torch.optim.AdamW", "torch.optim.SGD"),
        ("data.eval_share=0.5", "0.01", "0.5"),
    ],
)
def test_what_decides_the_steps_has_to_be_as_it_was(override, before, after, identity):
    problems = resume_problems(identity(), identity(override))
    assert len(problems) == 1
    key = override.partition("=")[0]
    assert problems[0].startswith(f"{key}={after}")
    assert before in problems[0].removeprefix(f"{key}={after}")


def test_a_key_that_is_newer_than_the_checkpoint_has_to_have_its_default(identity):
    saved = identity()
    assert saved["settings"].pop("data.mlm_share") == 0.15
    assert resume_problems(saved, identity()) == []
    assert [problem.split("=")[0] for problem in resume_problems(saved, identity("data.mlm_share=0.3"))] == [
        "data.mlm_share"
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.lr=1e-5", "optimizer.weight_decay=0.2", "optimizer.betas=[0.8,0.9]", "+optimizer.amsgrad=true"],
        ["schedule=cosine", "schedule.warmup_steps=3", "trainer.max_steps=9", "trainer.max_epochs=7"],
        ["trainer.gradient_clip_val=null", "trainer.val_check_interval=4", "callbacks=early_stopping"],
    ],
)
def test_the_command_line_wins(overrides, identity):
    saved, now = identity(), identity(*overrides)
    assert resume_problems(saved, now) == []
    named = {override.partition("=")[0].lstrip("+") for override in overrides if "." in override.partition("=")[0]}
    assert named <= set(differences(saved, now))


@pytest.mark.parametrize(
    "overrides",
    [
        ["logger.run=other", "checkpoint.every_n_steps=3", "trainer.enable_progress_bar=false"],
        ["data.num_workers=2", "data.num_proc=1", "data.cache=elsewhere", "trainer.accelerator=cpu", "compile=true"],
    ],
)
def test_what_changes_no_result_does_not_count(overrides, identity):
    assert differences(identity(), identity(*overrides)) == {}


def test_a_step_may_be_cut_otherwise(identity):
    """The same number of sequences, over more micro-batches or more processes."""
    saved = identity()
    assert differences(saved, identity("data.batch_size=2", "trainer.accumulate_grad_batches=2")) == {}
    assert differences(saved, identity("data.batch_size=2", "trainer.devices=2", world=2)) == {}
    assert differences(saved, identity("trainer.devices=2", world=2)) == {"trainer.devices": (1, 2)}


def test_files_are_known_by_their_contents(identity, text_file, bert_teacher, tmp_path):
    saved = identity()
    moved = tmp_path / "moved.txt"
    shutil.copy(text_file, moved)
    shutil.copytree(bert_teacher, tmp_path / "teacher")
    elsewhere = [f"data.train_files=[{moved}]", f"teacher.model={tmp_path}/teacher"]
    assert differences(saved, identity(*elsewhere)) == {}
    moved.write_text(text_file.read_text().replace("the", "and", 1))
    assert [error.partition("=")[0] for error in resume_problems(saved, identity(*elsewhere))] == ["data.train_files"]
    before = identity(*elsewhere)
    moved.write_text(text_file.read_text())
    assert [error.partition("=")[0] for error in resume_problems(before, identity(*elsewhere))] == ["data.train_files"]


def test_an_identity_is_of_primitives(identity, tmp_path):
    import torch

    torch.save(identity(), tmp_path / "identity")
    assert torch.load(tmp_path / "identity", weights_only=True) == identity()
