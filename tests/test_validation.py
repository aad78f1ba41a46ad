"""Problems by what is asked for; what the command line makes of an error is tested with it."""

import json
import shutil

import datasets
import pytest

from potstill.errors import ConfigError, PotstillError
from potstill.runs.checks import validate_evaluate, validate_train
from potstill.validation.training import SCHEDULES


@pytest.fixture(scope="session")
def faulty_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "empty.txt").touch()
    (folder / "binary.txt").write_bytes(b"PK\x03\x04\0\0\0\0")
    (folder / "latin.txt").write_bytes("good line\ncafé au lait\n".encode("latin-1"))
    datasets.Dataset.from_dict({"body": ["a text"]}).save_to_disk(folder / "saved")
    return folder


@pytest.fixture
def train_problem(compose_config):
    def problem_of(*overrides):
        with pytest.raises(PotstillError) as error:
            validate_train(compose_config(*overrides))
        message = str(error.value)
        assert "\n" not in message
        return message

    return problem_of


@pytest.mark.parametrize(
    ("name", "said"),
    [("empty.txt", "is empty"), ("binary.txt", "binary"), ("latin.txt", "not UTF-8 (line 2)"), ("saved", "a folder")],
)
def test_invalid_text_files(name, said, kd, faulty_files, train_problem):
    message = train_problem(*kd, f"data.train_files=[{faulty_files / name}]")
    assert message.startswith("data.train_files: ")
    assert name in message
    assert said in message


def test_saved_data_without_the_column(kd, faulty_files, train_problem, compose_config):
    saved = ["data=saved", "data.train_files=null", f"data.train.0.folder={faulty_files / 'saved'}"]
    message = train_problem(*kd, *saved)
    assert "data.train.0.column=text" in message
    assert "text columns: body" in message
    validate_train(compose_config(*kd, *saved, "data.train.0.column=body"))
    assert "data.train.0: " in train_problem(*kd, "data=saved", "data.train_files=null")


@pytest.mark.parametrize(
    "override",
    [
        "objective.temperature=0",
        "objective.temperature=-1",
        "objective.temperature=nan",
        "objective.terms.ce.weight=-1",
        "objective.terms.clm.weight=1",
        "data.mlm_share=0",
        "data.augment.share=1.5",
        "data.augment.ngram_size=0",
        "data.augment.share=0.5",
        "data.mlm_share=1.5",
        "data.max_length=65",
        "data.max_length=4",
        "student.layers=[0,4]",
        "student.layers=[2,1]",
        "student.attention=nonsense",
        "trainer.precision=16",
        "trainer.max_epochs=0",
        "optimizer._target_=null",
        "optimizer.lr=fast",
        "logger.name=wandbb",
        "logger.mode=on",
        "logger.artifact_mb=-1",
        "schedule.name=reduce_lr_on_plateau",
        "schedule.warmup_share=2",
    ],
)
def test_invalid_values(override, kd, train_problem):
    message = train_problem(*kd, override)
    key, _, value = override.partition("=")
    assert message.startswith(f"{key}=")
    assert value.strip("[]").split(",")[0] in message.partition(": ")[0]


def test_masks_are_rejected_for_a_causal_model(source, gpt2_teacher, train_problem):
    causal = [*source, f"teacher.model={gpt2_teacher}"]
    assert "objective.terms.mlm.weight=1.0" in train_problem(*causal, "objective.terms.mlm.weight=1")
    assert "objective.positions=masked" in train_problem(*causal, "objective.positions=masked")


def test_all_weights_zero(kd, train_problem):
    terms = [f"objective.terms.{name}.weight=0" for name in ("ce", "mlm", "clm", "cos")]
    assert "objective.terms: all weights are 0; give one of" in train_problem(*kd, *terms)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("proportion=0", ""),
        ("proportion=1.5", ""),
        ("max_tokens=0", ""),
        ("positions=spans", "consecutive, free, masked"),
        ("pairing=batch", "in_batch, dataset, shuffled"),
        ("read_site=output", "block_output, block_input"),
        ("mapping=[]", ""),
        ("mapping=middle", "single_middle, middle_late, multilayer, grid"),
        ("mapping=[{teacher: {layers: 4}, student: {layers: 0}}]", "4: blocks 0 to 3"),
        ("mapping=[{teacher: {layers: 0}, student: {layers: 2}}]", "2: blocks 0 to 1"),
        ("mapping=[{teacher: {layers: 0, heads: [0,2]}, student: {layers: 0}}]", ""),
    ],
)
def test_invalid_interventions(override, said, kd, train_problem):
    message = train_problem(*kd, "objective=diito", f"objective.interchange.{override}")
    key = override.partition("=")[0]
    assert message.startswith(f"objective.interchange.{key}=")
    assert said in message


def test_the_published_syntax_on_the_command_line(kd, train_problem, compose_config):
    name = "[{teacher: ['$L:[1:3]$H:[0:4]$[0:8]'], student: ['$L:0$H:[0:4]$[0:8]']}]"
    validate_train(compose_config(*kd, "objective=diito", f"objective.interchange.mapping={name}"))
    validate_train(compose_config(*kd, "objective=diito", f"objective.interchange.mapping={name[1:-1]}"))
    wrong = name.replace("H:[0:4]", "H:[0:5]")
    message = train_problem(*kd, "objective=diito", f"objective.interchange.mapping={wrong}")
    assert "the teacher has no head 4: heads 0 to 3" in message


def test_requirements_of_checkpointing(kd, train_problem, compose_config):
    assert train_problem(*kd, "student.checkpointing=half") == (
        "student.checkpointing=half: one of selective, full, or null"
    )
    assert "a compiled block hides its parts" in train_problem(*kd, "student.checkpointing=selective", "compile=true")
    validate_train(compose_config(*kd, "student.checkpointing=full", "compile=true"))


def test_requirements_of_interventions(kd, source, gpt2_teacher, train_problem, compose_config):
    message = train_problem(*kd, "objective=diito", "data.batch_size=1")
    assert message.startswith("data.batch_size=1: with objective.interchange.pairing=in_batch")
    alone = ["objective=diito", "data.batch_size=1", "objective.interchange.pairing=dataset"]
    validate_train(compose_config(*kd, *alone))
    message = train_problem(*kd, "objective.terms.causal_ce.weight=1")
    assert message.startswith("objective.terms.causal_ce.weight=1.0: swaps states between inputs")
    assert "use objective=diito" in message
    after = "objective.matches=[{teacher: 2, student: 1, loss: cos, run: counterfactual}]"
    message = train_problem(*kd, after)
    assert message.startswith("objective.matches: run=counterfactual (match_0)")
    assert "objective.interchange.mapping=null" in message
    validate_train(compose_config(*kd, "objective=diito", after))
    swap = "objective.interchange.mapping=single_middle"
    validate_train(compose_config(*kd, "objective.terms.causal_ce.weight=1", swap))
    assert train_problem(*kd, "objective=mlm", swap).startswith(f"{swap}: no such key of objective=mlm")
    assert "names none" in train_problem(*kd, "objective=diito", "objective.interchange.mapping=null")
    causal = [*source, f"teacher.model={gpt2_teacher}", "objective=diito", "objective.interchange.positions=masked"]
    assert "objective.interchange.positions=masked: a causal language model masks nothing" in train_problem(*causal)
    assert "teacher.model=null: objective=diito needs a teacher" in train_problem(*source, "objective=diito")


def test_requirements_of_objectives(source, bert_teacher, train_problem):
    assert train_problem(*source).startswith("teacher.model=null: objective=kd needs a teacher")
    message = train_problem(*source, "objective=mlm", "student.model=null", "student.layers=null")
    assert message.startswith("student.model=null: objective=mlm trains")
    message = train_problem(*source, "objective=mlm", f"student.model={bert_teacher}", "objective.terms.cos.weight=1")
    assert message.startswith("objective.terms.cos.weight=1: no such key of objective=mlm")
    message = train_problem(*source, "objective=mlm", f"student.model={bert_teacher}", "student.layers=[0]")
    assert "student.layers=[0]: give one of them" in message


def test_teacher_and_student_of_different_vocabularies(kd, bert_teacher, gpt2_teacher, tmp_path, train_problem):
    shutil.copytree(bert_teacher, tmp_path / "other")
    settings = tmp_path / "other" / "config.json"
    content = json.loads(settings.read_text())
    other = content["vocab_size"] + (9 if content["vocab_size"] % 8 != 7 else 8)  # no head that is padded to 8
    settings.write_text(json.dumps(content | {"vocab_size": other}))
    message = train_problem(*kd, "student=pretrained", f"student.model={tmp_path}/other")
    assert f"student.model has a vocabulary of {other}" in message
    assert f"teacher.model one of {content['vocab_size']}" in message
    message = train_problem(*kd, "student=pretrained", f"student.model={gpt2_teacher}")
    assert "both must be of one kind" in message


def test_lengths_beyond_a_student_from_scratch(source, train_problem, compose_config):
    scratch = [*source, "objective=mlm", "student=bert_tiny"]
    assert "data.max_length=513: the student reads at most 512 tokens" in train_problem(*scratch, "data.max_length=513")
    validate_train(compose_config(*scratch, "data.max_length=512"))
    message = train_problem(*source, "objective=mlm", "+student.config={model_type: bret}")
    assert "student.config: unknown model_type 'bret'" in message


def test_the_teacher_of_layers_bounds_a_supervised_run_too(kd, train_problem, compose_config):
    assert "teacher.model reads at most 64" in train_problem(*kd, "objective=mlm", "data.max_length=65")
    # A teacher that is neither learned from nor taken layers of bounds nothing.
    validate_train(compose_config(*kd, "objective=mlm", "student=bert_tiny", "data.max_length=65"))


def test_a_student_from_scratch_has_no_layers_of_the_teacher(kd, train_problem):
    message = train_problem(*kd, "student=bert_tiny", "student.layers=[0,1]")
    assert message.startswith("student.layers=[0, 1] with student.config={'model_type': 'bert'")


def test_the_cache_must_be_a_folder(kd, tmp_path, train_problem):
    (tmp_path / "file").touch()
    message = train_problem(*kd, f"data.cache={tmp_path}/file/inside")
    assert message == f"data.cache={tmp_path}/file/inside: {tmp_path}/file is a file; name a folder"


def test_evaluation_problems(text_file, shared_cache, bert_teacher, gpt2_teacher, monkeypatch, compose_config):
    monkeypatch.setenv("POTSTILL_CACHE", str(shared_cache))
    source = ["data=text_files", f"data.eval_files=[{text_file}]"]

    def error(*overrides):
        with pytest.raises(ConfigError) as found:
            validate_evaluate(compose_config(*source, *overrides, name="evaluate"))
        return str(found.value)

    message = error(f"model=[{bert_teacher},{gpt2_teacher}]", "names=[one]", "data.max_length=80")
    assert "names=['one']: 2 models need as many names" in message
    both = f"model=[{bert_teacher},{bert_teacher}]"
    assert "names=[k, k]: two models are called k;" in error(both, "names=[k,k]")
    assert "two models are called a/b and a_b, which are both a_b in files;" in error(both, "names=[a/b,a_b]")
    assert f"benchmark=mlm: {gpt2_teacher} is a causal language model; use clm" in message
    assert f"data.max_length=80: model={bert_teacher} reads at most 64 tokens" in message
    swap = [f"model=[{bert_teacher},{bert_teacher}]", "benchmark=interchange"]
    assert "benchmark.interchange.proportion=2.0" in error(*swap, "benchmark.interchange.proportion=2")
    message = error(*swap, "benchmark.interchange.mapping=[{teacher: {layers: 9}, student: {layers: 0}}]")
    assert message.startswith("benchmark.interchange.mapping=[...]: the teacher has no block 9")
    assert "benchmark.positions=some" in error(*swap, "benchmark.positions=some")
    assert "nowhere.txt' does not exist" in error(f"model={bert_teacher}", "benchmark.eval_file=nowhere.txt")


@pytest.fixture
def rows(tmp_path):
    """Keys of a benchmark of two small files."""
    (tmp_path / "rows.tsv").write_text("text\tlabel\nthe man\tyes\none other\tno\n")
    return ["benchmark=text_classification", *(f"benchmark.{p}_file={tmp_path}/rows.tsv" for p in ("train", "eval"))]


def test_requirements_of_tasks(source, rows, bert_teacher, train_problem, compose_config):
    finetune = ["objective=finetune", "data.max_length=32", "logger=csv", f"student.model={bert_teacher}"]
    validate_train(compose_config(*finetune, *rows))
    assert train_problem(*finetune).startswith("benchmark=null: objective=finetune trains on a task; benchmark=sst2")
    assert "benchmark=mlm: objective=finetune trains on a task" in train_problem(*finetune, "benchmark=mlm")
    kd = [*source, f"teacher.model={bert_teacher}"]
    assert "benchmark=text_classification: objective=kd trains on a corpus" in train_problem(*kd, *rows)
    message = train_problem(*finetune, *rows, "objective.terms.cos.weight=1")
    assert message.startswith("objective.terms.cos.weight=1: no such key of objective=finetune")
    message = train_problem(*finetune, *rows, "benchmark.label_column=gold")
    assert "benchmark.train_file: " in message
    assert "text, label; set benchmark.label_column" in message
    scratch = ["objective=finetune", "student=bert_tiny", "logger=csv", *rows]
    assert "data.tokenizer=null: objective=finetune of a model from scratch" in train_problem(*scratch)
    assert train_problem("objective=finetune", *rows, "logger=csv").startswith("student.model=null: objective=finetune")
    assert "student.layers=[4]: 4 is out of range" in train_problem(
        "objective=finetune", *rows, "logger=csv", "data.max_length=32", f"teacher.model={bert_teacher}",
        "student.layers=[4]",
    )  # fmt: skip


def test_a_model_evaluated_on_a_task_has_a_head_for_it(rows, bert_teacher, tmp_path, compose_config):
    shutil.copytree(bert_teacher, tmp_path / "evaluator")
    settings = tmp_path / "evaluator" / "config.json"
    head = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | head))

    def evaluator(*overrides):
        config = compose_config(*rows, "data.max_length=32", *overrides, name="evaluate")
        validate_evaluate(config)

    with pytest.raises(ConfigError, match=f"model={bert_teacher}: has no trained head of its kind"):
        evaluator(f"model={bert_teacher}")
    evaluator(f"model={tmp_path}/evaluator")  # labels that only the model names are taken from it
    with pytest.raises(ConfigError, match="its labels are bad, good, the data set's yes, no: they cannot be matched"):
        evaluator(f"model={tmp_path}/evaluator", "benchmark.labels=['yes','no']")
    with pytest.raises(ConfigError, match=r"benchmark.eval_file: .* \[sentence\]"):
        evaluator(f"model={tmp_path}/evaluator", "benchmark=sst2", "benchmark.labels=[bad,good]")


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_that_is_allowed_can_be_made(name, compose_config):
    import torch

    from potstill.methods.common.models import build_schedule

    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    settings = compose_config(f"schedule.name={name}").schedule
    schedule = build_schedule(settings, optimizer, 10)
    optimizer.step()
    schedule.step()


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_schedule_may_end_above_zero(name, compose_config):
    import torch

    from potstill.methods.common.models import build_schedule

    rates = {}
    for share in (0, 0.25):
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
        keys = (f"schedule.name={name}", f"schedule.end_share={share}", "schedule.warmup_steps=2")
        schedule = build_schedule(compose_config(*keys).schedule, optimizer, 10)
        rates[share] = []
        for _ in range(11):
            rates[share].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    assert rates[0][:3] == rates[0.25][:3] == [0.0, 0.5, 1.0]
    assert rates[0.25][2:] == pytest.approx([0.25 + 0.75 * rate for rate in rates[0][2:]])
    assert rates[0.25][10] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("objective", "overrides", "key"),
    [
        ("kd", (), "objective.terms.cos.weight"),
        ("kd", ("doctor=true",), "objective.terms.cos.weight"),
        ("kd", ("objective.terms.cos={weight: 0, schedule: linear, end: 1, steps: 4}",), "objective.terms.cos.weight"),
        ("diito", (), "objective.terms.cos.weight"),
        (
            "diito",
            ("objective.terms.cos.weight=0", "objective.terms.causal_cos.weight=1"),
            "objective.terms.causal_cos.weight",
        ),
        (
            "kd",
            ("objective.terms.cos.weight=0", "objective.matches=[{teacher: 1, student: 1, loss: hidden_mse}]"),
            "objective.matches[0].loss",
        ),
    ],
)
@pytest.mark.parametrize("student", ["option", "folder"])
def test_models_of_unequal_widths(objective, overrides, key, student, kd, wide, train_problem, compose_config):
    own = "student=bert_small" if student == "option" else f"student.model={wide}"
    width = 256 if student == "option" else 64
    said = train_problem(*kd, f"objective={objective}", own, *overrides)
    assert said.startswith(f"{key}=")
    assert f" {width} " in said
    assert "32" in said
    if key == "objective.terms.cos.weight":
        terms = (f"{key}=0", "objective.terms.cos.schedule=constant", "objective.terms.cos.end=null")
        validate_train(
            compose_config(*kd, f"objective={objective}", own, *overrides, *terms, "objective.terms.cos.steps=0")
        )


def test_causal_models_of_unequal_widths(source, gpt2_teacher, train_problem):
    said = train_problem(*source, f"teacher.model={gpt2_teacher}", "student=gpt2_tiny")
    assert said.startswith("objective.terms.cos.weight=1.0")


def test_a_task_student_of_another_width(source, bert_teacher, wide, train_problem, tmp_path):
    (tmp_path / "rows.tsv").write_text("text\tlabel\nthe man\tyes\none other\tno\n")
    rows = [
        "benchmark=text_classification",
        *(f"benchmark.{part}_file={tmp_path}/rows.tsv" for part in ("train", "eval")),
    ]
    own = [*rows, f"teacher.model={bert_teacher}", f"student.model={wide}", "logger=csv"]
    assert "objective.terms.cos.weight=0.25" in train_problem("objective=diito", *own)
    match = "objective.matches=[{teacher: 1, student: 1, loss: cos}]"
    assert "objective.matches[0].loss=cos" in train_problem("objective=task_kd", *own, match)


@pytest.fixture(scope="session")
def wide(tmp_path_factory, bert_tokenizer, make_bert):
    return make_bert(tmp_path_factory.mktemp("wide"), bert_tokenizer, layers=2, hidden_size=64)
