"""Problems of step-by-step distillation, told in one line before torch is imported."""

import pytest

from potstill.errors import ConfigError
from potstill.runs.checks import validate_evaluate, validate_train


@pytest.fixture
def given(arithmetic_files, t5_tokenizer):
    return [
        "objective=step_by_step", "data=rationales", f"data.train_files=[{arithmetic_files}/train.jsonl]",
        "student=t5_tiny", f"data.tokenizer={t5_tokenizer}", "logger=csv",
    ]  # fmt: skip


def problem_of(config, validate=validate_train):
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_right_is_taken(given, compose_config):
    validate_train(compose_config(*given))
    validate_train(compose_config(*given, "objective.mode=standard", "objective.alpha=1", "data.share=0.01"))
    validate_train(compose_config(*given, "objective.mode=label_then_rationale", "data.shuffle_rationales=true"))
    validate_train(compose_config(*given, "student=gpt2_tiny", "data.chat=false"))
    validate_train(compose_config(*given, "student=llama_tiny", "objective.mode=standard"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.alpha=1.5"], "objective.alpha=1.5"),
        (["objective.alpha=-0.1"], "objective.alpha=-0.1"),
        (["objective.soft_weight=2"], "objective.soft_weight=2.0"),
        (["objective.soft_weight=0.5", "objective.temperature=0"], "objective.temperature=0.0"),
        (["objective.soft_weight=0.5", "data.set=svamp"], "labels of svamp are free"),
        (["data=arithmetic", "data.generated.events=0"], "data.generated.events=0"),
        (["objective.mode=both"], "objective.mode=both: one of task_prefix, label_then_rationale, standard"),
        (["data.labels=gold"], "data.labels=gold: one of gt, llm"),
        (["data.share=0"], "data.share=0.0"),
        (["data.max_unparsed=2"], "data.max_unparsed=2.0"),
        (["data.max_target_length=1"], "data.max_target_length=1"),
        (["data.train_files=[/no/such.jsonl]"], "data.train_files: '/no/such.jsonl' does not exist"),
        (["data.train_files=null"], "data.train_files=null: there are no rows; data=svamp data.folder=<folder>"),
        (["data.set=imdb"], "data.set=imdb: one of cqa, svamp, esnli, anli1"),
        (
            ["data.set=asdiv"],
            "data.set=asdiv: one of cqa, svamp, esnli, anli1, or data=arithmetic; it is added to another",
        ),
        (["data=cqa", "data.train_files=null"], "data.folder=null: cqa is read from its files"),
        (["data.folder=/no/such"], "data.folder=/no/such: no such folder"),
        (["data.more_sets=[gsm]", "data.folder=/"], "data.more_sets=['gsm']: 'gsm' is none of cqa"),
        (["data.tokenizer=null"], "data.tokenizer=null: a student from scratch needs a tokenizer"),
        (["student=half", "student.config={}"], "student.model=null: objective=step_by_step trains student.model"),
        (["student=bert_tiny"], "student.config: is an encoder (bert)"),
        (["data.chat=true"], "data.chat=true: an encoder-decoder reads no prompts"),
        (
            ["objective.mode=standard", "data.shuffle_rationales=true"],
            "data.shuffle_rationales=true: with objective.mo",
        ),
        (
            ["objective.mode=label_then_rationale", "data.explain_prefix=' '"],
            "data.explain_prefix=' ': separates label",
        ),
        (["teacher.model=x"], "teacher.model=x: objective=step_by_step learns from what an LLM wrote"),
        (["teacher.tokenizer=own"], "teacher.tokenizer=own: objective=step_by_step learns from what an LLM wrote"),
        (["teacher.models=[x,y]"], "teacher.models=['x', 'y']: objective=step_by_step learns from what an LLM wrote"),
        (["benchmark=sst2"], "benchmark=sst2: objective=step_by_step trains on data=svamp"),
        (["compile=true"], "compile=true: students of objective=step_by_step are not compiled"),
        (["student.dropout=1"], "student.dropout=1.0"),
        (["student.checkpointing=all"], "student.checkpointing=all: one of selective, full"),
        (["student.freeze_positions=true"], "student.freeze_positions"),
        (
            ["objective.mode=standard", "data.output_rationale=true"],
            "data.output_rationale=true: with objective.mode=standard",
        ),
        (
            ["data=svamp", "data.train_files=null", "data.folder=/", "data.restricted_decoding=true"],
            "data.restricted_decoding=true: labels of svamp are free",
        ),
        (["objective.matches=L3"], "objective.matches=L3: no such key of objective=step_by_step"),
        (["objective.interchange.pairing=dataset"], "objective.interchange.pairing=dataset: no such key of objective"),
        (["objective.gradient_shares_every=5"], "objective.gradient_shares_every=5: no such key of objective"),
        (["objective.terms.ce.weight=5"], "objective.terms.ce.weight=5: no such key of objective=step_by_step"),
        (["data.augment.share=0.5"], "data.augment.share=0.5: no such key of data=rationales; data=task has it"),
        (["student.layers=[0,1]"], "student.layers=[0, 1]: objective=step_by_step"),
        (["student.architecture=distilbert"], "student.architecture=distilbert: objective=step_by_step"),
    ],
)
def test_training_problems(given, compose_config, overrides, message):
    with pytest.raises(ConfigError) as error:
        validate_train(compose_config(*given, *overrides))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_needs_outputs_where_they_are_learnt(compose_config, given, tmp_path):
    own = [*given, "data=svamp", "data.train_files=null", f"data.folder={tmp_path}", "data.rationales=null"]
    assert "data.rationales=null: objective.mode=task_prefix" in problem_of(compose_config(*own))
    assert "data.labels=llm" in problem_of(compose_config(*own, "objective.mode=standard", "data.labels=llm"))
    validate_train(compose_config(*own, "objective.mode=standard"))


def test_encoder_students_are_refused(given, compose_config, bert_teacher):
    message = problem_of(compose_config(*given, "student=pretrained", f"student.model={bert_teacher}"))
    assert f"student.model={bert_teacher}: is an encoder (bert); step-by-step distillation needs" in message


def test_rationales_are_not_a_corpus(compose_config, bert_teacher):
    message = problem_of(compose_config("objective=kd", "data=svamp", f"teacher.model={bert_teacher}"))
    assert message.startswith("data=svamp: is read by objective=step_by_step")
    assert "objective=kd reads data=bookcorpus, conversations, docstrings, " in message
    message = problem_of(compose_config(f"model={bert_teacher}", "data=svamp", name="evaluate"), validate_evaluate)
    assert "benchmark=mlm reads data=bookcorpus" in message


def test_other_objectives_say_who_trains_a_t5(compose_config, tmp_path, source):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    message = problem_of(compose_config(*source, "objective=mlm", f"student.model={tmp_path}"))
    assert message.startswith(f"student.model={tmp_path}: ")
    assert "objective=step_by_step" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "is an encoder (bert)"),
        (["data.test_files=null"], "data.test_files=null: there are no rows"),
        (["benchmark.part=eval"], "data.eval_files=null: there are no rows"),
        (["benchmark.part=train"], "benchmark.part=train: one of eval, test, or null"),
        (["data.generation_max_length=0"], "data.generation_max_length=0"),
        (["export=onnx"], "export=onnx: a model that generates text has no exported form"),
        (["export=[onnx,int8]"], "export=['onnx', 'int8']: a model that generates text has no exported form"),
        (["compile=true"], "compile=true: students of objective=step_by_step are not compiled"),
        (["data=arithmetic", "data.test_files=null", "data.restricted_decoding=true"], "labels of arithmetic are free"),
    ],
)
def test_evaluation_problems(compose_config, arithmetic_files, bert_teacher, overrides, message):
    given = ["benchmark=step_by_step", "data=rationales", f"data.test_files=[{arithmetic_files}/test.jsonl]"]
    config = compose_config(*given, f"model={bert_teacher}", *overrides, name="evaluate")
    assert message in problem_of(config, validate_evaluate)


@pytest.mark.parametrize(
    "preset",
    [
        "arithmetic", "standard_finetune", "standard_distill", "step_by_step_svamp", "step_by_step_cqa",
        "step_by_step_esnli", "step_by_step_anli1",
    ],
)  # fmt: skip
def test_published_recipes_are_right(compose_config, tmp_path, preset):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    given = [] if preset == "arithmetic" else [f"student.model={tmp_path}", f"data.folder={tmp_path}"]
    validate_train(compose_config(f"experiment={preset}", *given, "logger=csv"))
