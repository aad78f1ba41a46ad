"""Whole runs, in this process: what they leave, resuming, accumulation, distillation that learns."""

import math

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import CheckpointError, FormatError, ModelError, TokenizerError, TrainingError

pytestmark = pytest.mark.integration

SMALL = ["data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv", "optimizer.lr=1e-3"]
QUIET = ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]


@pytest.fixture
def overrides(text_file, eval_file):
    source = ["data=text_files", f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]"]
    return [*source, *SMALL, *QUIET]


def student(folder):
    return load_file(folder / "student" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_kd_writes_the_documented_files_and_metrics(run, bert_teacher):
    folder, summary = run("kd", f"teacher.model={bert_teacher}", "trainer.max_steps=12")
    assert {
        "train/tokens_per_second", "train/step_seconds", "train/peak_memory_gb", "git_commit", "seed", "versions",
        "val/perplexity", "val/loss_ce", "val/loss_mlm", "val/loss_cos", "val/teacher_perplexity", "train/loss",
    } <= summary.keys()  # fmt: skip
    assert all(isinstance(value, int | float | str | None) for value in summary.values())
    assert summary["train/steps"] == 12
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert {"step", "train/loss_ce", "train/loss_mlm", "train/lr", "train/grad_norm"} <= set(header.split(","))
    for name in ("report.html", "config.yaml", "checkpoints/last.ckpt", "student/tokenizer.json", "student/README.md"):
        assert (folder / name).is_file(), name
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if key.startswith("teacher.")]
    assert checkpoint["global_step"] == 12


def test_distillation_brings_the_student_to_the_teacher(run, bert_teacher):
    _, before = run("before", f"teacher.model={bert_teacher}", "trainer.max_steps=0")
    _, after = run("after", f"teacher.model={bert_teacher}", "trainer.max_epochs=12")
    assert after["val/loss_ce"] < 0.7 * before["val/loss_ce"]
    assert after["val/loss_cos"] < 0.7 * before["val/loss_cos"]


@pytest.mark.parametrize(
    ("objective", "model"), [("kd", "bert"), ("diito", "bert"), ("kd", "gpt2")], ids=["kd", "diito", "causal"]
)
def test_every_divergence_trains(objective, model, run, bert_teacher, gpt2_teacher):
    teacher = {"bert": bert_teacher, "gpt2": gpt2_teacher}[model]
    steps = [f"objective={objective}", f"teacher.model={teacher}", "trainer.max_steps=8", "optimizer.lr=1e-3"]
    terms = [f"objective.terms.{term}.weight=0" for term in ("cos", "clm" if model == "gpt2" else "mlm")]
    found = {}
    for divergence in ("forward_kl", "reverse_kl", "jsd"):
        found[divergence] = run(divergence, *steps, *terms, f"objective.divergence={divergence}").summary
        assert found[divergence]["val/loss_ce"] >= 0
    assert len({summary["train/loss_ce"] for summary in found.values()}) == 3


def test_causal_models_learn_the_next_token(run, gpt2_teacher):
    folder, summary = run(
        "gpt2", f"teacher.model={gpt2_teacher}", "trainer.max_steps=4", "student.freeze_positions=true"
    )
    assert "val/loss_clm" in summary
    assert "val/loss_mlm" not in summary
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(gpt2_teacher)
    learnt = AutoModelForCausalLM.from_pretrained(folder / "student")
    assert torch.equal(learnt.transformer.wpe.weight, teacher.transformer.wpe.weight)
    assert not torch.equal(learnt.transformer.wte.weight, teacher.transformer.wte.weight)
    assert learnt.config.n_layer == 2


SHUFFLED = ["objective=diito", "objective.interchange.pairing=shuffled"]


@pytest.mark.parametrize("objective", [["objective=mlm"], ["objective=diito"], SHUFFLED], ids=",".join)
def test_resuming_in_mid_epoch_ends_in_the_same_weights(run, bert_teacher, objective):
    """Dropout, masks, order, optimizer and schedule continue from `ckpt_path` in another folder, and into a new epoch.

    `test_killed_runs` has the same of `kd` and `resume=auto`.
    """
    common = [*objective, f"teacher.model={bert_teacher}", "data.batch_size=4"]
    steps = ["trainer.max_steps=50", "checkpoint.every_n_steps=20", "trainer.val_check_interval=8"]
    whole, ended = run("whole", *common, *steps)  # 30 steps an epoch

    from potstill.training.callbacks import LastCheckpoint

    class KilledError(Exception):
        pass

    original = LastCheckpoint.save

    def save_and_die(self, trainer):
        original(self, trainer)
        if trainer.global_step == 20:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "save", save_and_die)
        with pytest.raises(KilledError):
            run("half", *common, *steps)
    half = whole.parent / "half" / "checkpoints" / "last.ckpt"
    resumed, again = run("resumed", *common, *steps, f"ckpt_path={half}")
    assert same(student(whole), student(resumed))
    assert ended["val/loss"] == again["val/loss"]
    assert ended["train/loss"] == again["train/loss"]
    assert again["train/steps"] == 50


@pytest.mark.parametrize("objective", [["objective=kd"], ["objective=diito"], SHUFFLED], ids=",".join)
def test_the_same_global_batch_gives_the_same_update_however_it_is_split(run, bert_teacher, objective):
    calm = [*objective, f"teacher.model={bert_teacher}", "trainer.max_steps=4", "optimizer.lr=1e-2"]
    dropout = ["hidden_dropout_prob", "attention_probs_dropout_prob"]
    settings = ", ".join(f"{name}: 0.0" for name in dropout)
    shape = "hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64"
    calm.append(f"+student.config={{model_type: bert, max_position_embeddings: 64, {shape}, {settings}}}")
    once = student(run("once", *calm, "data.batch_size=12").folder)
    split = student(run("split", *calm, "data.batch_size=4", "trainer.accumulate_grad_batches=3").folder)
    for key, value in once.items():
        torch.testing.assert_close(split[key], value, rtol=0, atol=2e-5, msg=key)


def test_pickles_of_the_published_scripts_train_as_their_text(run, bert_teacher, text_file, tmp_path):
    """`binarized_data.py` writes `[CLS] text [SEP]` of each text, `token_counts.py` counts all of these tokens."""
    import pickle

    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bert_teacher / "tokenizer.json"))
    tokenizer.no_truncation()
    encoded = [np.uint16(tokenizer.encode(line).ids) for line in text_file.read_text().splitlines() if line.strip()]
    assert {ids[0] for ids in encoded} == {tokenizer.token_to_id("[CLS]")}
    counts = np.bincount(np.concatenate(encoded), minlength=tokenizer.get_vocab_size()).tolist()
    for name, content in (("tokens", encoded), ("counts", counts), ("even", [1] * len(counts))):
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(content))
    common = ["objective=mlm", f"teacher.model={bert_teacher}", "trainer.max_steps=4"]
    pickled = ["data=pickled", "data.train_files=null", f"data.train.0.pickle={tmp_path}/tokens.pickle"]
    text, _ = run("text", *common)
    assert same(student(text), student(run("pickled", *common, *pickled).folder))
    counted, _ = run("counted", *common, *pickled, f"data.token_counts={tmp_path}/counts.pickle")
    assert not same(student(text), student(counted))  # texts that are too short are counted, too
    even, _ = run("even", *common, *pickled, f"data.token_counts={tmp_path}/even.pickle")
    uniform, _ = run("uniform", *common, "data.mlm_smoothing=0")
    assert same(student(even), student(uniform))
    assert not same(student(even), student(text))
    with pytest.raises(CheckpointError, match=r"data\.token_counts="):
        run("resumed", *common, *pickled, f"ckpt_path={counted}/checkpoints/last.ckpt", "trainer.max_steps=5")
    with pytest.raises(TokenizerError, match=r"^data\.tokenizer=null: "):
        run("no tokenizer", *pickled, "objective=mlm", "student=bert_tiny", "trainer.max_steps=1")
    (tmp_path / "counts.pickle").write_bytes(b"\x80\x04cposix\nsystem\n.")
    with pytest.raises(FormatError, match=r"^data\.token_counts=.*posix\.system"):
        run("hostile", *common, *pickled, f"data.token_counts={tmp_path}/counts.pickle")


def test_a_checkpoint_of_another_model_is_rejected(run, bert_teacher):
    first, _ = run("first", f"teacher.model={bert_teacher}", "trainer.max_steps=2")
    ckpt = f"ckpt_path={first}/checkpoints/last.ckpt"
    with pytest.raises(CheckpointError, match=r"student\.layers=\[0\]"):
        run("other", f"teacher.model={bert_teacher}", "student.layers=[0]", "trainer.max_steps=4", ckpt)
    with pytest.raises(CheckpointError, match=r"objective\.name=mlm: .* kd"):
        run("terms", f"teacher.model={bert_teacher}", "objective=mlm", "trainer.max_steps=4", ckpt)
    with pytest.raises(CheckpointError, match=r"data\.batch_size=4: .* 8"):
        run("batch", f"teacher.model={bert_teacher}", "data.batch_size=4", "trainer.max_steps=4", ckpt)
    (first / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=f"ckpt_path={first}/broken.ckpt"):
        run("broken", f"teacher.model={bert_teacher}", f"ckpt_path={first}/broken.ckpt")


def test_a_nan_loss_stops_the_run(run, bert_teacher, monkeypatch):
    from potstill.objectives import language

    monkeypatch.setattr(language, "cosine_distance", lambda *a, **k: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(TrainingError, match=r"step 1: term cos is nan"):
        run("nan", f"teacher.model={bert_teacher}", "trainer.max_steps=2")


def test_steps_with_a_nan_loss_can_be_skipped(run, bert_teacher, monkeypatch):
    from potstill.objectives import language
    from potstill.training import student_module as steps

    original, calls = language.cosine_distance, []

    def broken(*arguments, **options):
        calls.append(1)
        value = original(*arguments, **options)
        return value * float("nan") if len(calls) in (2, 3) else value

    monkeypatch.setattr(language, "cosine_distance", broken)
    common = [f"teacher.model={bert_teacher}", "trainer.nonfinite=skip", "data.eval_files=null", "data.eval_share=0"]
    folder, summary = run("skip", *common, "trainer.max_steps=5")
    assert (summary["train/steps"], summary["train/skipped_steps"]) == (5, 2)
    assert all(torch.isfinite(tensor).all() for tensor in student(folder).values())
    calls.clear()
    monkeypatch.setattr(language, "cosine_distance", lambda *a, **k: original(*a, **k) * float("nan"))
    monkeypatch.setattr(steps, "MOST_SKIPPED", 3)
    with pytest.raises(TrainingError, match=r"step 4: term cos is nan, as in the 3 before"):
        run("gone", *common, "trainer.max_steps=9")


def test_an_encoder_without_head_is_rejected_as_teacher_but_can_be_trained(run, tmp_path, bert_teacher):
    from transformers import AutoTokenizer, BertModel

    BertModel.from_pretrained(bert_teacher).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(bert_teacher).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="head"):
        run("kd", f"teacher.model={tmp_path}/encoder", "trainer.max_steps=2")
    _, summary = run("mlm", "objective=mlm", f"student.model={tmp_path}/encoder", "trainer.max_steps=2")
    assert summary["train/steps"] == 2


def test_token_budget_and_held_out_share(run, bert_teacher):
    _, summary = run(
        "budget", f"teacher.model={bert_teacher}", "data.max_tokens=128", "trainer.max_steps=6",
        "data.eval_files=null", "data.eval_share=0.2", "trainer.accumulate_grad_batches=2",
    )  # fmt: skip
    assert summary["val/perplexity"] == pytest.approx(math.exp(summary["val/loss_mlm"]), rel=1e-4)
    assert summary["train/steps"] == 6


def test_diito_logs_its_terms_and_agreement(run, bert_teacher):
    teacher = f"teacher.model={bert_teacher}"
    folder, summary = run(
        "diito", "objective=diito", teacher, "objective.interchange.mapping=multilayer", "trainer.max_steps=6"
    )
    assert summary["train/loss_causal_ce"] > 0
    names = ("0,1-0", "2,3-1")
    assert {f"val/interchange_{what}_{name}" for what in ("agreement", "kl") for name in names} <= summary.keys()
    for what in ("agreement", "kl"):
        mean = sum(summary[f"val/interchange_{what}_{name}"] for name in names) / 2
        assert summary[f"val/interchange_{what}"] == pytest.approx(mean)
    assert 0 < summary["val/interchange_agreement"] < 1
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "train/loss_causal_ce" in header


def test_interventions_teach_the_student_to_react(run, bert_teacher):
    teacher = f"teacher.model={bert_teacher}"
    terms = ["objective=diito", teacher, "objective.terms.causal_ce.weight=5"]
    _, start = run("before", *terms, "trainer.max_steps=0")
    _, end = run("after", *terms, "trainer.max_epochs=12")
    assert end["val/loss_causal_ce"] < 0.7 * start["val/loss_causal_ce"]
    assert end["val/interchange_kl"] < start["val/interchange_kl"]
    assert end["val/interchange_agreement"] > start["val/interchange_agreement"]


@pytest.mark.parametrize(
    "swap",
    [
        ["objective.interchange.pairing=dataset"],
        ["objective.interchange.pairing=dataset", "objective.interchange.crossway=true"],
        ["objective.interchange.pairing=shuffled"],
        ["objective.interchange.pairing=shuffled", "objective.interchange.crossway=true"],
        ["objective.interchange.crossway=true", "objective.interchange.positions=free"],
        ["objective.interchange.positions=masked", "objective.positions=masked"],
        ["objective.interchange.data_augment=true"],
        ["objective.interchange.max_tokens=3", "objective.interchange.read_site=block_input"],
        ["objective.terms.causal_cos.weight=1", "objective.terms.ce.weight=0", "objective.terms.mlm.weight=0"],
        ["data.max_tokens=80", "objective.interchange.mapping=grid"],
        [
            "objective.terms.causal_ce.weight=0",
            "objective.matches=[{teacher: 4, student: 2, loss: cos, run: counterfactual}]",
        ],
    ],
    ids=lambda o: ",".join(o).replace("objective.", ""),
)
def test_every_way_to_swap_runs(run, bert_teacher, swap):
    _, summary = run("swap", "objective=diito", f"teacher.model={bert_teacher}", "trainer.max_steps=3", *swap)
    assert summary["train/steps"] == 3
    assert summary["val/interchange_kl"] > 0


def test_a_causal_model_learns_with_interventions(run, gpt2_teacher):
    _, summary = run("gpt2", "objective=diito", f"teacher.model={gpt2_teacher}", "trainer.max_steps=3")
    assert {"val/loss_clm", "val/loss_causal_ce", "val/interchange_agreement_2-1"} <= summary.keys()


def test_a_student_of_another_architecture_and_width(run, bert_teacher):
    config = "+student.config={model_type: distilbert, n_layers: 2, dim: 16, n_heads: 2, hidden_dim: 32}"
    half = "objective.interchange.mapping=[{teacher: {layers: 1, heads: [0,2]}, student: {layers: 0}}]"
    for name, mapping in (("whole", []), ("half", [half])):
        _, summary = run(
            name, "objective=diito", f"teacher.model={bert_teacher}", config, "trainer.max_steps=2",
            "objective.terms.cos.weight=0", *mapping,
        )  # fmt: skip
        assert summary["train/loss_causal_ce"] > 0


@pytest.mark.parametrize("objective", ["kd", "diito", "clm"])
def test_a_set_of_one_sequence_is_validated(objective, run, bert_teacher, gpt2_teacher, tmp_path):
    (tmp_path / "one.txt").write_text("the of and to a in that is was he for it with\n")
    models = [f"student.model={gpt2_teacher}"] if objective == "clm" else [f"teacher.model={bert_teacher}"]
    _, summary = run(
        "one", f"objective={objective}", *models, f"data.eval_files=[{tmp_path}/one.txt]", "trainer.max_steps=1"
    )
    loss = summary["val/loss_clm" if objective == "clm" else "val/loss_mlm"]
    assert summary["val/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
