"""Every number of the schema has a range and some text has choices; whatever is out of them is named."""

import copy
import functools
import math
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from omegaconf import MISSING, OmegaConf

from potstill.config import OPTIONS, EvaluateConfig, SharedTaskConfig, TrainConfig
from potstill.config.benchmarks import FurtherConfig, LayoutConfig
from potstill.config.data import SourceConfig
from potstill.config.reference import classes
from potstill.config.typed import typed
from potstill.errors import ConfigError
from potstill.runs.checks import validate_evaluate, validate_train
from potstill.runtime.ranges import CHOICES, HELP, KEY, MOST_PROCESSES, PATHS, Range
from potstill.validation.ranges import range_problems, section_of

BEYOND = ("nan", "inf", "-inf", "1e308", "-1e308", "1e300")


def numeric(hint):
    return hint in (int, float) or any(numeric(inner) for inner in get_args(hint))


def numbers(schema, prefix=""):
    """Keys of the schema's numeric fields, their types and ranges."""
    hints = get_type_hints(schema)
    for own in fields(schema):
        hint = hints[own.name]
        if numeric(hint):
            yield f"{prefix}{own.name}", hint, own.metadata.get(KEY)
        elif (section := section_of(hint)) and list not in (hint, getattr(hint, "__origin__", None)):
            yield from numbers(section, f"{prefix}{own.name}.")


SECTIONS = [TrainConfig, EvaluateConfig, *(own for known in OPTIONS.values() for own in known.values())]


@pytest.mark.parametrize("schema", [*SECTIONS, SharedTaskConfig, SourceConfig, FurtherConfig, LayoutConfig])
def test_every_number_has_a_range(schema):
    without = [key for key, _, allowed in numbers(schema) if not isinstance(allowed, Range)]
    assert not without


@pytest.mark.parametrize("schema", SECTIONS)
def test_no_number_is_beyond_its_range(schema):
    for key, hint, allowed in numbers(schema):
        config = schema()
        *sections, name = key.split(".")
        section = functools.reduce(getattr, sections, config)
        kind = float if "float" in str(hint) else int
        listed = "list" in str(hint)
        just = [min(allowed.low - 1e-9, math.nextafter(allowed.low, -math.inf)), allowed.high * (1 + 1e-9)]
        wrong = [*BEYOND, *map(repr, just)] if "float" in str(hint) else ["-2", "10000000000000"]
        if allowed.above:
            wrong.append("0")
        for value in map(kind, wrong):
            setattr(section, name, [value] if listed else value)
            found = range_problems(config)
            assert [error.partition("=")[0] for error in found] == [key], (key, value)


@pytest.mark.parametrize("schema", classes().values())
def test_text_that_is_no_choice_is_out_of_range(schema):
    for own in fields(schema):
        if known := own.metadata.get(CHOICES):
            names = [choice for choice in known if choice != PATHS]
            assert own.default in (*names, None, MISSING)
            assert all(f"`{choice}`" in own.metadata[HELP] for choice in names), own.name
            section = schema()
            right = [*names, None, *(["torch.nn.functional.mse_loss"] if PATHS in known else [])]
            for value, said in (
                *((value, []) for value in right),
                ("other", [f"x.{own.name}=other: one of {known[0]}, "]),
            ):
                setattr(section, own.name, value)
                found = [error for error in range_problems(section, "x.") if own.name in error]
                assert [error[: len(text)] for error, text in zip(found, said, strict=True)] == said


@pytest.fixture
def changed(kd, compose_config):
    """Call `changed({key: value})` for a configuration of `objective=kd` with these values, composed only once."""
    if not _COMPOSED:
        _COMPOSED["kd"] = compose_config(*kd, raw=True)

    def change(values):
        config = copy.deepcopy(_COMPOSED["kd"])
        for key, value in values.items():
            OmegaConf.update(config, key, value, force_add=True)
        return typed(config, TrainConfig)

    return change


_COMPOSED = {}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective.hard_weight", -5), ("objective.hard_weight", NAN), ("objective.temperature", 1e300),
        ("objective.temperature", 1e-300), ("objective.terms.ce.weight", 1e308), ("data.mlm_smoothing", NAN),
        ("data.mlm_replace", [NAN, 0, 1]), ("data.mlm_replace", [-1, 1, 1]), ("optimizer.eps", INF),
        ("optimizer.eps", 0), ("optimizer.lr", True), ("optimizer.lr", "fast"), ("optimizer.lr", NAN),
        ("optimizer.betas", [0.9, NAN]), ("optimizer.betas", [0.9, 1]), ("optimizer.weight_decay", -1),
        ("optimizer.rho", INF), ("optimizer.rho", 10**400), ("student.config.eps", NAN),
        ("trainer.gradient_clip_val", INF), ("trainer.gradient_clip_val", 0), ("seed", -1), ("seed", 2**32),
        ("schedule.warmup_share", NAN), ("generation.temperature", INF), ("mixing.exponent", NAN),
        ("data.num_workers", 100_000), ("data.num_proc", 100_000), ("generation.concurrency", 10**6),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_user_errors(key, value, changed):
    with pytest.raises(ConfigError) as refused:
        validate_train(changed({key: value}))
    assert str(refused.value).startswith(key)


@pytest.mark.parametrize("weight", [NAN, -1, 1e300, [1], True, "heavy"])
def test_a_match_has_a_finite_weight(weight, changed):
    entry = {"teacher": 4, "student": 2, "loss": "hidden_mse", "weight": weight}
    with pytest.raises(ConfigError, match=r"^objective\.matches"):
        validate_train(changed({"objective.matches": [entry]}))


@pytest.mark.parametrize(
    ("schedule", "name", "value"),
    [("ExponentialLR", "gamma", -1), ("ExponentialLR", "gamma", NAN), ("ConstantLR", "factor", INF),
     ("MultiStepLR", "milestones", ["a"]), ("ExponentialLR", "gamma", "fast"), ("ExponentialLR", "gamma", {"a": 1})],
)  # fmt: skip
def test_a_weight_is_moved_by_numbers(schedule, name, value, changed):
    term = "objective.terms.ce"
    with pytest.raises(ConfigError, match=r"^objective\.terms\.ce\.schedule_args"):
        validate_train(changed({f"{term}.schedule": schedule, f"{term}.schedule_args": {name: value}}))


@pytest.mark.parametrize("devices", [-1, [0], "a", 0, 1.0, True, [], [[0]], {"a": 1}, 1000, "0,1", ""])
def test_devices_of_a_cpu(devices, changed):
    with pytest.raises(ConfigError, match=r"^trainer\.devices"):
        validate_train(changed({"trainer.devices": devices}))


def test_devices_of_an_evaluation(compose_config, bert_teacher, eval_file):
    source = ["data=text_files", f"data.eval_files=[{eval_file}]", f"model={bert_teacher}"]
    with pytest.raises(ConfigError, match=r"^trainer\.devices"):
        validate_evaluate(compose_config(*source, "trainer.devices=true", name="evaluate"))


@pytest.mark.parametrize("accelerator", ["abacus", "", "GPU "])
def test_an_unknown_accelerator(accelerator, changed):
    with pytest.raises(ConfigError, match=rf"^trainer\.accelerator={accelerator}: "):
        validate_train(changed({"trainer.accelerator": accelerator}))


@pytest.mark.parametrize("devices", [-1, "auto", 8, "8", [0, 1], "0,1"])
def test_devices_of_gpus(devices, changed):
    validate_train(changed({"trainer.accelerator": "gpu", "trainer.devices": devices}))


@pytest.mark.parametrize("devices", [[0, 0], [-2], 100_000, [0, True], "0,0", "1,", -2])
def test_devices_that_no_machine_has(devices, changed):
    with pytest.raises(ConfigError, match=r"^trainer\.devices"):
        validate_train(changed({"trainer.accelerator": "gpu", "trainer.devices": devices}))


def test_the_cpu_is_found_by_itself_too(tmp_path, changed):
    import torch

    from potstill.training.trainer import build_trainer

    if torch.cuda.is_available():
        pytest.skip("auto is a GPU here")
    for devices in (MOST_PROCESSES + 1, [0], -1):
        trainer = changed({"trainer.accelerator": "auto", "trainer.devices": devices}).trainer
        with pytest.raises(ConfigError, match=r"^trainer\.devices"):
            build_trainer(trainer, tmp_path, callbacks=[], loggers=False)
