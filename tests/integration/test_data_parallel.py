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
TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
CALM = (
    "+student.config={model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, "
    "intermediate_size: 64, max_position_embeddings: 64, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
)
MATCHES = (
    "objective.matches=[{teacher: 4, student: 2, loss: hidden_mse, projection: linear}, "
    "{teacher: 3, student: 1, loss: attention_mse}, {teacher: 2, student: 1, loss: pkd}]"
)


@pytest.fixture(scope="module")
def train(command, tmp_path_factory):
    """Call `train(overrides)`: the folder of a finished command; the same overrides are trained once."""
    done = {}

    def start(*overrides):
        if overrides not in done:
            folder = tmp_path_factory.mktemp("run") / "run"
            process = command("train.py", *overrides, f"hydra.run.dir={folder}")
            assert process.returncode == 0, process.stderr[-3000:]
            done[overrides] = folder
        return done[overrides]

    return start


def assert_same(one, two, metrics, *, within=1e-5, rel=1e-4):
    """The students have the same weights, the summaries the same metrics."""
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=within, msg=key)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    for name in metrics:
        assert summaries[1][name] == pytest.approx(summaries[0][name], rel=rel), name


@pytest.fixture(scope="module")
def language(bert_teacher, text_file, eval_file):
    return [
        f"teacher.model={bert_teacher}", CALM, "data=text_files", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1", "optimizer.lr=1e-3",
        "trainer.enable_progress_bar=false", "logger=csv",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "own"),
    [
        (
            ["objective=kd", MATCHES, "objective.gradient_shares_every=1"],
            [
                *(f"train/loss_match_{number}" for number in range(3)),
                *(f"train/gradient_share_{term}" for term in ("ce", "mlm", "cos", "match_0", "match_1", "match_2")),
            ],
        ),
        (["objective=diito"], ["train/loss_causal_ce", "val/interchange_agreement", "val/interchange_kl"]),
        (
            [
                "objective=diito",
                "objective.interchange.pairing=shuffled",
                "objective.matches=[{teacher: 4, student: 2, loss: cos, run: counterfactual, projection: linear}]",
            ],
            ["train/loss_causal_ce", "train/loss_match_0", "val/loss_match_0"],
        ),
    ],
    ids=["kd", "diito", "shuffled"],
)
def test_two_processes_make_the_update_of_one(objective, own, language, train):
    """The same global batch, shared by two processes (gloo) or not: same weights, same figures."""
    common = [*language, *objective, "trainer.max_steps=4"]
    one = train(*common, "data.batch_size=8")
    two = train(*common, "strategy=ddp", *TWO, "data.batch_size=2", "trainer.accumulate_grad_batches=2")
    figures = ["train/loss", "train/loss_ce", "train/grad_norm", "val/loss", "val/perplexity", "val/teacher_perplexity"]
    assert_same(one, two, [*own, *figures])


@pytest.fixture(scope="module")
def task(bert_tokenizer, make_bert, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    make_bert(folder / "bert", bert_tokenizer, layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for part, count in (("train", 24), ("dev", 13)):
        rows = [f"{' '.join(words[i : i + 3 + i % 5])}\t{i % 3}" for i in range(count)]
        (folder / f"{part}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return [
        "objective=finetune", "benchmark=text_classification", f"benchmark.train_file={folder}/train.tsv",
        f"benchmark.eval_file={folder}/dev.tsv", f"student.model={folder}/bert", "data.max_length=32",
        "data.eval_batch_size=4", "trainer.max_steps=4", "trainer.val_check_interval=1", "optimizer.lr=1e-2",
        "optimizer.eps=1e-3", "logger=csv", "trainer.enable_progress_bar=false",
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", pytest.param(ZERO_3, marks=DEEPSPEED)])
def test_two_processes_evaluate_a_task_and_keep_the_best_student_as_one_does(strategy, task, train):
    """Metrics of all 13 rows, however they are shared; the best weights, which are gathered."""
    one = train(*task, "data.batch_size=8")
    two = train(*task, *f"strategy={strategy}".split(), *TWO, "data.batch_size=4")
    figures = ["train/loss_label", "train/grad_norm", "train/best_step", "val/loss", "val/accuracy", "val/f1_macro"]
    assert_same(one, two, figures)


@pytest.mark.parametrize(
    ("strategy", "half", "two"),
    [
        ("fsdp", "fsdp_gradients", "fsdp"),
        pytest.param("deepspeed", "deepspeed_stage_2", "deepspeed_stage_3", marks=DEEPSPEED),
        pytest.param("deepspeed", "deepspeed_stage_3", "deepspeed_stage_2", marks=DEEPSPEED),
    ],
)
def test_sharded_weights_make_the_same_update(strategy, half, two, language, train):
    """Interventions, tied embeddings, ranks with few and many micro-batches, a resumed run: as one process."""
    common = [
        *language, "objective=diito", "trainer.val_check_interval=2", "schedule=constant", "data.eval_batch_size=6",
    ]  # fmt: skip
    both = [f"strategy={strategy}", *TWO, "data.max_tokens=64", "trainer.accumulate_grad_batches=2"]
    last = "checkpoints/last.ckpt"
    one = train(*common, "data.max_tokens=256", "trainer.max_steps=4")
    begun = train(*common, *both, "trainer.max_steps=2", f"trainer.strategy={half}")
    resumed = train(*common, *both, "trainer.max_steps=4", f"trainer.strategy={two}", f"ckpt_path={begun}/{last}")
    figures = ["train/loss", "train/loss_causal_ce", "train/grad_norm", "val/loss", "val/interchange_kl"]
    assert_same(one, resumed, figures)
    saved = [torch.load(folder / last, weights_only=True) for folder in (one, resumed)]
    assert saved[0]["state_dict"].keys() == saved[1]["state_dict"].keys()
    for number, state in saved[0]["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            other = saved[1]["optimizer_states"][0]["state"][number][key]
            torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-6, msg=f"{number} {key}")


SMALL_T5 = "{model_type: t5, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_heads: 4, dropout_rate: 0.0}"
SMALL_LLAMA = (
    "{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, "
    "max_position_embeddings: 96, tie_word_embeddings: true}"
)


@pytest.mark.parametrize(
    ("strategy", "still", "within"),
    [
        ("ddp", SMALL_T5, 1e-6),
        ("fsdp", SMALL_T5, 1e-5),
        ("ddp", SMALL_LLAMA, 1e-5),
        ("fsdp", SMALL_LLAMA, 1e-5),
        pytest.param("deepspeed", SMALL_T5, 1e-5, marks=DEEPSPEED),
    ],
)
def test_two_processes_make_the_update_of_one_step_by_step(
    strategy, still, within, train, arithmetic_files, t5_tokenizer
):
    """Both tasks' losses are means over the whole step's target tokens, whichever process has them."""
    common = [
        "objective=step_by_step", "objective.alpha=0.3", "data=rationales", "data.set=svamp",
        f"data.train_files=[{arithmetic_files}/train.jsonl]", f"data.eval_files=[{arithmetic_files}/valid.jsonl]",
        f"data.test_files=[{arithmetic_files}/test.jsonl]", f"data.tokenizer={t5_tokenizer}",
        f"+student.config={still}", "trainer.max_steps=4", "data.eval_batch_size=31", "data.generation_max_length=8",
        "data.output_rationale=true", "optimizer.lr=1e-3", "optimizer.eps=1e-3", "trainer.enable_progress_bar=false",
        "logger=csv", "data.max_target_length=32",
    ]  # fmt: skip
    one = train(*common, "data.batch_size=8")
    two = train(*common, f"strategy={strategy}", *TWO, "data.batch_size=2", "trainer.accumulate_grad_batches=2")
    losses = [f"{part}/loss_{task}" for part in ("train", "val", "test") for task in ("predict", "explain", "total")]
    written = [f"{part}/{name}" for part in ("val", "test") for name in ("accuracy", "text_accuracy", "rouge_l")]
    assert_same(one, two, [*losses, *written, "train/grad_norm"], within=within, rel=10 * within)
