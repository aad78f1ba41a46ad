"""Problems of step-by-step distillation: its objective, its sets, its student, and what students are evaluated on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.config import EvaluateConfig, TrainConfig, value_of
from potstill.config.benchmarks import rationale_part
from potstill.config.data import ArithmeticDataConfig, RationaleDataConfig, SetDataConfig, data_of
from potstill.config.objectives.step_by_step import step_by_step_of
from potstill.data.common.text_files import file_problem
from potstill.data.rationales.parsing import FLAVOURS
from potstill.data.rationales.rows import LABELS
from potstill.data.rationales.sets import SETS, by_value, set_of
from potstill.data.rationales.splits import MAIN_SETS, ONE_TARGET, OWN_FILES, STANDARD, splits_training_rows
from potstill.errors import PotstillError
from potstill.models.specs import check_writer, read_settings
from potstill.validation.data import cache_folder_problems
from potstill.validation.launch import DEEPSPEED
from potstill.validation.models import attention_problems

# Keys of students of a teacher's layers, and their values where they are not given.
_FOREIGN: dict[str, Any] = {"student.layers": None, "student.architecture": None}


def rationale_problems(config: TrainConfig) -> list[str]:
    """Problems of a training run with `objective=step_by_step`."""
    objective, data = step_by_step_of(config), data_of(config, RationaleDataConfig)
    problems = []
    if objective.soft_weight and by_value(name := set_of(data)):
        problems.append(
            f"objective.soft_weight={objective.soft_weight}: labels of {name} are free, and soft labels "
            "are probabilities of choices; objective.soft_weight=0, or a set with choices"
        )
    if config.benchmark is not None:
        problems.append(
            f"benchmark={config.benchmark.name}: objective=step_by_step trains on data=svamp, cqa, "
            "esnli, anli1 or rationales; benchmark=null"
        )
    if config.compile:
        problems.append("compile=true: students of objective=step_by_step are not compiled; compile=false")
    if data.labels not in LABELS:
        problems.append(f"data.labels={data.labels}: one of {', '.join(LABELS)}")
    if data.output_rationale and objective.mode == STANDARD:
        problems.append(
            "data.output_rationale=true: with objective.mode=standard a student learns labels alone and explains "
            "nothing; objective.mode=task_prefix, or data.output_rationale=false"
        )
    if data.shuffle_rationales and objective.mode == STANDARD:
        problems.append(
            "data.shuffle_rationales=true: with objective.mode=standard no rationales are learned; "
            "objective.mode=label_then_rationale or task_prefix, or data.shuffle_rationales=false"
        )
    if objective.mode == ONE_TARGET and data.explain_prefix is not None and not data.explain_prefix.strip():
        problems.append(
            f"data.explain_prefix={data.explain_prefix!r}: separates label and rationale with "
            "objective.mode=label_then_rationale; null, or a text that is not blank"
        )
    needed = objective.mode != STANDARD or data.labels == "llm" or objective.soft_weight > 0
    if needed and isinstance(data, SetDataConfig) and data.rationales is None and not data.train_files:
        problems.append(
            f"data.rationales=null: objective.mode={objective.mode} with data.labels={data.labels} learns from what an "
            f"LLM wrote; {', '.join(FLAVOURS)}, or the path of a file with an output a row"
        )
    strategy = config.trainer.strategy
    if DEEPSPEED.get(strategy) == 3:
        problems.append(
            f"trainer.strategy={strategy}: not with objective=step_by_step, in which ranks run different modules; "
            "deepspeed_stage_2, or strategy=fsdp"
        )
    problems += _shared_problems(data)
    problems += _test_problems(config, data)
    problems += _part_problems(data, "data.train_files")
    if not data.train_files and not all(data[key.removeprefix("data.")] for key in OWN_FILES.values()):
        problems += _choice_problems(data)
    problems += _foreign_problems(config)
    return problems + _student_problems(config)


def _test_problems(config: TrainConfig, data: RationaleDataConfig) -> list[str]:
    """Problems of rows that are held out of the training rows, and of test rows that are watched."""
    problems = []
    if data.share_before_split and not splits_training_rows(data):
        problems.append("data.share_before_split=true: these data have validation rows of their own; use false")
    for name, callback in config.callbacks.items():
        monitor = callback.get("monitor") if isinstance(callback, dict) else None
        if isinstance(monitor, str) and monitor.startswith("watched/"):
            problems.append(f"callbacks.{name}.monitor={monitor}: nothing is selected by test rows; val/accuracy")
    return problems


def evaluated_rationale_problems(config: EvaluateConfig, models: list[str]) -> list[str]:
    """Problems of an evaluation with `benchmark=step_by_step`."""
    data = data_of(config, RationaleDataConfig)
    problems = _shared_problems(data)
    own = "data.eval_files" if rationale_part(config.benchmark) == "eval" else "data.test_files"
    problems += _part_problems(data, own)
    if not data[own.removeprefix("data.")]:
        problems += _choice_problems(data)
    if config.export is not None:
        shown = config.export if isinstance(config.export, str) else list(config.export)
        problems.append(f"export={shown}: a model that generates text has no exported form; export=null")
    if config.compile:
        problems.append("compile=true: students of objective=step_by_step are not compiled; compile=false")
    for model in models:
        try:
            problems += _chat_problems(data, check_writer(read_settings("model", model), f"model={model}"))
        except PotstillError as error:
            problems.append(str(error))
    return problems


def _shared_problems(data: RationaleDataConfig) -> list[str]:
    problems = cache_folder_problems(data)
    for key in ("train_files", "eval_files", "test_files"):
        for file in data[key] or []:
            if error := file_problem(Path(file).expanduser()):
                problems.append(f"data.{key}: '{file}' {error}; give JSON lines, JSON or CSV, plain or gzip")
    return problems + (_set_problems(data) if isinstance(data, SetDataConfig) else [])


def _set_problems(data: SetDataConfig) -> list[str]:
    """Problems of the sets that are named, and of their folder."""
    problems = []
    if data.set is not None and data.set not in MAIN_SETS:
        more = "; it is added to another by data.more_sets" if data.set in SETS else ""
        problems.append(f"data.set={data.set}: one of {', '.join(MAIN_SETS)}, or data=arithmetic{more}")
    given = f"data.more_sets={list(data.more_sets)}"
    problems += [f"{given}: '{name}' is none of {', '.join(SETS)}" for name in data.more_sets if name not in SETS]
    if data.folder is None:
        return problems + ([f"data.folder=null: {given} are read from data.folder=<folder>"] if data.more_sets else [])
    if not Path(data.folder).expanduser().is_dir():
        problems.append(f"data.folder={data.folder}: no such folder; give the one that holds the sets' folders")
    return problems


def _choice_problems(data: RationaleDataConfig) -> list[str]:
    """Problems of a published or generated part."""
    if data.restricted_decoding and by_value(name := set_of(data)):
        return [
            f"data.restricted_decoding=true: labels of {name} are free, so there are no choices; "
            "data.restricted_decoding=false, or a set with choices"
        ]
    return []


def _foreign_problems(config: TrainConfig) -> list[str]:
    """Keys that step-by-step distillation does not read."""
    return [
        f"{key}={value_of(config, key)}: objective=step_by_step does not read it; leave it out"
        for key, plain in _FOREIGN.items()
        if value_of(config, key) != plain
    ]


def _part_problems(data: RationaleDataConfig, own: str) -> list[str]:
    """Problems of a part without a source of rows."""
    if data[own.removeprefix("data.")] or not isinstance(data, SetDataConfig):
        return []
    if data.set is None:
        return [
            f"{own}=null: there are no rows; data=svamp data.folder=<folder>, or your own by data=rationales "
            f"{own}=[a.jsonl]"
        ]
    if data.folder is None:
        return [f"data.folder=null: {data.set} is read from its files; data.folder=<folder of all sets>"]
    return []


def _student_problems(config: TrainConfig) -> list[str]:
    student = config.student
    problems = [
        f"teacher.{name}={getattr(config.teacher, name)}: objective=step_by_step learns from what an LLM wrote, "
        f"data.rationales; teacher.{name}=null"
        for name in ("model", "models", "tokenizer")
        if getattr(config.teacher, name) is not None
    ]
    if not student.model and not student.config:
        problems.append(
            "student.model=null: objective=step_by_step trains student.model=<folder or hub id of a T5 or a "
            "decoder-only model>, or one from scratch (student=t5_tiny data.tokenizer=<folder or hub id>)"
        )
    if student.model and student.config:
        problems.append(f"student.model={student.model} with student.config: give one of them")
    makes_tokenizer = isinstance(config.data, ArithmeticDataConfig)
    if student.config and not student.model and not config.data.tokenizer and not makes_tokenizer:
        problems.append(
            "data.tokenizer=null: a student from scratch needs a tokenizer; data.tokenizer=<folder or hub id>"
        )
    problems += attention_problems(config)
    try:
        if student.model:
            seq2seq = check_writer(read_settings("student.model", student.model), f"student.model={student.model}")
        elif student.config:
            seq2seq = check_writer(student.config, "student.config")
        else:
            return problems
    except PotstillError as error:
        return [*problems, str(error)]
    if seq2seq and (student.freeze_positions or student.freeze_token_types):
        problems.append("student.freeze_positions, student.freeze_token_types: a T5 has no such embeddings; false")
    return problems + _chat_problems(config.data, seq2seq)


def _chat_problems(data: Any, seq2seq: bool) -> list[str]:
    if not (seq2seq and data.chat):
        return []
    return ["data.chat=true: an encoder-decoder reads no prompts; null or false"]
