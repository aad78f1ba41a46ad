"""A method of the user's own: one package and its options; no file of potstill knows of it."""

import ast
import csv
import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

import potstill

SOURCE = Path(potstill.__file__).parent
PACKAGE = '''
from potstill.methods import Evaluator, Method
from potstill.methods.language import Language


class Inverse(Method):
    """Language modelling by the inverse of the perplexity."""

    unit = "examples"

    def problems(self, config, *, models=True):
        problems = Language().problems(config, models=models)
        if config.objective.options["power"] > 3:
            problems.append(f"objective.options.power={config.objective.options['power']}: at most 3")
        if config.objective.temperature > 9:
            problems.append(f"objective.temperature={config.objective.temperature}: at most 9")
        return problems

    def build(self, config):
        from seventh.module import InverseModule

        training = Language().build(config)
        own = training.module
        training.module = InverseModule(own.student, own.teacher, own.objective, own.optimization)
        training.module.power = config.objective.options["power"]
        return training

    def monitored(self, config):
        return "val/inverse", "max"

    def data_name(self, config):
        return "the seventh text"

    def test(self, trainer, training, metrics):
        return {"test/doubled": 2 * metrics["val/inverse"]}

    def tables(self, training, metrics):
        from potstill.reporting.report import Table

        return {"seventh": Table("Seventh table", ["metric"], [[metrics["val/inverse"]]])}


class Parameters(Evaluator):
    """Compares models by their number of parameters."""

    def problems(self, config, models):
        return []

    def evaluate(self, config, models, folder):
        from transformers import AutoModel

        from potstill.evaluation.rows import Row

        return [
            Row(name, {"test/millions": AutoModel.from_pretrained(model).num_parameters() / 1e6})
            for name, model in models.items()
        ]

    def sections(self, config, rows):
        from potstill.reporting.report import Table

        cells = [[row.name, row.metrics["test/millions"]] for row in rows]
        return [Table("Seventh comparison", ["model", "millions"], cells)]
'''
MODULE = """
from potstill.training.language import LanguageDistillation


class InverseModule(LanguageDistillation):
    def validated_metrics(self):
        return super().validated_metrics() | {"val/inverse"}

    def log_dict(self, metrics, *arguments, **options):
        if "val/perplexity" in metrics:
            metrics = {**metrics, "val/inverse": metrics["val/perplexity"] ** -self.power}
        super().log_dict(metrics, *arguments, **options)
"""
OBJECTIVE = """
defaults:
  - /schema/objective/kd@_here_
  - _self_
name: seventh
method: seventh.Inverse
options:
  power: 1
terms:
  ce: {weight: 1.0}
  mlm: {weight: 1.0}
"""
BENCHMARK = """
name: seventh
evaluator: seventh.Parameters
monitor: millions
mode: min
"""


@pytest.fixture(scope="module")
def seventh(tmp_path_factory, command):
    """Run a command with the package on the path and its options in a searched folder."""
    root = tmp_path_factory.mktemp("own")
    (root / "seventh").mkdir()
    (root / "seventh" / "__init__.py").write_text(PACKAGE)
    (root / "seventh" / "module.py").write_text(MODULE)
    for group, text in (("objective", OBJECTIVE), ("benchmark", BENCHMARK)):
        (root / "conf" / group).mkdir(parents=True)
        (root / "conf" / group / "seventh.yaml").write_text(text)
    return lambda script, *overrides: command(
        script, f"hydra.searchpath=[file://{root}/conf]", *overrides, PYTHONPATH=str(root)
    )


@pytest.fixture(scope="module")
def overrides(text_file, eval_file, bert_teacher):
    return [
        "objective=seventh", "data=text_files", f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]",
        f"teacher.model={bert_teacher}", "data.batch_size=8", "data.max_length=32", "logger=csv", "data.num_proc=1",
        "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "schedule.name=constant",
    ]  # fmt: skip


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("val/inverse")]


@pytest.mark.integration
def test_it_trains_resumes_evaluates_and_reports(seventh, overrides, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = seventh("train.py", *overrides, "trainer.max_steps=4", f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["val/inverse"] == pytest.approx(1 / summary["val/perplexity"])
    assert summary["test/doubled"] == pytest.approx(2 * summary["val/inverse"])
    assert summary["train/examples_per_second"] > 0
    assert "train/best_step" in summary  # the best by its own metric is kept
    report = (whole / "report.html").read_text()
    assert "Seventh table" in report
    assert "the seventh text" in report
    assert "the seventh text" in (whole / "student" / "README.md").read_text()

    first = seventh("train.py", *overrides, "trainer.max_steps=2", f"hydra.run.dir={parts}")
    assert first.returncode == 0, first.stderr
    second = seventh("train.py", *overrides, "trainer.max_steps=4", "resume=auto", f"hydra.run.dir={parts}")
    assert second.returncode == 0, second.stderr
    assert [row["val/inverse"] for row in rows_of(parts)][-1] == [row["val/inverse"] for row in rows_of(whole)][-1]

    models = f"model=[{whole}/student,{parts}/student]"
    evaluated = seventh("evaluate.py", models, "benchmark=seventh", f"hydra.run.dir={tmp_path}/evaluation")
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    size = sum(tensor.numel() for tensor in load_file(whole / "student" / "model.safetensors").values()) / 1e6
    assert 0 < found["whole/student/test/millions"] <= size
    assert "Seventh comparison" in (tmp_path / "evaluation" / "report.html").read_text()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("objective.temperature=10", "objective.temperature=10"),
        ("objective.options.power=4", "objective.options.power=4"),
        ("objective.mode=standard", "objective.mode=standard"),
        ("objective.method=seventh.Nothing", "objective.method=seventh.Nothing"),
        ("objective.method=os.getcwd", "objective.method=os.getcwd"),
    ],
)
def test_its_errors_are_user_errors(seventh, overrides, override, key, tmp_path):
    done = seventh("train.py", *overrides, override, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {key}")
    assert not (tmp_path / "run").exists()


def compared_names(tree):
    """Comparisons of `objective.name`, and tests for the class of a training."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and re.search(r"objective\.name\b", ast.unparse(node)):
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            kinds = ast.unparse(node.args[1])
            if re.search(r"\b\w*(Training|Evaluation)\b", kinds) and node.args[0] and "Training" in kinds:
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "package", ["cli", "config", "data", "evaluation", "objectives", "reporting", "runs", "training", "validation"]
)
def test_no_method_is_told_apart_outside_methods(package):
    found = {
        f"{path.relative_to(SOURCE)}: {text}"
        for path in sorted((SOURCE / package).rglob("*.py"))
        for text in compared_names(ast.parse(path.read_text()))
    }
    assert not found
