import pytest

from potstill.errors import ConfigError, KeyNameError
from potstill.methods.multitask.tasks import monitored, task_configs

TWO = "tasks=[{benchmark: sst2, teacher: a}, {benchmark: stsb, teacher: b, name: alike, %s}]"


def test_each_task_is_the_configuration_of_a_run_on_it_alone(compose_config):
    own = "options: {folder: glue, max_length: 64}, matches: [{teacher: 1, student: 1, loss: cos}]"
    config = compose_config("objective=task_kd", TWO % own, "objective.matches=L3", "seed=7")
    made = task_configs(config)
    assert list(made) == ["sst2", "alike"]
    assert made["sst2"].benchmark == compose_config("benchmark=sst2").benchmark
    expected = compose_config("benchmark=stsb", "benchmark.folder=glue", "benchmark.max_length=64").benchmark
    assert made["alike"].benchmark == expected
    assert [one.teacher.model for one in made.values()] == ["a", "b"]
    assert made["sst2"].objective.matches == "L3"
    assert made["alike"].objective.matches == [{"teacher": 1, "student": 1, "loss": "cos"}]
    assert all(one.seed == 7 and not one.tasks for one in made.values())
    assert len(config.tasks) == 2  # as it was
    assert config.benchmark is None


def test_what_says_which_student_is_best(compose_config):
    common = ["objective=task_kd", TWO % "options: {}"]
    assert monitored(compose_config(*common)) == ("val/mean", "max")
    assert monitored(compose_config(*common, "mixing.monitor=sst2")) == ("val/accuracy_sst2", "max")
    lower = TWO % "options: {metrics: [mse], monitor: mse, mode: min}"
    assert monitored(compose_config("objective=task_kd", lower, "mixing.monitor=alike")) == ("val/mse_alike", "min")
    with pytest.raises(ConfigError, match="accuracy of sst2, mse of alike some are best high and some low"):
        monitored(compose_config("objective=task_kd", lower))


@pytest.mark.parametrize(
    ("options", "said", "kind"),
    [
        ("options: {folders: glue}", "tasks[1].options.folders='glue': ", KeyNameError),
        ("options: {multi_label: true}", "tasks[1].options.multi_label=true: ", KeyNameError),
        ("options: {max_length: long}", "tasks[1].options.max_length='long': ", ConfigError),
    ],
)
def test_an_option_that_a_benchmark_has_not(options, said, kind, compose_config):
    with pytest.raises(ConfigError) as found:
        task_configs(compose_config("objective=task_kd", TWO % options))
    assert type(found.value) is kind
    assert str(found.value).startswith(said)


def test_a_benchmark_of_no_task(compose_config):
    with pytest.raises(ConfigError, match=r"^tasks\[0\]\.benchmark=mlm: is of no task"):
        task_configs(compose_config("objective=task_kd", "tasks=[{benchmark: mlm, teacher: a}]"))
