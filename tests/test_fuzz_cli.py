"""Random command lines: each is valid, or one line on stderr and exit code 2; none is an internal error.

Overrides are drawn from the schema's own keys and the groups of conf/, with values of wrong types, out of range and
in combinations that nobody wrote down. All of them go through Hydra, the checks before torch and those that a run
begins with; a few that are valid are run to their end.
"""

import io
import json
import os
import random
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hydra.core.hydra_config import HydraConfig

from potstill.cli import commands
from potstill.config import EvaluateConfig, TrainConfig, config_folder
from potstill.runs.checks import validate_evaluate, validate_train
from potstill.runs.pipeline_stages import plan
from potstill.runtime.ranges import KEY
from potstill.validation.ranges import section_of

pytestmark = pytest.mark.slow

SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig}
SEED = 16
COUNT = int(os.environ.get("POTSTILL_FUZZ", "108"))  # more of them, or another seed, find more
RUNS = COUNT // 36

ODD = [
    "null", "", "''", "???", "true", "0", "1", "-1", "2", "0.5", "-0.0", "1e-300", "1e300", "nan", "inf", "-inf",
    "99999999999999999999", "9" * 5000, "a", "a b", "a=b", "a,b", "[", "]", "[]", "[a]", "[1,2]", "[[1]]", "[null]",
    "[nan]", "{}", "{a: 1}", "{a: {b: c}}", "{1: 2}",
    "[{a: 1}]", "'a", '"', "\\", "${", "${a}", "${seed}", "${nope:1}",
    "${oc.env:HOME}", "$", "é", "\udcff", "日本",
    "x" * 300, "/", "..", "/nowhere/file", "a\nb", "\t", "!", "#", "%s", "*",
    "range(3)", "choice(1,2)", "glob(*)", "interval(0,1)",
    "1_000", "0x10", "1.0.0", "None", "~", "@", ":", "auto", "all",
]  # fmt: skip


def keys_of(schema, prefix=""):
    """Every key of a schema with its field; sections too."""
    hints = get_type_hints(schema)
    for own in fields(schema):
        yield f"{prefix}{own.name}", own, hints[own.name]
        section = section_of(hints[own.name])
        if section and "list" not in str(hints[own.name]):
            yield from keys_of(section, f"{prefix}{own.name}.")


def options():
    """The options of each group of conf/."""
    found = {}
    for path in sorted(config_folder().rglob("*.yaml")):
        group = path.parent.relative_to(config_folder()).as_posix()
        if group != "." and not group.startswith("hydra") and group != "local":
            found.setdefault(group, []).append(path.stem)
    return found


class Draw:
    """Draws command lines; the same ones for a seed."""

    def __init__(self, seed, bases):
        self.random = random.Random(seed)
        self.bases = bases
        self.keys = {name: list(keys_of(schema)) for name, schema in SCHEMAS.items()}
        self.groups = options()

    def command(self):
        """The command, its overrides that would do, and those that are added."""
        name = self.random.choice(sorted(self.bases))
        script = "evaluate" if name.startswith("evaluate") else "train"
        return script, [*self.bases[name], *(self.override(script) for _ in range(self.random.choice((1, 1, 2, 3))))]

    def override(self, script):
        kind = self.random.random()
        if kind < 0.08:
            group = self.random.choice(sorted(self.groups))
            return f"{group}={self.random.choice([*self.groups[group], *ODD])}"
        if kind < 0.12:
            return self.random.choice(["", "~", "+", "++"]) + self.random.choice(ODD)
        key, own, hint = self.random.choice(self.keys[script])
        if hint in (dict[str, object],) or "dict" in str(hint) or self.random.random() < 0.05:
            key = f"{key}.{self.random.choice(['lr', '_target_', 'a', '0', 'model_type', 'x y', ''])}"
        sign = self.random.choices(["", "+", "++", "~"], [85, 5, 8, 2])[0]
        return f"{sign}{key}" if sign == "~" else f"{sign}{key}={self.value(own, hint)}"

    def value(self, own, hint):
        if self.random.random() < 0.6:
            return self.random.choice(ODD)
        if allowed := own.metadata.get(KEY):
            value = self.random.choice([allowed.low, allowed.high, (allowed.low + min(allowed.high, 3)) / 2])
            value = value if "float" in str(hint) else int(value)
            return f"[{value}]" if "list" in str(hint) else value
        if hint is bool or bool in get_args(hint):
            return self.random.choice(["true", "false"])
        return self.random.choice(["name", "[name]", "{name: 1}"])


def end_of(script, overrides, folder, task):
    """Run a command line in this process: its exit code and what it wrote to stderr."""
    stderr, argv = io.StringIO(), sys.argv
    sys.argv = [f"{script}.py", f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", *overrides]
    try:
        with redirect_stderr(stderr), redirect_stdout(io.StringIO()):
            commands._run(script, task)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    return code, stderr.getvalue()


def problem_of(script, overrides, folder, task):
    """What a command line did wrong; None where it was right."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        code, stderr = end_of(script, overrides, folder, task)
    except Exception as bug:
        return f"{type(bug).__name__}: {bug}"
    if code == 0:
        return None
    if code != 2:
        return f"exit code {code}: {stderr}"
    line = stderr.removesuffix("\n")
    if not line.startswith("error: ") or not line.isprintable():
        return f"not one line: {stderr!r}"
    left = [path for path in Path(folder).rglob("*") if path.is_file()] if Path(folder).exists() else []
    return f"left behind: {left}" if left else None


@pytest.fixture(scope="module")
def bases(tmp_path_factory, text_file, eval_file, bert_teacher, gpt2_teacher, bert_tokenizer, arithmetic_files):
    """Valid command lines by name."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "rows.tsv").write_text("text\tlabel\n" + "the man\tyes\none other\tno\n" * 8)
    (folder / "words.txt").write_text("the O\nman B-PER\n\nother B-LOC\n\n" * 8)
    settings = json.loads((bert_teacher / "config.json").read_text())
    shutil.copytree(bert_teacher, folder / "head")
    head = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    (folder / "head" / "config.json").write_text(json.dumps(settings | head))
    (folder / "t5").mkdir()
    (folder / "t5" / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 64}))
    rest, quiet = [f"data.cache={folder}/cache", "data.num_proc=1"], ["trainer.enable_progress_bar=false"]
    same = [*rest, *quiet, "data.max_length=32"]
    once = ["logger=csv", "trainer.max_steps=1"]
    train = [*same, *once]
    text = ["data=text_files", f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]"]
    rows = [
        "benchmark=text_classification", *(f"benchmark.{part}_file={folder}/rows.tsv" for part in ("train", "eval")),
    ]  # fmt: skip
    words = [
        "benchmark=token_classification", *(f"benchmark.{part}_file={folder}/words.txt" for part in ("train", "eval")),
    ]  # fmt: skip
    return {
        "kd": [*train, *text, f"teacher.model={bert_teacher}"],
        "cached": [
            *train, *text, f"teacher.model={bert_teacher}", "teacher/cache=on", "objective.terms.cos.weight=0",
        ],
        "causal": [*train, *text, f"teacher.model={gpt2_teacher}"],
        "mlm": [*train, *text, "objective=mlm", f"student.model={bert_teacher}"],
        "diito": [*train, *text, "objective=diito", f"teacher.model={bert_teacher}"],
        "finetune": [*train, *rows, "objective=finetune", f"student.model={bert_teacher}"],
        "tagging": [*train, *words, "objective=finetune", f"student.model={bert_teacher}"],
        "task_kd": [*train, *rows, "objective=task_kd", f"teacher.model={folder}/head"],
        "tasks": [
            *train, "objective=task_kd",
            "tasks=[" + ",".join(
                f"{{benchmark: text_classification, name: {name}, teacher: '{folder}/head', "
                f"options: {{train_file: '{folder}/rows.tsv', eval_file: '{folder}/rows.tsv'}}}}"
                for name in ("one", "two")
            ) + "]",
        ],
        "step_by_step": [
            *rest, *quiet, *once, "objective=step_by_step", "data=rationales",
            f"data.train_files=[{arithmetic_files}/train.jsonl]",
            f"student.model={folder}/t5",
        ],
        "custom": [
            *quiet, *once, "objective=custom", "custom.teacher._target_=my.make", "custom.student._target_=my.make",
            "custom.data._target_=my.data", "custom.adaptor=my.adaptor",
        ],
        "rationales": [
            *rest, "stage=rationales", "data=rationales", f"data.train_files=[{arithmetic_files}/train.jsonl]",
            "generation.model=gpt2", f"generation.folder={folder}/written", "data.name=svamp",
        ],
        "evaluate": [*same, *text, f"model={bert_teacher}"],
        "evaluate interchange": [*same, *text, f"model=[{bert_teacher},{bert_teacher}]", "benchmark=interchange"],
        "evaluate rows": [*same, *rows, f"model={folder}/head"],
        "evaluate costs": [*same, f"model={bert_teacher}", "benchmark=efficiency", "benchmark.lengths=[32]"],
        "evaluate rationales": [
            *rest, *quiet, "benchmark=step_by_step", "data=rationales",
            f"data.test_files=[{arithmetic_files}/test.jsonl]",
            f"model={folder}/t5",
        ],
    }  # fmt: skip


def check(config):
    """What a run begins with, up to the point where it reads text and weights."""
    if isinstance(config, EvaluateConfig):
        validate_evaluate(config)
    elif config.stages:
        plan(config, Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().overrides.task, {})
    else:
        validate_train(config)


def test_the_command_lines_that_are_varied_are_valid(bases, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, overrides in bases.items():
        script = "evaluate" if name.startswith("evaluate") else "train"
        assert end_of(script, overrides, tmp_path / "run", check) == (0, ""), name


def test_random_command_lines(bases, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    draw, problems = Draw(SEED, bases), []
    for _ in range(COUNT):
        script, overrides = draw.command()
        if problem := problem_of(script, overrides, tmp_path / "run", check):
            problems.append((script, overrides, problem))
    assert not problems


# What takes long, starts processes, leaves this machine, or ends no run of one step.
HEAVY = (
    "trainer.", "logger", "compile", "doctor", "stage", "data.num", "data.engine", "data.vocabulary_size", "data.cache",
    "student.config", "strategy", "sweep", "experiment", "debug", "callbacks", "trial", "data.max_length", "resume",
)  # fmt: skip


@pytest.mark.integration
def test_valid_ones_run_to_their_end(bases, tmp_path, monkeypatch):
    """Those that pass the checks are trained for a step, or evaluated: again exit code 0, or 2 and one line."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    small = {name: bases[name] for name in ("kd", "mlm", "diito", "finetune", "evaluate", "evaluate interchange")}
    draw, problems, done = Draw(SEED, small), [], 0
    while done < RUNS:
        script, overrides = draw.command()
        added = [word.lstrip("+~") for word in overrides if not any(word in base for base in small.values())]
        if any(word.startswith(HEAVY) for word in added) or "=" not in "".join(added):
            continue
        folder = tmp_path / str(done)
        try:
            if end_of(script, overrides, folder, check)[0] != 0:
                continue
            done += 1
            code, stderr = end_of(
                script, overrides, folder, commands._train if script == "train" else commands._evaluate
            )
        except Exception as bug:
            problems.append((script, overrides, repr(bug)))
            continue
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        if code not in (0, 2) or (code == 2) != (len(errors) == 1) or "Traceback" in stderr:
            problems.append((script, overrides, code, stderr[-500:]))
    assert not problems
