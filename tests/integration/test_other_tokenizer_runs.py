"""A teacher and a student of different tokenizers, from end to end, in this process."""

import json

import pytest

from potstill.errors import ConfigError
from potstill.runs import train as train_run
from potstill.runs.checks import validate_train

pytestmark = pytest.mark.integration

QUIET = ["logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
SMALL = ["data.max_length=32", "data.batch_size=8", "optimizer.lr=3e-3", "data.eval_batch_size=32"]


@pytest.fixture(scope="module")
def task(halves):
    parts = [f"benchmark.{part}_file={halves}/{part}.tsv" for part in ("train", "eval")]
    return ["benchmark=text_classification", *parts]


@pytest.fixture(scope="module")
def train(task, trained):
    """The summary of a run."""
    return lambda folder, *overrides: trained(folder, *task, *SMALL, *QUIET, *overrides).summary


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, roberta_teacher, gpt2_teacher, train):
    """Fine-tuned: a RoBERTa of a byte-level tokenizer, and a GPT-2 of another one."""
    made = []
    for name, model in (("roberta", roberta_teacher), ("gpt2", gpt2_teacher)):
        folder = tmp_path_factory.mktemp(name)
        train(folder, "objective=finetune", f"student.model={model}", "trainer.max_epochs=6")
        made.append(folder / "student")
    return made


@pytest.fixture(scope="module")
def student(tmp_path_factory, bert_tokenizer, make_bert):
    folder = tmp_path_factory.mktemp("student")
    return make_bert(folder, bert_tokenizer, layers=2, hidden_size=16, initializer_range=0.05)


def test_a_bert_learns_from_a_roberta(train, teachers, student, tmp_path):
    summary = train(
        tmp_path, "objective=task_kd", f"teacher.model={teachers[0]}", f"student.model={student}",
        "teacher.tokenizer=own", "trainer.max_epochs=8", "objective.temperature=2",
    )  # fmt: skip
    assert summary["train/loss"] == pytest.approx(summary["train/loss_ce"])
    assert summary["val/accuracy"] > 0.85  # from soft targets alone
    settings = json.loads((tmp_path / "student/tokenizer_config.json").read_text())
    assert "Bert" in settings["tokenizer_class"]


def test_teachers_with_different_tokenizers(train, teachers, student, tmp_path):
    summary = train(
        tmp_path, "objective=task_kd", f"teacher.models=[{teachers[0]},{teachers[1]}]", "teacher.tokenizer=own",
        f"student.model={student}", "trainer.max_steps=2", "teacher.average=probabilities",
        "trainer.accumulate_grad_batches=2",
    )  # fmt: skip
    assert 0 < summary["train/loss_ce"] == pytest.approx(summary["train/loss"])


def test_a_teacher_of_the_same_tokenizer_is_read_as_without_the_key(train, student, tmp_path):
    train(tmp_path / "teacher", "objective=finetune", f"student.model={student}", "trainer.max_steps=3")
    common = [
        "objective=task_kd", f"teacher.model={tmp_path}/teacher/student", f"student.model={student}",
        "trainer.max_steps=3",
    ]  # fmt: skip
    plain = train(tmp_path / "plain", *common)
    own = train(tmp_path / "own", *common, "teacher.tokenizer=own")
    named = train(tmp_path / "named", *common, f"teacher.tokenizer={student}")
    assert plain["train/loss_ce"] == own["train/loss_ce"] == named["train/loss_ce"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective.matches={teacher: 1, student: 1, loss: nst}"], "objective.matches={'teacher': 1, 'student': 1"),
        (["objective.terms.cos.weight=1"], "objective.terms.cos.weight=1.0 with teacher.tokenizer=own: "),
        (["objective.interchange.mapping=single_middle"], "mapping=single_middle with teacher.tokenizer=own: "),
        (["data.augment.share=0.5"], "data.augment.share=0.5 with teacher.tokenizer=own: "),
        (["benchmark=token_classification"], "teacher.tokenizer=own: benchmark=token_classification "),
        (["objective=finetune"], "teacher.tokenizer=own: objective=finetune "),
        (["student.model=null", "data.tokenizer={student}"], "data.tokenizer={student} with teacher.tokenizer=own: "),
    ],
)  # fmt: skip
def test_options_that_need_the_same_tokens_are_rejected(overrides, said, task, teachers, student, compose_config):
    given = [override.replace("{student}", str(student)) for override in overrides]
    config = compose_config(
        "objective=task_kd", *task, f"teacher.model={teachers[0]}", f"student.model={student}",
        "teacher.tokenizer=own", *SMALL, *QUIET, *given,
    )  # fmt: skip
    with pytest.raises(ConfigError) as error:
        validate_train(config)
    assert said.replace("{student}", str(student)) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_error_about_two_vocabularies_names_teacher_tokenizer(task, teachers, student, compose_config, tmp_path):
    settings = json.loads((student / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "vocab_size": 3001}))
    given = [*task, f"teacher.model={teachers[0]}", f"student.model={tmp_path}", *SMALL, *QUIET]
    with pytest.raises(ConfigError, match=r"3001, teacher\.model one of 400: .* teacher\.tokenizer=own"):
        validate_train(compose_config("objective=task_kd", *given))
    validate_train(compose_config("objective=task_kd", *given, "teacher.tokenizer=own"))


ULD = [
    "objective=kd", "objective.terms.ce.weight=0", "objective.terms.cos.weight=0", "objective.terms.uld.weight=1",
    "objective.temperature=1", "teacher.tokenizer=own",
]  # fmt: skip
FROM_SCRATCH = (
    "+student.config={model_type: gpt2, n_layer: 2, n_head: 4, n_embd: 16, n_positions: 64, bos_token_id: 2, "
    "eos_token_id: 3}"
)


@pytest.fixture(scope="module")
def corpus(text_file, eval_file):
    return [
        "data=text_files", f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]", "data.num_proc=1",
    ]  # fmt: skip


def test_a_language_model_learns_from_one_of_other_tokens(corpus, gpt2_teacher, bert_tokenizer, trained, tmp_path):
    _, summary = trained(
        tmp_path, *ULD, *corpus, *SMALL, *QUIET, f"teacher.model={gpt2_teacher}", f"data.tokenizer={bert_tokenizer}",
        FROM_SCRATCH, "trainer.max_epochs=2", "objective.gradient_shares_every=5",
    )  # fmt: skip
    weighted = summary["train/loss_uld"] + 2 * summary["train/loss_clm"]
    assert summary["train/loss"] == pytest.approx(weighted, rel=1e-4)
    assert 0 < summary["val/loss_uld"] <= 2
    assert summary["train/gradient_share_uld"] > 0
    assert "val/teacher_perplexity" not in summary


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["teacher.tokenizer=null"], "objective.terms.uld.weight=1.0: "),
        (["objective.terms.uld.weight=0"], "teacher.tokenizer=own: only objective.terms.uld "),
        (["objective.terms.ce.weight=5"], "objective.terms.ce.weight=5.0 with teacher.tokenizer=own: "),
        (["objective.matches={teacher: 1, student: 1, loss: cos}"], "objective.matches={'teacher': 1, 'student': 1"),
        (["student=half"], "student.model=null with teacher.tokenizer=own: "),
        (["objective=clm"], "objective.terms.ce.weight=0: no such key of objective=clm"),
        (["student.config.model_type=bert"], "teacher.tokenizer=own: "),
    ],
)  # fmt: skip
def test_invalid_options_of_language_models_with_different_tokens(
    overrides, said, corpus, gpt2_teacher, bert_tokenizer, compose_config
):
    given = [*ULD, *corpus, *SMALL, *QUIET, f"teacher.model={gpt2_teacher}", f"data.tokenizer={bert_tokenizer}"]
    made = [] if "student=half" in overrides else [FROM_SCRATCH]
    with pytest.raises(ConfigError) as error:
        validate_train(compose_config(*given, *made, *overrides))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_term_is_rejected_if_both_have_one_tokenizer(corpus, gpt2_teacher, compose_config, tmp_path):
    given = [*ULD, *corpus, *SMALL, *QUIET, f"teacher.model={gpt2_teacher}", f"data.tokenizer={gpt2_teacher}"]
    config = compose_config(*given, FROM_SCRATCH.replace("2, eos_token_id: 3", "0, eos_token_id: 0"))
    validate_train(config)
    with pytest.raises(ConfigError, match=r"^teacher\.tokenizer: .* teacher\.tokenizer=null"):
        train_run.train(config, tmp_path)
