"""Faults by what is asked for; what the command line makes of a fault is tested with it."""

import json
import shutil

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
    (folder / "saved").mkdir()
    info = {"features": {"body": {"dtype": "string", "_type": "Value"}}}
    (folder / "saved" / "dataset_info.json").write_text(json.dumps(info))
    (folder / "saved" / "state.json").write_text(json.dumps({"_fingerprint": "1", "_data_files": []}))
    return folder


@pytest.fixture
def train_fault(compose_config):
    def fault_of(*overrides):
        with pytest.raises(PotstillError) as fault:
            validate_train(compose_config(*overrides))
        message = str(fault.value)
        assert "\n" not in message
        return message

    return fault_of


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty.txt", "is empty"),
        ("binary.txt", "binary"),
        ("latin.txt", "not UTF-8 (line 2)"),
        ("saved", "a folder"),
    ],
)
def test_text_files_that_are_none(name, said, kd, faulty_files, train_fault):
    message = train_fault(*kd, f"data.train_files=[{faulty_files / name}]")
    assert message.startswith("data.train_files: ")
    assert name in message
    assert said in message


def test_saved_data_without_the_column(kd, faulty_files, train_fault, compose_config):
    saved = ["data=saved", "data.train_files=null", f"data.train.0.folder={faulty_files / 'saved'}"]
    message = train_fault(*kd, *saved)
    assert "data.train.0.column=text" in message
    assert "text columns: body" in message
    validate_train(compose_config(*kd, *saved, "data.train.0.column=body"))
    assert "data.train.0: " in train_fault(*kd, "data=saved", "data.train_files=null")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.temperature=0", "a number"),
        ("objective.temperature=-1", "a number"),
        ("objective.temperature=nan", "a number"),
        ("objective.terms.ce.weight=-1", "a number"),
        ("objective.terms.clm.weight=1", "masked language model; use mlm"),
        ("data.mlm_share=0", "a number"),
        ("data.augment.share=1.5", "a number"),
        ("data.augment.ngram_size=0", "a number"),
        ("data.augment.share=0.5", "changes the training rows of a task"),
        ("data.mlm_share=1.5", "a number"),
        ("data.max_length=65", "teacher.model reads at most 64 tokens"),
        ("data.max_length=4", "a number"),
        ("student.layers=[0,4]", "the 4 layers are 0 to 3"),
        ("student.layers=[2,1]", "must be increasing"),
        ("student.attention=nonsense", "one of sdpa, eager, flex_attention"),
        ("trainer.precision=16", "one of 32-true, bf16-mixed"),
        ("trainer.max_epochs=0", "a number"),
        ("optimizer._target_=null", "such as torch.optim.AdamW"),
        ("optimizer.lr=fast", "a number"),
        ("logger.name=wandbb", "one of wandb, tensorboard, csv"),
        ("logger.mode=on", "online, offline, disabled, or null"),
        ("logger.artifact_mb=-1", "a number"),
        ("schedule.name=reduce_lr_on_plateau", "one of linear"),
        ("schedule.warmup_share=2", "a number"),
    ],
)
def test_values_that_cannot_be(override, said, kd, train_fault):
    message = train_fault(*kd, override)
    key, _, value = override.partition("=")
    assert message.startswith(key)
    assert said in message
    assert value.strip("[]").split(",")[0] in message


def test_a_causal_model_masks_nothing(source, gpt2_teacher, train_fault):
    causal = [*source, f"teacher.model={gpt2_teacher}"]
    assert "objective.terms.mlm.weight=1.0" in train_fault(*causal, "objective.terms.mlm.weight=1")
    assert "objective.positions=masked" in train_fault(*causal, "objective.positions=masked")


def test_all_weights_zero(kd, train_fault):
    terms = [f"objective.terms.{name}.weight=0" for name in ("ce", "mlm", "clm", "cos")]
    assert "objective.terms: all weights are 0; give one of" in train_fault(*kd, *terms)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("proportion=0", "a number"),
        ("proportion=1.5", "a number"),
        ("max_tokens=0", "a number"),
        ("positions=spans", "one of consecutive, free, masked"),
        ("pairing=batch", "one of in_batch, dataset"),
        ("read_site=output", "one of block_output, block_input"),
        ("mapping=[]", "an empty mapping"),
        ("mapping=middle", "no such layout or file; one of single_middle, middle_late, multilayer, grid"),
        (
            "mapping=[{teacher: {layers: 4}, student: {layers: 0}}]",
            "the teacher has no block 4: blocks 0 to 3",
        ),
        (
            "mapping=[{teacher: {layers: 0}, student: {layers: 2}}]",
            "the student has no block 2: blocks 0 to 1",
        ),
        ("mapping=[{teacher: {layers: 0, heads: [0,2]}, student: {layers: 0}}]", "name slices of equal size"),
    ],
)
def test_interventions_that_cannot_be(override, said, kd, train_fault):
    message = train_fault(*kd, "objective=diito", f"objective.interchange.{override}")
    key = override.partition("=")[0]
    assert message.startswith(f"objective.interchange.{key}=")
    assert said in message


def test_the_published_syntax_on_the_command_line(kd, train_fault, compose_config):
    name = "[{teacher: ['$L:[1:3]$H:[0:4]$[0:8]'], student: ['$L:0$H:[0:4]$[0:8]']}]"
    validate_train(compose_config(*kd, "objective=diito", f"objective.interchange.mapping={name}"))
    wrong = name.replace("H:[0:4]", "H:[0:5]")
    message = train_fault(*kd, "objective=diito", f"objective.interchange.mapping={wrong}")
    assert "the teacher has no head 4: heads 0 to 3" in message


def test_what_checkpointing_needs(kd, train_fault, compose_config):
    assert train_fault(*kd, "student.checkpointing=half") == (
        "student.checkpointing=half: one of selective, full, or null"
    )
    assert "a compiled block hides its parts" in train_fault(
        *kd, "student.checkpointing=selective", "compile=true"
    )
    validate_train(compose_config(*kd, "student.checkpointing=full", "compile=true"))


def test_what_interventions_need(kd, source, gpt2_teacher, train_fault, compose_config):
    message = train_fault(*kd, "objective=diito", "data.batch_size=1")
    assert message.startswith("data.batch_size=1: with objective.interchange.pairing=in_batch")
    alone = ["objective=diito", "data.batch_size=1", "objective.interchange.pairing=dataset"]
    validate_train(compose_config(*kd, *alone))
    message = train_fault(*kd, "objective.terms.causal_ce.weight=1")
    assert message.startswith("objective.terms.causal_ce.weight=1.0: swaps states between inputs")
    assert "use objective=diito" in message
    swap = "objective.interchange.mapping=single_middle"
    validate_train(compose_config(*kd, "objective.terms.causal_ce.weight=1", swap))
    assert "objective=mlm has no teacher to compare with" in train_fault(*kd, "objective=mlm", swap)
    assert "names none" in train_fault(*kd, "objective=diito", "objective.interchange.mapping=null")
    causal = [
        *source,
        f"teacher.model={gpt2_teacher}",
        "objective=diito",
        "objective.interchange.positions=masked",
    ]
    assert "objective.interchange.positions=masked: a causal language model masks nothing" in train_fault(
        *causal
    )
    assert "teacher.model=null: objective=diito needs a teacher" in train_fault(*source, "objective=diito")


def test_what_an_objective_needs(source, bert_teacher, train_fault):
    assert train_fault(*source).startswith("teacher.model=null: objective=kd needs a teacher")
    message = train_fault(*source, "objective=mlm", "student.model=null", "student.layers=null")
    assert message.startswith("student.model=null: objective=mlm trains")
    message = train_fault(
        *source, "objective=mlm", f"student.model={bert_teacher}", "objective.terms.cos.weight=1"
    )
    assert "objective.terms.cos.weight=1.0: objective=mlm has no teacher" in message
    message = train_fault(*source, "objective=mlm", f"student.model={bert_teacher}", "student.layers=[0]")
    assert "student.layers=[0]: give one of them" in message


def test_teacher_and_student_of_different_vocabularies(kd, bert_teacher, gpt2_teacher, tmp_path, train_fault):
    shutil.copytree(bert_teacher, tmp_path / "other")
    settings = tmp_path / "other" / "config.json"
    content = json.loads(settings.read_text())
    other = content["vocab_size"] + (
        9 if content["vocab_size"] % 8 != 7 else 8
    )  # no head that is padded to 8
    settings.write_text(json.dumps(content | {"vocab_size": other}))
    message = train_fault(*kd, "student=pretrained", f"student.model={tmp_path}/other")
    assert f"student.model has a vocabulary of {other}" in message
    assert f"teacher.model one of {content['vocab_size']}" in message
    message = train_fault(*kd, "student=pretrained", f"student.model={gpt2_teacher}")
    assert "both must be of one kind" in message


def test_lengths_beyond_a_student_from_scratch(source, train_fault, compose_config):
    scratch = [*source, "objective=mlm", "student=bert_tiny"]
    assert "data.max_length=513: the student reads at most 512 tokens" in train_fault(
        *scratch, "data.max_length=513"
    )
    validate_train(compose_config(*scratch, "data.max_length=512"))
    message = train_fault(*source, "objective=mlm", "+student.config={model_type: bret}")
    assert "student.config: unknown model_type 'bret'" in message


def test_the_teacher_of_layers_bounds_a_supervised_run_too(kd, train_fault, compose_config):
    assert "teacher.model reads at most 64" in train_fault(*kd, "objective=mlm", "data.max_length=65")
    # A teacher that is neither learned from nor taken layers of bounds nothing.
    validate_train(compose_config(*kd, "objective=mlm", "student=bert_tiny", "data.max_length=65"))


def test_a_student_from_scratch_has_no_layers_of_the_teacher(kd, train_fault):
    message = train_fault(*kd, "student=bert_tiny", "student.layers=[0,1]")
    assert message.startswith("student.layers=[0, 1] with student.config={'model_type': 'bert'")


def test_terms_that_swap_are_those_of_the_objectives():
    """The objectives import torch, which nothing of validation may."""
    from potstill.objectives import terms
    from potstill.validation import objectives

    assert objectives.CAUSAL == terms.CAUSAL


def test_the_cache_must_be_a_folder(kd, tmp_path, train_fault):
    (tmp_path / "file").touch()
    message = train_fault(*kd, f"data.cache={tmp_path}/file/inside")
    assert message == f"data.cache={tmp_path}/file/inside: {tmp_path}/file is a file; name a folder"


def test_evaluation_faults(text_file, shared_cache, bert_teacher, gpt2_teacher, monkeypatch, compose_config):
    monkeypatch.setenv("POTSTILL_CACHE", str(shared_cache))
    source = ["data=text_files", f"data.eval_files=[{text_file}]"]

    def fault(*overrides):
        with pytest.raises(ConfigError) as found:
            validate_evaluate(compose_config(*source, *overrides, name="evaluate"))
        return str(found.value)

    message = fault(f"model=[{bert_teacher},{gpt2_teacher}]", "names=[one]", "data.max_length=80")
    assert "names=['one']: 2 models need as many names" in message
    both = f"model=[{bert_teacher},{bert_teacher}]"
    assert "names=[k, k]: two models are called k;" in fault(both, "names=[k,k]")
    assert "two models are called a/b and a_b, which are both a_b in files;" in fault(both, "names=[a/b,a_b]")
    assert f"benchmark=mlm: {gpt2_teacher} is a causal language model; use clm" in message
    assert f"data.max_length=80: model={bert_teacher} reads at most 64 tokens" in message
    swap = [f"model=[{bert_teacher},{bert_teacher}]", "benchmark=interchange"]
    assert "benchmark.interchange.proportion=2.0" in fault(*swap, "benchmark.interchange.proportion=2")
    message = fault(*swap, "benchmark.interchange.mapping=[{teacher: {layers: 9}, student: {layers: 0}}]")
    assert message.startswith("benchmark.interchange.mapping=[...]: the teacher has no block 9")
    assert "benchmark.positions=some" in fault(*swap, "benchmark.positions=some")
    assert "nowhere.txt' does not exist" in fault(f"model={bert_teacher}", "benchmark.eval_file=nowhere.txt")


@pytest.fixture
def rows(tmp_path):
    """Keys of a benchmark of two small files."""
    (tmp_path / "rows.tsv").write_text("text\tlabel\nthe man\tyes\none other\tno\n")
    return [
        "benchmark=text_classification",
        *(f"benchmark.{p}_file={tmp_path}/rows.tsv" for p in ("train", "eval")),
    ]


def test_what_a_task_needs(source, rows, bert_teacher, train_fault, compose_config, tmp_path):
    finetune = ["objective=finetune", "data.max_length=32", "logger=csv", f"student.model={bert_teacher}"]
    validate_train(compose_config(*finetune, *rows))
    assert train_fault(*finetune).startswith(
        "benchmark=null: objective=finetune trains on a task; benchmark=sst2"
    )
    assert "benchmark=mlm: objective=finetune trains on a task" in train_fault(*finetune, "benchmark=mlm")
    kd = [*source, f"teacher.model={bert_teacher}"]
    assert "benchmark=text_classification: objective=kd trains on a corpus" in train_fault(*kd, *rows)
    message = train_fault(*finetune, *rows, "objective.terms.cos.weight=1")
    assert message == "objective.terms.cos.weight=1.0: objective=finetune learns from the labels alone"
    message = train_fault(*finetune, *rows, "benchmark.label_column=gold")
    assert "benchmark.train_file: " in message
    assert "'gold'; its first line holds text, label" in message
    scratch = ["objective=finetune", "student=bert_tiny", "logger=csv", *rows]
    assert "data.tokenizer=null: objective=finetune of a model from scratch" in train_fault(*scratch)
    assert train_fault("objective=finetune", *rows, "logger=csv").startswith(
        "student.model=null: objective=finetune"
    )
    assert "student.layers=[4]: 4 is out of range" in train_fault(
        "objective=finetune", *rows, "logger=csv", "data.max_length=32", f"teacher.model={bert_teacher}",
        "student.layers=[4]",
    )  # fmt: skip


def test_a_model_that_is_judged_on_a_task_has_a_head_for_it(rows, bert_teacher, tmp_path, compose_config):
    shutil.copytree(bert_teacher, tmp_path / "judge")
    settings = tmp_path / "judge" / "config.json"
    head = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | head))

    def judge(*overrides):
        config = compose_config(*rows, "data.max_length=32", *overrides, name="evaluate")
        validate_evaluate(config)

    with pytest.raises(ConfigError, match=f"model={bert_teacher}: has no trained head of its kind"):
        judge(f"model={bert_teacher}")
    judge(f"model={tmp_path}/judge")  # labels that only the model names are taken from it
    with pytest.raises(
        ConfigError, match="its labels are bad, good, the data set's yes, no: they cannot be matched"
    ):
        judge(f"model={tmp_path}/judge", "benchmark.labels=['yes','no']")
    with pytest.raises(ConfigError, match=r"benchmark.eval_file: .* \[sentence\]"):
        judge(f"model={tmp_path}/judge", "benchmark=sst2", "benchmark.labels=[bad,good]")


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_that_is_allowed_can_be_made(name, compose_config):
    import torch

    from potstill.methods.common.models import build_schedule

    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    settings = compose_config(f"schedule.name={name}").schedule
    schedule = build_schedule(settings, optimizer, 10)
    optimizer.step()
    schedule.step()


@pytest.mark.parametrize(
    ("objective", "overrides", "key"),
    [
        ("kd", (), "objective.terms.cos.weight"),
        ("kd", ("doctor=true",), "objective.terms.cos.weight"),
        (
            "kd",
            ("objective.terms.cos={weight: 0, schedule: linear, end: 1, steps: 4}",),
            "objective.terms.cos.weight",
        ),
        ("diito", (), "objective.terms.cos.weight"),
        (
            "diito",
            ("objective.terms.cos.weight=0", "objective.terms.causal_cos.weight=1"),
            "objective.terms.causal_cos.weight",
        ),
        (
            "kd",
            (
                "objective.terms.cos.weight=0",
                "objective.matches=[{teacher: 1, student: 1, loss: hidden_mse}]",
            ),
            "objective.matches[0].loss",
        ),
    ],
)
@pytest.mark.parametrize("student", ["option", "folder"])
def test_models_of_unequal_widths(objective, overrides, key, student, kd, wide, train_fault, compose_config):
    own = "student=bert_small" if student == "option" else f"student.model={wide}"
    width = 256 if student == "option" else 64
    said = train_fault(*kd, f"objective={objective}", own, *overrides)
    assert said.startswith(f"{key}=")
    assert f" {width} " in said
    assert "32" in said
    if key == "objective.terms.cos.weight":
        terms = (f"{key}=0", "objective.terms.cos.schedule=constant", "objective.terms.cos.end=null")
        validate_train(
            compose_config(
                *kd, f"objective={objective}", own, *overrides, *terms, "objective.terms.cos.steps=0"
            )
        )


def test_causal_models_of_unequal_widths(source, gpt2_teacher, train_fault):
    said = train_fault(*source, f"teacher.model={gpt2_teacher}", "student=gpt2_tiny")
    assert said.startswith("objective.terms.cos.weight=1.0")


def test_a_task_student_of_another_width(source, bert_teacher, wide, train_fault, tmp_path):
    (tmp_path / "rows.tsv").write_text("text\tlabel\nthe man\tyes\none other\tno\n")
    rows = [
        "benchmark=text_classification",
        *(f"benchmark.{part}_file={tmp_path}/rows.tsv" for part in ("train", "eval")),
    ]
    own = [*rows, f"teacher.model={bert_teacher}", f"student.model={wide}", "logger=csv"]
    assert "objective.terms.cos.weight=0.25" in train_fault("objective=diito", *own)
    match = "objective.matches=[{teacher: 1, student: 1, loss: cos}]"
    assert "objective.matches[0].loss=cos" in train_fault("objective=task_kd", *own, match)


@pytest.fixture(scope="session")
def wide(tmp_path_factory, bert_tokenizer, make_bert):
    return make_bert(tmp_path_factory.mktemp("wide"), bert_tokenizer, layers=2, hidden_size=64)
