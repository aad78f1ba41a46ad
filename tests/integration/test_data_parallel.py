import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.integration
# DeepSpeed compiles its exchange between processes of a CPU when it is first used.
DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="deepspeed or a C++ compiler is not installed",
)
ZERO_3 = "deepspeed trainer.strategy=deepspeed_stage_3"


MATCHES = (
    "objective.matches=[{teacher: 4, student: 2, loss: hidden_mse, projection: linear}, "
    "{teacher: 3, student: 1, loss: attention_mse}, {teacher: 2, student: 1, loss: pkd}]"
)


@pytest.mark.parametrize("objective", ["kd", "diito", "matches"])
def test_two_processes_make_the_update_of_one(
    objective, command, text_file, eval_file, bert_teacher, tmp_path
):
    """The same global batch, shared by two processes (gloo) or not: same weights, same figures."""
    still = (
        "+student.config={model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, "
    )
    still += "intermediate_size: 64, max_position_embeddings: 64, hidden_dropout_prob: 0.0, "
    still += "attention_probs_dropout_prob: 0.0}"
    common = [
        f"objective={'kd' if objective == 'matches' else objective}", f"teacher.model={bert_teacher}", still,
        "data=text_files",
        f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1",
        "trainer.max_steps=4", "optimizer.lr=1e-3", "trainer.enable_progress_bar=false", "logger=csv",
    ]  # fmt: skip
    if objective == "matches":
        common += [MATCHES, "objective.gradient_shares_every=1"]
    two = ["strategy=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    runs = {
        "one": ["data.batch_size=8"],
        "two": [*two, "data.batch_size=2", "trainer.accumulate_grad_batches=2"],
    }
    for name, overrides in runs.items():
        done = command("train.py", *common, *overrides, f"hydra.run.dir={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr[-3000:]
    one, both = (load_file(tmp_path / name / "student" / "model.safetensors") for name in runs)
    for key, value in one.items():
        torch.testing.assert_close(both[key], value, rtol=0, atol=1e-5, msg=key)
    figures = [json.loads((tmp_path / name / "summary.json").read_text()) for name in runs]
    own = {
        "diito": ("train/loss_causal_ce", "val/interchange_agreement", "val/interchange_kl"),
        "matches": (
            *(f"train/loss_match_{number}" for number in range(3)),
            *(
                f"train/gradient_share_{term}"
                for term in ("ce", "mlm", "cos", "match_0", "match_1", "match_2")
            ),
        ),
    }
    for key in (
        *own.get(objective, ()),
        "train/loss",
        "train/loss_ce",
        "train/grad_norm",
        "val/loss",
        "val/perplexity",
        "val/teacher_perplexity",
    ):
        assert figures[0][key] == pytest.approx(figures[1][key], rel=1e-4), key


def test_two_processes_judge_a_task_as_one_does(command, bert_tokenizer, make_bert, words, tmp_path):
    """Metrics are of the whole set, however its rows are shared; 13 rows leave a process without one at the end."""
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    make_bert(tmp_path / "bert", bert_tokenizer, layers=1, **calm)
    for part, count in (("train", 40), ("dev", 13)):
        rows = [f"{' '.join(words[i : i + 3 + i % 5])}\t{i % 3}" for i in range(count)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    common = [
        "objective=finetune", "benchmark=text_classification", f"benchmark.train_file={tmp_path}/train.tsv",
        f"benchmark.eval_file={tmp_path}/dev.tsv", f"student.model={tmp_path}/bert", "data.max_length=32",
        "data.eval_batch_size=4", "trainer.max_steps=4", "optimizer.lr=1e-2", "optimizer.eps=1e-3", "logger=csv",
        "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    two = ["strategy=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    runs = {"one": ["data.batch_size=8"], "two": [*two, "data.batch_size=4"]}
    for name, overrides in runs.items():
        done = command("train.py", *common, *overrides, f"hydra.run.dir={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr[-3000:]
    one, both = (load_file(tmp_path / name / "student" / "model.safetensors") for name in runs)
    for key, value in one.items():
        torch.testing.assert_close(both[key], value, rtol=0, atol=1e-5, msg=key)
    figures = [json.loads((tmp_path / name / "summary.json").read_text()) for name in runs]
    for key in ("train/loss_label", "train/grad_norm", "val/loss", "val/accuracy", "val/f1_macro"):
        assert figures[0][key] == pytest.approx(figures[1][key], rel=1e-4), key


CALM = (
    "+student.config={model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, "
    "intermediate_size: 64, max_position_embeddings: 64, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
)


@pytest.mark.parametrize(
    ("strategy", "half", "two"),
    [
        ("fsdp", "fsdp_gradients", "fsdp"),
        pytest.param("deepspeed", "deepspeed_stage_2", "deepspeed_stage_3", marks=DEEPSPEED),
        pytest.param("deepspeed", "deepspeed_stage_3", "deepspeed_stage_2", marks=DEEPSPEED),
    ],
)
def test_weights_that_are_shared_out_make_the_same_update(
    strategy, half, two, command, text_file, eval_file, bert_teacher, tmp_path
):
    """Interventions, tied embeddings, ranks with few and many micro-batches, a run that goes on: as one process."""
    common = [
        "objective=diito", f"teacher.model={bert_teacher}", CALM, "data=text_files",
        f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1",
        "optimizer.lr=1e-3", "trainer.enable_progress_bar=false", "logger=csv", "trainer.val_check_interval=2",
        "schedule=constant", "data.eval_batch_size=6",
    ]  # fmt: skip
    both = [
        f"strategy={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
        "data.max_tokens=64", "trainer.accumulate_grad_batches=2",
    ]  # fmt: skip
    last = "checkpoints/last.ckpt"
    runs = {
        "one": ["data.max_tokens=256", "trainer.max_steps=4"],
        "half": [*both, "trainer.max_steps=2", f"trainer.strategy={half}"],
        "two": [*both, "trainer.max_steps=4", f"trainer.strategy={two}", f"ckpt_path={tmp_path}/half/{last}"],
    }
    for name, overrides in runs.items():
        done = command("train.py", *common, *overrides, f"hydra.run.dir={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr[-3000:]
    one, shared = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(shared[key], value, rtol=0, atol=1e-5, msg=key)
    figures = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    for key in ("train/loss", "train/loss_causal_ce", "train/grad_norm", "val/loss", "val/interchange_kl"):
        assert figures[0][key] == pytest.approx(figures[1][key], rel=1e-4), key
    saved = [torch.load(tmp_path / name / last, weights_only=True) for name in ("one", "two")]
    assert saved[0]["state_dict"].keys() == saved[1]["state_dict"].keys()
    for number, state in saved[0]["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            other = saved[1]["optimizer_states"][0]["state"][number][key]
            torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-6, msg=f"{number} {key}")


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param(ZERO_3, marks=DEEPSPEED)])
def test_the_best_student_of_shared_weights_is_kept(
    strategy, command, bert_tokenizer, make_bert, words, tmp_path
):
    """A task student: its best weights are put together, restored and saved whole."""
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    make_bert(tmp_path / "bert", bert_tokenizer, layers=1, **calm)
    rows = [f"{' '.join(words[i : i + 3 + i % 5])}\t{i % 3}" for i in range(24)]
    (tmp_path / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    common = [
        "objective=finetune", "benchmark=text_classification", f"benchmark.train_file={tmp_path}/rows.tsv",
        f"benchmark.eval_file={tmp_path}/rows.tsv", f"student.model={tmp_path}/bert", "data.max_length=32",
        "trainer.max_steps=4", "trainer.val_check_interval=1", "optimizer.lr=1e-2", "optimizer.eps=1e-3", "logger=csv",
        "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    two = [
        *f"strategy={strategy}".split(),
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.precision=32-true",
    ]
    runs = {"one": ["data.batch_size=8"], "two": [*two, "data.batch_size=4"]}
    for name, overrides in runs.items():
        done = command("train.py", *common, *overrides, f"hydra.run.dir={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr[-3000:]
    one, both = (load_file(tmp_path / name / "student" / "model.safetensors") for name in runs)
    for key, value in one.items():
        torch.testing.assert_close(both[key], value, rtol=0, atol=1e-5, msg=key)
    figures = [json.loads((tmp_path / name / "summary.json").read_text()) for name in runs]
    for key in ("train/best_step", "val/accuracy", "train/grad_norm"):
        assert figures[0][key] == pytest.approx(figures[1][key], rel=1e-4), key


@pytest.mark.parametrize(
    ("strategy", "within"), [("ddp", 1e-6), ("fsdp", 1e-5), pytest.param("deepspeed", 1e-5, marks=DEEPSPEED)]
)
def test_two_processes_make_the_update_of_one_step_by_step(
    strategy, within, command, arithmetic_files, t5_tokenizer, tmp_path
):
    """Both tasks' losses are means over the whole step's target tokens, whichever process has them."""
    still = "{model_type: t5, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_heads: 4, dropout_rate: 0.0}"
    common = [
        "objective=step_by_step", "objective.alpha=0.3", "data=rationales", "data.set=svamp",
        f"data.train_files=[{arithmetic_files}/train.jsonl]", f"data.eval_files=[{arithmetic_files}/valid.jsonl]",
        f"data.test_files=[{arithmetic_files}/test.jsonl]", f"data.tokenizer={t5_tokenizer}",
        f"+student.config={still}", "trainer.max_steps=4", "data.eval_batch_size=31", "data.generation_max_length=8",
        "data.output_rationale=true", "optimizer.lr=1e-3", "optimizer.eps=1e-3", "trainer.enable_progress_bar=false",
        "logger=csv",
    ]  # fmt: skip
    two = [
        *f"strategy={strategy}".split(), "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
        "data.batch_size=2",
        "trainer.accumulate_grad_batches=2",
    ]  # fmt: skip
    runs = {"one": ["data.batch_size=8"], "two": two}
    for name, overrides in runs.items():
        done = command("train.py", *common, *overrides, f"hydra.run.dir={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr[-3000:]
    weights = {name: load_file(tmp_path / name / "student" / "model.safetensors") for name in runs}
    figures = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in runs}
    tasks = [
        f"{part}/loss_{task}" for part in ("train", "val", "test") for task in ("predict", "explain", "total")
    ]
    written = [
        f"{part}/{name}" for part in ("val", "test") for name in ("accuracy", "text_accuracy", "rouge_l")
    ]
    for key, value in weights["one"].items():
        torch.testing.assert_close(weights["two"][key], value, rtol=0, atol=within, msg=key)
    for key in (*tasks, *written, "train/grad_norm"):
        assert figures["two"][key] == pytest.approx(figures["one"][key], rel=10 * within), key
