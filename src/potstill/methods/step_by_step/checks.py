"""Faults of step-by-step distillation: its objective, its sets, its student, and what students are judged on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from potstill.config.learning import InterchangeConfig, TermConfig
from potstill.data.common.text_files import fault_of
from potstill.data.rationales.parsing import FLAVOURS
from potstill.data.rationales.rows import LABELS
from potstill.data.rationales.sets import EQUATION, GENERATED, SETS
from potstill.data.rationales.splits import MAIN_SETS, MODES, OWN_FILES, STANDARD, problems_of
from potstill.errors import PotstillError
from potstill.models.specs import check_seq2seq, read_settings
from potstill.validation.data import data_faults
from potstill.validation.launch import DEEPSPEED
from potstill.validation.models import CHECKPOINTING, attention_faults

# Keys of other objectives and of students of a teacher's layers, and their values where they are not given.
_FOREIGN: dict[str, Any] = {
    "objective.matches": None, "objective.gradient_shares_every": None, "data.augment.share": 0.0,
    "student.layers": None, "student.architecture": None,
    **{f"objective.interchange.{key}": plain for key, plain in asdict(InterchangeConfig()).items()},
}  # fmt: skip


def rationale_faults(config: DictConfig) -> list[str]:
    """Of a training run with `objective=step_by_step`."""
    objective, data = config.objective, config.data
    faults = []
    if objective.mode not in MODES:
        faults.append(f"objective.mode={objective.mode}: one of {', '.join(MODES)}")
    if objective.soft_weight and data.set in SETS and SETS[data.set].compared == EQUATION:
        faults.append(
            f"objective.soft_weight={objective.soft_weight}: labels of data.set={data.set} are free, and soft labels "
            "are probabilities of choices; objective.soft_weight=0, or a set with choices"
        )
    if config.benchmark is not None:
        faults.append(
            f"benchmark={config.benchmark.get('name') or 'null'}: objective=step_by_step trains on data=svamp, cqa, "
            "esnli, anli1 or rationales; benchmark=null"
        )
    if config.compile:
        faults.append("compile=true: an encoder-decoder is not compiled; compile=false")
    if data.labels not in LABELS:
        faults.append(f"data.labels={data.labels}: one of {', '.join(LABELS)}")
    if data.output_rationale and objective.mode == STANDARD:
        faults.append(
            "data.output_rationale=true: with objective.mode=standard a student learns labels alone and explains "
            "nothing; objective.mode=task_prefix, or data.output_rationale=false"
        )
    needed = objective.mode != STANDARD or data.labels == "llm" or objective.soft_weight > 0
    if needed and data.rationales is None and not data.train_files and data.set != GENERATED:
        faults.append(
            f"data.rationales=null: objective.mode={objective.mode} with data.labels={data.labels} learns from what an "
            f"LLM wrote; {', '.join(FLAVOURS)}, or the path of a file with an output a row"
        )
    faults += [
        f"data.more_sets={list(data.more_sets)}: '{name}' is none of {', '.join(SETS)}"
        for name in data.more_sets
        if name not in SETS
    ]
    if data.more_sets and data.folder is None:
        faults.append(
            f"data.folder=null: data.more_sets={list(data.more_sets)} are read from data.folder=<folder>"
        )
    strategy = config.trainer.strategy
    if DEEPSPEED.get(strategy) == 3:
        faults.append(
            f"trainer.strategy={strategy}: not with objective=step_by_step, in which ranks run different modules; "
            "deepspeed_stage_2, or strategy=fsdp"
        )
    faults += data_faults(data, corpus=False)
    faults += _shared_faults(data)
    faults += _part_faults(data, "data.train_files")
    if not data.train_files and not all(data[key.removeprefix("data.")] for key in OWN_FILES.values()):
        faults += _choice_faults(data)
    faults += _foreign_faults(config)
    return faults + _student_faults(config)


def judged_rationale_faults(config: DictConfig, models: list[str]) -> list[str]:
    """Of an evaluation with `benchmark=step_by_step`."""
    data, benchmark = config.data, config.benchmark
    faults = _shared_faults(data)
    if benchmark.part not in (None, "eval", "test"):
        faults.append(f"benchmark.part={benchmark.part}: eval, test, or null for test")
    own = "data.eval_files" if benchmark.part == "eval" else "data.test_files"
    faults += _part_faults(data, own)
    if not data[own.removeprefix("data.")]:
        faults += _choice_faults(data)
    if config.export is not None:
        shown = config.export if isinstance(config.export, str) else list(config.export)
        faults.append(f"export={shown}: an encoder-decoder has no exported form; export=null")
    if config.compile:
        faults.append("compile=true: an encoder-decoder is not compiled; compile=false")
    for model in models:
        try:
            check_seq2seq(read_settings("model", model), f"model={model}")
        except PotstillError as fault:
            faults.append(str(fault))
    return faults


def _shared_faults(data: DictConfig) -> list[str]:
    faults = []
    if data.set is not None and data.set not in MAIN_SETS:
        more = "; it is added to another by data.more_sets" if data.set in SETS else ""
        faults.append(f"data.set={data.set}: one of {', '.join(MAIN_SETS)}{more}")
    if data.set == GENERATED:
        try:
            problems_of(data)
        except PotstillError as refused:
            faults.append(str(refused))
    for key in ("train_files", "eval_files", "test_files"):
        for file in data[key] or []:
            if fault := fault_of(Path(file).expanduser()):
                faults.append(f"data.{key}: '{file}' {fault}; give JSON lines, JSON or CSV, plain or gzip")
    if data.folder is not None and not Path(data.folder).expanduser().is_dir():
        faults.append(f"data.folder={data.folder}: no such folder; give the one that holds the sets' folders")
    return faults


def _choice_faults(data: DictConfig) -> list[str]:
    """Of a published or generated part."""
    if data.restricted_decoding and data.set in SETS and SETS[data.set].compared == EQUATION:
        return [
            f"data.restricted_decoding=true: labels of data.set={data.set} are free, so there are no choices; "
            "data.restricted_decoding=false, or a set with choices"
        ]
    return []


def _foreign_faults(config: DictConfig) -> list[str]:
    """Of keys that step-by-step distillation does not read."""
    plain = _FOREIGN | {
        f"objective.terms.{name}.{key}": value
        for name in config.objective.terms
        for key, value in asdict(TermConfig()).items()
    }
    given = {key: OmegaConf.select(config, key) for key in plain}
    return [
        f"{key}={value}: objective=step_by_step does not read it; leave it out"
        for key, value in given.items()
        if value != plain[key]
    ]


def _part_faults(data: DictConfig, own: str) -> list[str]:
    """Of rows that come from nowhere."""
    if data[own.removeprefix("data.")]:
        return []
    if data.set is None:
        return [
            f"{own}=null: there are no rows; data=svamp data.folder=<folder>, or your own by data=rationales "
            f"{own}=[a.jsonl]"
        ]
    if data.set == GENERATED:
        return []
    if data.folder is None:
        return [f"data.folder=null: {data.set} is read from its files; data.folder=<folder of all sets>"]
    return []


def _student_faults(config: DictConfig) -> list[str]:
    student = config.student
    faults = [
        f"teacher.{name}={config.teacher[name]}: objective=step_by_step learns from what an LLM wrote, "
        f"data.rationales; teacher.{name}=null"
        for name in ("model", "models", "tokenizer")
        if config.teacher[name] is not None
    ]
    if not student.model and not student.config:
        faults.append(
            "student.model=null: objective=step_by_step trains student.model=<T5 folder or hub id>, or a T5 from "
            "scratch (student=t5_tiny data.tokenizer=<folder or hub id>)"
        )
    if student.model and student.config:
        faults.append(f"student.model={student.model} with student.config: give one of them")
    makes_tokenizer = config.data.set == GENERATED
    if student.config and not student.model and not config.data.tokenizer and not makes_tokenizer:
        faults.append(
            "data.tokenizer=null: a student from scratch needs a tokenizer; data.tokenizer=<folder or hub id>"
        )
    if student.freeze_positions or student.freeze_token_types:
        faults.append(
            "student.freeze_positions, student.freeze_token_types: a T5 has no such embeddings; false"
        )
    if student.checkpointing not in (None, *CHECKPOINTING):
        faults.append(
            f"student.checkpointing={student.checkpointing}: one of {', '.join(CHECKPOINTING)}, or null"
        )
    faults += attention_faults(config)
    try:
        if student.model:
            check_seq2seq(read_settings("student.model", student.model), f"student.model={student.model}")
        elif student.config:
            settings = OmegaConf.to_container(student.config, resolve=True)
            check_seq2seq(settings, "student.config")  # type: ignore[arg-type]
    except PotstillError as fault:
        faults.append(str(fault))
    return faults
