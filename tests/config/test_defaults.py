"""Defaults that depend on the objective, the student and the other bound of a run."""

import pytest
from omegaconf import OmegaConf

from potstill.config import value_of
from potstill.config.defaults import FINE_TUNING, FROM_SCRATCH, settle
from potstill.errors import ConfigError
from potstill.runs.checks import validate_train

MODEL = "student.model=some/model"
BENCHMARK = "benchmark=sst2"
TASKS = "tasks=[{benchmark: sst2, teacher: a}, {benchmark: mrpc, teacher: b}]"


def values(config):
    return {
        key: OmegaConf.select(config, key) if OmegaConf.is_config(config) else value_of(config, key)
        for key in FINE_TUNING
    }


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("objective=finetune", BENCHMARK, MODEL), FINE_TUNING),
        (("objective=finetune", BENCHMARK, "student.layers=[0,1]", "teacher.model=a"), FINE_TUNING),
        (("objective=finetune", BENCHMARK, "student=bert_small"), FROM_SCRATCH),
        (("objective=finetune", BENCHMARK, MODEL, "schedule=cosine"), FINE_TUNING),
        (("objective=task_kd", BENCHMARK, "teacher.model=a"), FINE_TUNING),
        (("objective=task_kd", BENCHMARK, "teacher.model=a", "student=t4_tiny"), FROM_SCRATCH),
        (("objective=task_kd", BENCHMARK, "teacher.model=a", "student=bigru"), FROM_SCRATCH),
        (("objective=task_kd", TASKS), FINE_TUNING),
        (("objective=task_kd", TASKS, "student=bert_tiny"), FROM_SCRATCH),
        (("objective=diito", BENCHMARK, "teacher.model=a"), FINE_TUNING),
        (("objective=diito", "teacher.model=a"), FROM_SCRATCH),
        (("objective=kd", "teacher.model=a"), FROM_SCRATCH),
        (("objective=mlm", MODEL), FROM_SCRATCH),
        (("objective=step_by_step", "data=svamp", MODEL), FROM_SCRATCH),
    ],
)
def test_a_pretrained_student_of_a_task_is_fine_tuned(overrides, expected, compose_config):
    config = compose_config(*overrides, raw=True)
    assert values(config) == expected  # by reference
    assert {key: value for key, value in settle(config).items() if key in expected} == expected
    assert values(config) == expected
    assert settle(config) == {}


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("optimizer.lr", 1e-3), ("optimizer.eps", 1e-6), ("optimizer.betas", [0.8, 0.9]),
        ("schedule.warmup_share", 0.05), ("trainer.gradient_clip_val", None), ("trainer.gradient_clip_val", 5.0),
    ],
)  # fmt: skip
def test_a_given_value_takes_precedence(key, given, compose_config):
    override = f"{key}={'null' if given is None else given}"
    config = compose_config("objective=finetune", BENCHMARK, MODEL, override)
    assert key not in config.defaults
    assert values(config) == {**FINE_TUNING, key: given}


@pytest.mark.parametrize(
    ("overrides", "bounds"),
    [
        ((), (-1, 3)),
        (("trainer.max_steps=-1",), (-1, 3)),
        (("trainer.max_steps=null",), (-1, 3)),
        (("trainer.max_steps=500",), (500, None)),
        (("trainer.max_steps=0",), (0, None)),
        (("trainer.max_epochs=2",), (-1, 2)),
        (("trainer.max_steps=500", "trainer.max_epochs=2"), (500, 2)),
        (("trainer.max_steps=-1", "trainer.max_epochs=null"), (-1, None)),  # rejected: never ends
        (("experiment=diito",), (-1, 3)),
        (("experiment=diito", "trainer.max_steps=7"), (7, 3)),
        (("experiment=quickstart",), (300, None)),
        (("debug=fast",), (3, None)),
    ],
)
def test_the_bound_that_is_given_decides(overrides, bounds, compose_config):
    config = compose_config(*overrides)
    assert (config.trainer.max_steps, config.trainer.max_epochs) == bounds


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        (("benchmark=squad",), None),
        (("benchmark=question_answering",), None),
        (("benchmark=squad", "data.max_length=64"), 64),
        (("benchmark=sst2",), 128),
        (("benchmark=conll2003",), 128),
        (("benchmark=sst2", "data=text_files"), None),
    ],
)
def test_a_benchmark_of_spans_has_a_length_of_its_own(overrides, length, compose_config):
    """`benchmark.max_length`, in training and evaluation; its stride is longer than a row of another task."""
    assert compose_config(*overrides, name="evaluate").data.max_length == length
    config = compose_config("objective=finetune", *overrides)
    assert config.data.max_length == length


def test_a_run_without_bounds_is_rejected(kd, compose_config):
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=-1 with trainer\.max_epochs=null"):
        validate_train(compose_config(*kd, "trainer.max_steps=null", "trainer.max_epochs=null"))


def test_recipes_state_what_they_ran(compose_config):
    """Recipes of task models keep the values that their sources ran."""
    expected = {
        "finetune_sst2": (2e-5, [0.9, 0.999], 1e-6, 0.1, 1.0),
        "textbrewer": (1e-4, [0.9, 0.999], 1e-6, 0.1, 1.0),
        "diito_task": (2e-5, [0.9, 0.999], 1e-6, 0.1, 1.0),
        "arithmetic": (3e-3, [0.9, 0.98], 1e-6, 0.1, 1.0),
        "quickstart": (1.5e-3, [0.9, 0.98], 1e-6, 0.05, 5.0),
        "step_by_step_svamp": (5e-5, [0.9, 0.999], 1e-8, 0.0, 1.0),
    }
    for name, values_ in expected.items():
        assert tuple(values(compose_config(f"experiment={name}")).values()) == values_, name
