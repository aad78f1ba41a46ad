"""export=onnx, export=int8: each form is evaluated beside its model, of tasks, language models and costs."""

import csv
import random

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from potstill.errors import ConfigError
from potstill.models.load import name_labels
from potstill.models.save import save_student
from potstill.models.students import student_from_layers

pytestmark = pytest.mark.integration

QUIET = ["trainer.enable_progress_bar=false", "data.max_length=32", "data.num_proc=1"]


@pytest.fixture
def evaluator(evaluated, tmp_path):
    return lambda name, *overrides: evaluated(tmp_path / name, *QUIET, *overrides)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, bert_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(bert_tokenizer)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    name_labels(config, ("negative", "positive"))
    return save_student(
        BertForSequenceClassification(config), tokenizer, tmp_path_factory.mktemp("classifier") / "student", "card"
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory, words):
    folder, draw = tmp_path_factory.mktemp("rows"), random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(60)]
    labelled = [f"{text}\t{draw.randint(0, 1)}" for text in texts]
    (folder / "dev.tsv").write_text("\n".join(["sentence\tlabel", *labelled]) + "\n")
    (folder / "test.tsv").write_text("\n".join(["index\tsentence", *(f"{n}\t{t}" for n, t in enumerate(texts))]) + "\n")
    return folder


def test_the_forms_of_a_task_model_have_rows_predictions_and_folders(evaluator, classifier, rows):
    """The teacher, which students are compared with, is not exported."""
    models = [f"model=[{classifier},{classifier}]", "names=[teacher,student]", "export=[onnx,int8]"]
    folder, summary = evaluator("task", *models, "benchmark=sst2", f"benchmark.folder={rows}")
    own, onnx, int8 = (f"student{end}" for end in ("", " onnx", " int8"))
    assert {name.partition("/")[0] for name in summary if "/test/accuracy" in name} == {"teacher", own, onnx, int8}
    assert [path.name for path in (folder / "export").iterdir()] == ["student"]
    assert summary[f"{onnx}/test/accuracy"] == summary[f"{own}/test/accuracy"]
    assert summary[f"{onnx}/test/loss"] == pytest.approx(summary[f"{own}/test/loss"], abs=1e-4)
    assert abs(summary[f"{int8}/test/accuracy"] - summary[f"{own}/test/accuracy"]) <= 0.2
    assert summary[f"{onnx}/export_difference"] < 1e-4 < summary[f"{int8}/export_difference"]
    assert summary[f"{int8}/size_mb"] < summary[f"{onnx}/size_mb"]
    assert {f"{form}/test/accuracy_difference" for form in (onnx, int8)} <= summary.keys()
    for form in ("onnx", "int8"):
        files = {path.name for path in (folder / "export" / "student" / form).iterdir()}
        assert {"model.onnx", "config.json", "tokenizer.json"} <= files
    assert (folder / "predictions_student.tsv").is_file()
    assert (folder / "predictions_student_onnx.tsv").is_file()


@pytest.mark.parametrize("benchmark", ["mlm", "clm"])
def test_a_form_of_a_language_model_has_its_perplexity(
    benchmark, evaluator, eval_file, bert_teacher, gpt2_teacher, tmp_path
):
    teacher, auto = {"mlm": (bert_teacher, AutoModelForMaskedLM), "clm": (gpt2_teacher, AutoModelForCausalLM)}[
        benchmark
    ]
    student = student_from_layers(auto.from_pretrained(teacher), [0])
    model = save_student(student, AutoTokenizer.from_pretrained(teacher), tmp_path / "student", "card")
    text = ["data=text_files", f"data.eval_files=[{eval_file}]", f"benchmark={benchmark}"]
    _, summary = evaluator(benchmark, f"model={model}", "names=[lm]", *text, "export=onnx")
    assert summary["lm onnx/perplexity"] == pytest.approx(summary["lm/perplexity"], rel=1e-4)


def test_the_costs_of_a_form(evaluator, classifier):
    few = ["benchmark.batches=[1]", "benchmark.lengths=[16]"]
    folder, summary = evaluator(
        "costs", f"model={classifier}", "names=[m]", "benchmark=efficiency", "export=int8", *few
    )
    assert summary["m int8/parameters"] == summary["m/parameters"]
    assert summary["m int8/size_mb"] < summary["m/size_mb"]
    assert summary["m int8/tokens_per_second_1x16"] > 0
    assert summary["m int8/peak_mb"] is None
    assert "m int8" in (folder / "report.html").read_text()


def test_a_test_set_of_glue_gives_the_file_for_its_server(evaluator, classifier, rows):
    folder, _ = evaluator(
        "server", f"model={classifier}", "benchmark=sst2", f"benchmark.folder={rows}", "benchmark.part=test"
    )
    with (folder / "submission" / "SST-2.tsv").open() as file:
        lines = list(csv.reader(file, delimiter="\t"))
    predicted = [line.split("\t")[1] for line in (folder / "predictions.tsv").read_text().splitlines()[1:]]
    assert lines[0] == ["index", "prediction"]
    assert [line[1] for line in lines[1:]] == [{"negative": "0", "positive": "1"}[label] for label in predicted]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["export=tflite"], "export=tflite: "), (["export=onnx", "benchmark=interchange"], "export=onnx: ")],
)
def test_invalid_forms_are_rejected(overrides, message, evaluator, classifier, rows):
    common = [f"model=[{classifier},{classifier}]", "names=[a,b]"]
    own = [] if "benchmark=interchange" in overrides else ["benchmark=sst2", f"benchmark.folder={rows}"]
    with pytest.raises(ConfigError) as caught:
        evaluator("error", *common, *own, *overrides)
    assert str(caught.value).startswith(message)
