"""Planning a pipeline: the configuration of each stage, and pipelines that are rejected."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from potstill.config import StageConfig, TrainConfig, config_folder
from potstill.config.overrides import quoted
from potstill.config.typed import typed
from potstill.errors import ConfigError
from potstill.runs.pipeline_stages import RECORD, check, plan, settings_of, write_record

pytestmark = pytest.mark.slow

FOLDER = Path("/runs/it's a=1, (b)")


@pytest.fixture
def planned(compose_config):
    """Plan a recipe as the command line would; `stages` takes the place of its own."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):

        def of(*words, stages=None, folder=FOLDER):
            config = compose("train", list(words), return_hydra_config=True)
            choices = config.hydra.runtime.choices
            with open_dict(config):
                del config["hydra"]
            if stages is not None:
                config.stages = [StageConfig(**entry) for entry in stages]
            found = plan(typed(config, TrainConfig), folder, words, choices)
            return {stage.name: stage for stage in found}

        yield of


def test_stages_have_the_settings_of_the_recipe(planned):
    stages = planned("experiment=textbrewer", "teacher.model=encoder")
    assert list(stages) == ["teacher", "student", "alone", "kd", "table"]
    teacher, student, alone, kd = (stages[name].config for name in list(stages)[:4])
    assert (teacher.objective.name, teacher.student.model) == ("finetune", "encoder")
    assert (teacher.trainer.max_epochs, teacher.optimizer["lr"]) == (3, 2e-5)
    assert (student.trainer.max_steps, student.student.layers) == (0, [0, 1, 2])
    assert student.teacher.model == "encoder"
    assert (kd.objective.name, kd.objective.temperature, kd.objective.matches) == ("task_kd", 8.0, "textbrewer")
    assert kd.teacher.model == f"{FOLDER}/teacher/student"
    assert kd.student.model == alone.student.model == f"{FOLDER}/student/student"
    for config in (alone, kd):  # the baseline has the same steps and rate
        assert (config.optimizer["lr"], config.trainer.max_epochs, config.student.layers) == (1e-4, 40, None)
    assert all(config.resume == "auto" and not config.stages for config in (teacher, student, alone, kd))
    assert stages["kd"].needs == ("teacher", "student")
    table = stages["table"]
    assert list(table.config.model) == [f"{FOLDER}/{name}/student" for name in ("teacher", "alone", "kd")]
    assert (table.config.benchmark.name, table.config.data.max_length) == ("mnli", 128)


def test_the_students_of_the_quickstart_differ_in_the_teacher_alone(planned):
    stages = planned("experiment=quickstart", "seed=3")
    check(list(stages.values()), FOLDER)
    teacher, start, alone, distilled, layers = (stage.config for stage in list(stages.values())[:5])
    teacher_model = f"{FOLDER}/teacher/student"
    assert (teacher.student.config["num_hidden_layers"], alone.student.config["num_hidden_layers"]) == (4, 2)
    assert start.student == alone.student == distilled.student
    assert (layers.student.layers, layers.student.config) == (None, {})
    assert start.data.tokenizer == alone.data.tokenizer == distilled.teacher.model == teacher_model
    for config in (alone, distilled, layers):
        assert (config.seed, config.optimizer["lr"], config.trainer.max_steps) == (3, 1.5e-3, 300)
        assert (config.data.max_tokens, config.schedule) == (alone.data.max_tokens, alone.schedule)
    assert distilled.objective == layers.objective
    assert (alone.objective.name, distilled.objective.name) == ("clm", "kd")
    names = ["alone", "start", "distilled", "layers", "teacher"]  # all are compared with the first
    assert list(stages["table"].config.names) == names
    assert list(stages["table"].config.model) == [f"{FOLDER}/{name}/student" for name in names]
    assert stages["table"].config.benchmark.name == "clm"


def test_overrides_reach_every_stage_that_has_their_keys(planned):
    typed = [
        "experiment=textbrewer", "benchmark=sst2", "optimizer.lr=5e-5",
        "trainer.max_epochs=2", "seed=7", "data.max_examples=64",
        "benchmark.folder=rows", "objective.temperature=4", "student.layers=[0,5,11]", "sweep=seeds",
        "student.dropout=0.3",
        "trainer.precision=bf16-mixed", r"data.skip='a\'b, [c'",
    ]  # fmt: skip
    stages = planned(*typed)
    for stage in stages.values():
        config = stage.config
        assert (config.seed, config.data.max_examples, config.benchmark.folder) == (7, 64, "rows")
        assert (config.data.skip, config.trainer.precision) == ("a'b, [c", "bf16-mixed")
        if stage.command == "train":
            assert (config.optimizer["lr"], config.trainer.max_epochs) == (5e-5, 2)
    assert stages["kd"].config.objective.temperature == 4
    assert "temperature" not in vars(stages["alone"].config.objective)  # which is that of kd
    dropouts = {name: stage.config.student.dropout for name, stage in stages.items() if name != "table"}
    assert dropouts == {"teacher": None, "student": 0.3, "alone": 0.3, "kd": 0.3}
    assert stages["student"].config.student.layers == [0, 5, 11]
    assert stages["kd"].config.student.layers is None
    assert not any("sweep" in override for stage in stages.values() for override in stage.overrides)


@pytest.mark.parametrize(
    ("benchmark", "student", "kind"),
    [("mnli", "t4_tiny", "bert"), ("sst2", "bigru", "bigru"), ("conll2003", "t6", None), ("msra_ner", "t3", None)],
)
def test_a_recipe_is_for_every_task_and_student(benchmark, student, kind, planned):
    width = ["student.config.hidden_size=48"] if kind else []
    stages = planned("experiment=textbrewer", f"benchmark={benchmark}", f"student={student}", *width)
    assert stages["student"].config.student.config.get("model_type") == kind
    assert (stages["student"].config.student.layers is None) == (kind is not None)
    assert stages["student"].config.student.config.get("hidden_size") == (48 if kind else None)
    assert stages["kd"].config.objective.matches == "textbrewer"
    assert stages["teacher"].config.trainer.max_epochs == 3
    assert not stages["kd"].config.student.config
    assert {stage.config.benchmark.name for stage in stages.values()} == {benchmark}


def test_the_output_folder_is_the_recipes_name(planned):
    config = compose("train", ["experiment=textbrewer", "benchmark=mrpc"], return_hydra_config=True)
    assert config.hydra.run.dir == "runs/textbrewer/mrpc_t3"


@pytest.mark.parametrize(
    "value",
    [
        "a b", "it's", 'a"b', "a\\", "a\\'b", "[x,{y: 1}]", "é#&", "", "null", "1", 3, [1, "a,b", None],
        {"k": [True, 1e-5]},
    ],
)  # fmt: skip
def test_a_quoted_value_is_read_as_itself(value, planned):
    config = typed(compose("train", [f"++optimizer.own={quoted(value)}"]), TrainConfig)
    assert config.optimizer["own"] == value
    assert type(config.optimizer["own"]) is type(value) or isinstance(value, list | dict)


def stage(name, *overrides, **more):
    return {"name": name, "overrides": list(overrides), **more}


@pytest.mark.parametrize(
    ("stages", "parts"),
    [
        (
            [stage("a"), stage("b", "student.model=${stage:c}/student")],
            ["stage b: ${stage:c}: ", "one of a"],
        ),
        ([stage("a", "student.model=${stage:a}/student")], ["stage a: ${stage:a}: "]),
        ([stage("a", "student.model=${stage:b}"), stage("b")], ["stage a: ${stage:b}: "]),
        ([stage("a"), stage("b"), stage("a")], ["stages.name=a: "]),
        ([stage("a/b")], ["stages.name=a/b: "]),
        ([stage("a", command="evaluator")], ["stages.command=evaluator of a: ", "train, evaluate"]),
        ([stage("a", "studnet.model=b")], ["stage a: studnet.model=b: ", "`student.model`"]),
        ([stage("a", "objective=kdd")], ["stage a: objective=kdd: ", "custom", "clm"]),
        ([stage("a", "model=b", command="evaluate", defaults=["seed=x"])], ["stage a: seed=x: ", "integer"]),
    ],
)  # fmt: skip
def test_an_invalid_pipeline_is_rejected_in_one_line(stages, parts, planned):
    with pytest.raises(ConfigError) as error:
        planned("objective=mlm", stages=stages)
    assert str(error.value).startswith(parts[0])
    assert all(part in str(error.value) for part in parts)
    assert "\n" not in str(error.value)


@pytest.fixture
def begun(planned, text_file, tmp_path):
    """Plan a recipe of two stages in a folder."""

    def of(*typed):
        stages = [
            stage("first", "student=bert_tiny"),
            stage("second", "student=pretrained", "student.model=${stage:first}/student", without=["student.config"]),
        ]
        text = ["objective=mlm", "data=text_files", f"data.train_files=[{text_file}]", "logger=csv"]
        found = planned(*text, *typed, stages=stages, folder=tmp_path)
        check(list(found.values()), tmp_path)
        return found

    return of


def test_the_settings_of_a_stage_are_fixed_once_it_has_written_something(begun, tmp_path):
    first = begun()["first"]
    write_record(tmp_path, first)
    assert begun("optimizer.lr=1")["first"].is_begun is False
    (tmp_path / "first" / "checkpoints").mkdir(parents=True)
    (tmp_path / "first" / "checkpoints" / "last.ckpt").touch()
    assert begun("logger.run=other", "data.num_workers=2", "checkpoint.every_n_steps=7")["first"].is_begun
    with pytest.raises(ConfigError, match=r"stage first: optimizer.lr=1.* 0.0005"):
        begun("optimizer.lr=1.0")
    (tmp_path / "first" / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"stage first: seed=1.* 42"):
        begun("seed=1")
    assert yaml.safe_load((tmp_path / RECORD).read_text()) == {"first": settings_of(first)}
    (tmp_path / RECORD).write_text("[")
    with pytest.raises(ConfigError, match=r"hydra.run.dir=.*stages.yaml"):
        begun()
    (tmp_path / RECORD).unlink()
    with pytest.raises(ConfigError, match=r"stage first: .*stages.yaml"):
        begun()


def test_later_stages_are_checked_as_far_as_they_need_no_model(begun):
    with pytest.raises(ConfigError, match=r"stage first: data.mlm_share=0"):
        begun("data.mlm_share=0")
    # The student of `second` is not there yet; that of `first` is checked.
    with pytest.raises(ConfigError, match=r"stage first: student.dropout=3.0"):
        begun("student.dropout=3", "student=bert_tiny", "student.config.hidden_size=64")


def test_a_later_stage_is_checked_without_its_models(planned, text_file, tmp_path):
    late = stage("b", "student=pretrained", "student.model=${stage:a}/student", "schedule.name=steep")
    text = ["objective=mlm", "data=text_files", f"data.train_files=[{text_file}]", "logger=csv"]
    found = planned(*text, stages=[stage("a", "student=bert_tiny"), late], folder=tmp_path)
    with pytest.raises(ConfigError, match=r"stage b: schedule.name=steep"):
        check(list(found.values()), tmp_path)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("objective.terms.cos.weight=1", r"objective\.terms\.cos\.weight=1"),
        ("objective.matches=[{teacher: 1, student: 1, loss: hidden_mse}]", r"objective\.matches\[0\]\.loss"),
        ("objective.matches=[{teacher: 99, student: 1, loss: nst}]", r"objective\.matches\[0\]\.teacher"),
    ],
)
def test_the_models_of_a_later_stage_are_compared_by_their_sizes(
    override, key, planned, bert_teacher, bert_tokenizer, tmp_path
):
    """Before the teacher is trained: its student is wider."""
    (tmp_path / "rows.tsv").write_text("text\tlabel\nthe man\tyes\none other\tno\n")
    files = [f"benchmark.{part}_file={tmp_path}/rows.tsv" for part in ("train", "eval")]
    recipe = [
        "experiment=textbrewer", "student=t4_tiny", "benchmark=text_classification", *files,
        f"teacher.model={bert_teacher}",
        "data.max_length=32", "logger=csv", "trainer.precision=32-true",
    ]  # fmt: skip
    wide = "student.config.hidden_size=64"
    found = planned(*recipe, "objective.matches=L4_tiny", wide, "student.config.num_attention_heads=4", folder=tmp_path)
    check(list(found.values()), tmp_path)
    found = planned(
        *recipe,
        *([] if "matches" in override else ["objective.matches=null"]),
        override,
        wide,
        "student.config.num_attention_heads=4",
        folder=tmp_path,
    )
    with pytest.raises(ConfigError, match=rf"stage kd: {key}"):
        check(list(found.values()), tmp_path)
