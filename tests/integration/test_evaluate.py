"""evaluate.py: what it leaves, that it repeats itself, and that it agrees with the training run."""

import math

import pytest

from potstill.errors import ConfigError

pytestmark = pytest.mark.integration

COMMON = ["data=text_files", "data.max_length=32", "data.num_proc=1", "trainer.enable_progress_bar=false"]


@pytest.fixture
def evaluate(eval_file, evaluated, tmp_path):
    common = [*COMMON, f"data.eval_files=[{eval_file}]"]
    return lambda name, *overrides: evaluated(tmp_path / name, *common, *overrides)


@pytest.mark.parametrize("benchmark", ["mlm", "clm"])
def test_an_evaluation_is_reproducible(benchmark, evaluate, bert_teacher, gpt2_teacher):
    model = {"mlm": bert_teacher, "clm": gpt2_teacher}[benchmark]
    folder, summary = one = evaluate("one", f"model={model}", f"benchmark={benchmark}")
    two = evaluate("two", f"model={model}", f"benchmark={benchmark}")
    assert {"perplexity", "parameters", "size_mb", "latency_ms", "seed", "git_commit", "versions"} <= summary.keys()
    assert all(isinstance(figure, int | float | str | None) for figure in summary.values())
    assert one.value == two.value == summary["perplexity"] == two.summary["perplexity"]
    assert "perplexity" in (folder / "report.html").read_text()


@pytest.mark.parametrize("benchmark", ["mlm", "clm"])
def test_two_perplexities_differ_by_an_interval(benchmark, evaluate, bert_teacher, gpt2_teacher, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    auto, teacher = {"mlm": (AutoModelForMaskedLM, bert_teacher), "clm": (AutoModelForCausalLM, gpt2_teacher)}[
        benchmark
    ]
    model = auto.from_pretrained(teacher)
    model.get_input_embeddings().weight.data.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "other")
    models = [f"model=[{teacher},{tmp_path}/other]", "names=[one,other]", f"benchmark={benchmark}"]
    _, summary = evaluate("both", *models)
    value, low, high = (summary[f"other/perplexity_difference{end}"] for end in ("", "_low", "_high"))
    assert value == pytest.approx(summary["other/perplexity"] - summary["one/perplexity"], rel=1e-4)
    assert low < value < high
    alone = evaluate("alone", f"model={teacher}", f"benchmark={benchmark}")
    assert alone.value == pytest.approx(summary["one/perplexity"])


def test_the_masks_are_a_function_of_the_seed(evaluate, bert_teacher):
    values = [evaluate(f"seed{seed}", f"model={bert_teacher}", f"seed={seed}").value for seed in (1, 2)]
    assert values[0] != values[1]


def test_the_batch_size_does_not_matter(evaluate, gpt2_teacher):
    """A causal model; masks are drawn over a whole batch, so the perplexity of a masked one depends on its size."""
    model = [f"model={gpt2_teacher}", "benchmark=clm"]
    values = [evaluate(f"size{size}", *model, f"data.eval_batch_size={size}").value for size in (3, 16)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_several_models_with_names(evaluate, bert_teacher, capsys):
    models = f"model=[{bert_teacher},{bert_teacher}]"
    folder, summary = named = evaluate("named", models, "names=[teacher,student]")
    assert named.value == summary["teacher/perplexity"] == summary["student/perplexity"]
    assert "perplexity" not in summary
    report = (folder / "report.html").read_text()
    assert "student" in report
    assert "100.0%" in report
    table = capsys.readouterr().out
    assert "teacher" in table


def test_a_run_and_its_evaluation_agree(evaluate, bert_teacher, text_file, eval_file, tmp_path, trained):
    _, taught = trained(
        tmp_path / "run", *COMMON, f"teacher.model={bert_teacher}", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "trainer.max_steps=3", "logger=csv",
    )  # fmt: skip
    _, summary = evaluate("evaluated", f"model=[{tmp_path}/run/student,{bert_teacher}]", "names=[student,teacher]")
    assert summary["student/perplexity"] == pytest.approx(taught["val/perplexity"], rel=1e-5)
    assert summary["teacher/perplexity"] == pytest.approx(taught["val/teacher_perplexity"], rel=1e-5)
    assert summary["student/parameters"] == taught["student/parameters"]


def test_a_causal_model_is_rejected_by_the_masked_benchmark(command, gpt2_teacher, eval_file, tmp_path):
    done = command(
        "evaluate.py", f"model={gpt2_teacher}", "benchmark=mlm", "data=text_files", f"data.eval_files=[{eval_file}]",
        f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: benchmark=mlm: {gpt2_teacher} ")
    assert not (tmp_path / "run").exists()


def test_interchange_agreement_by_block(evaluate, bert_teacher, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from potstill.models.save import save_student
    from potstill.models.students import student_from_layers

    teacher = AutoModelForMaskedLM.from_pretrained(bert_teacher)
    for name, layers in (("half", [0, 3]), ("all", [0, 1, 2, 3])):
        student = student_from_layers(teacher, layers)
        save_student(student, AutoTokenizer.from_pretrained(bert_teacher), tmp_path / name, "")
    models = f"model=[{bert_teacher},{tmp_path}/half,{tmp_path}/all]"
    folder, summary = found = evaluate("agreement", models, "names=[teacher,half,all]", "benchmark=interchange")
    for block in range(4):
        assert summary[f"all/interchange_agreement_{block}-{block}"] == 1.0
        assert summary[f"all/interchange_kl_{block}-{block}"] < 1e-6
    assert {f"half/interchange_agreement_{t}-{s}" for t in range(4) for s in range(2)} <= summary.keys()
    assert 0 < found.value == summary["half/interchange_agreement"] < 1
    assert not any(name.startswith("teacher/") for name in summary)
    for name in ("half", "all"):  # one control for each architecture
        control = {key: summary[f"random {name}/interchange_{key}"] for key in ("agreement", "followed", "changed")}
        assert control["agreement"] < 0.2 * summary[f"{name}/interchange_agreement"]
        assert control["followed"] < 0.2 * summary[f"{name}/interchange_followed"]
        assert control["changed"] == summary[f"{name}/interchange_changed"] > 0  # of the teacher's predictions
        assert summary[f"random {name}/parameters"] == summary[f"{name}/parameters"]
    followed = [summary[f"all/interchange_followed_{block}-{block}"] for block in range(4)]
    assert followed == [1.0] * 4
    assert summary["all/interchange_unswapped"] == 1.0
    report = (folder / "report.html").read_text()
    assert "half: interchange agreement" in report
    assert "teacher / student block" in report
    _, summary = evaluate(
        "taken", f"model=[{bert_teacher},{tmp_path}/all]", "names=[a,random]", "benchmark=interchange"
    )
    assert summary["random_/interchange_agreement"] < 0.2 * summary["random/interchange_agreement"]
    again = evaluate("again", models, "benchmark=interchange", "data.eval_batch_size=4")
    assert again.value == pytest.approx(found.value, rel=1e-6)
    controls = ["benchmark.interchange.random_control=false", "benchmark.interchange.untrained_layers=[0,3]"]
    _, summary = same = evaluate("controls", models, "names=[teacher,half,all]", "benchmark=interchange", *controls)
    assert same.value == pytest.approx(found.value)
    assert summary["untrained/interchange_agreement"] == pytest.approx(found.value)  # half is not trained either
    assert not any(name.startswith("random") for name in summary)
    with pytest.raises(ConfigError, match=r"^benchmark.interchange.untrained_layers=\[0,9\]: "):
        evaluate("layers", models, "benchmark=interchange", "benchmark.interchange.untrained_layers=[0,9]")


def test_costs_of_two_models(evaluate, bert_teacher, gpt2_teacher):
    models = f"model=[{bert_teacher},{gpt2_teacher}]"
    passes = ["benchmark.batches=[1,3]", "benchmark.lengths=[8,16]"]
    folder, summary = costs = evaluate(
        "costs", models, "names=[one,two]", "benchmark=efficiency", *passes, "data.eval_files=[nowhere.txt]"
    )
    assert costs.value == summary["one/latency_ms"] == summary["one/latency_ms_1x8"]
    for name in ("one", "two"):
        assert summary[f"{name}/parameters"] > summary[f"{name}/parameters_without_embeddings"]
        assert summary[f"{name}/gflop"] > 0
        assert summary[f"{name}/peak_mb"] > 0
        for at in ("1x8", "1x16", "3x8", "3x16"):
            assert summary[f"{name}/latency_ms_{at}"] <= summary[f"{name}/latency_p95_ms_{at}"]
            assert summary[f"{name}/tokens_per_second_{at}"] > 0
    report = (folder / "report.html").read_text()
    assert "one: parameters" in report
    assert "BertForMaskedLM" in report
    assert "smaller" in report
    with pytest.raises(ConfigError, match=r"^benchmark.lengths=\[8, 999\]: .* 64 "):
        evaluate("long", models, "benchmark=efficiency", "benchmark.lengths=[8,999]")
    with pytest.raises(ConfigError, match=r"^benchmark.interchange.mapping=grid: "):
        evaluate("swap", models, "benchmark=efficiency", "benchmark.interchange.mapping=grid")
    with pytest.raises(ConfigError, match=r"^benchmark.batches=\[\]: "):
        evaluate("none", models, "benchmark=efficiency", "benchmark.batches=[]")


@pytest.mark.parametrize("benchmark", ["mlm", "clm", "interchange"])
def test_a_set_of_one_sequence_is_evaluated(benchmark, evaluate, bert_teacher, gpt2_teacher, tmp_path):
    (tmp_path / "one.txt").write_text("the of and to a in that is was he for it with\n")
    model = bert_teacher if benchmark == "mlm" else gpt2_teacher
    _, summary = evaluate(
        "one",
        f"model=[{model},{model}]",
        "names=[a,b]",
        f"benchmark={benchmark}",
        f"data.eval_files=[{tmp_path}/one.txt]",
    )
    if benchmark == "interchange":  # there is no other sequence to swap states with
        assert math.isfinite(summary["b/perplexity"])
        assert not any("interchange_agreement" in name for name in summary)
    else:
        assert math.isfinite(summary["a/perplexity"])
        assert summary["a/perplexity"] == summary["b/perplexity"]
