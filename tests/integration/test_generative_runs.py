"""Decoders that learn from a teacher on completions which they write themselves."""

import csv
import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from potstill.errors import CacheError, PotstillError
from potstill.methods.generative import sequences
from potstill.runs.checks import validate_evaluate, validate_train

pytestmark = pytest.mark.integration

QUIET = ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "logger=csv"]


@pytest.fixture(scope="module")
def overrides(chats):
    return [
        "data=conversations", f"data.train_files=[{chats}/train.jsonl]", f"data.eval_files=[{chats}/eval.jsonl]",
        f"data.chat_template={chats}/template.jinja", "data.batch_size=8", "optimizer.lr=2e-3", *QUIET,
    ]  # fmt: skip


def weights(folder):
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return saved["state_dict"]


def assert_equal(one, other):
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def series(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture
def gkd(gpt2_teacher):
    return [
        "objective=gkd", f"teacher.model={gpt2_teacher}", "student.layers=[0,3]", "objective.sampling.max_new_tokens=6",
        "schedule=constant", "schedule.warmup_steps=0",
    ]  # fmt: skip


def test_on_given_completions_it_is_kd_to_the_bit(run, gkd):
    common = ["trainer.max_steps=4", "objective.terms.clm.weight=0.5", "objective.divergence=jsd", "objective.beta=0.3"]
    one, summary = run("gkd", *gkd, *common, "objective.on_policy=0")
    kd = [word for word in gkd if "sampling" not in word and word != "objective=gkd"]
    same = ["objective=kd", "objective.temperature=1", "objective.terms.ce.weight=1", "objective.terms.cos.weight=0"]
    other, plain = run("kd", *kd, *same, *common)
    assert_equal(weights(one), weights(other))
    figures = ["train/loss_ce", "train/loss_clm", "train/grad_norm", "val/loss_ce", "val/perplexity"]
    assert [summary[name] for name in figures] == [plain[name] for name in figures]
    assert summary["val/exact_match"] <= 1
    assert "Samples" in (one / "report.html").read_text()


def test_a_resumed_run_samples_the_same(run, gkd, tmp_path):
    half = [*gkd, "objective.on_policy=0.6", "objective.terms.clm.weight=0.5", "trainer.accumulate_grad_batches=2"]
    whole, summary = run("whole", *half, "trainer.max_steps=6")
    sampled = series(whole, "train/completion_tokens")
    assert 0 < len(sampled) < 6
    assert all(1 <= length <= 6 for length in sampled)
    assert len(series(whole, "train/loss_clm")) == len(series(whole, "train/loss_ce")) == 6
    run("first", *half, "trainer.max_steps=3")
    first, again = run("first", *half, "trainer.max_steps=6", f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt")
    assert_equal(weights(whole), weights(first))
    assert again["train/loss"] == summary["train/loss"]
    assert series(first, "train/completion_tokens") == sampled


def test_two_processes_make_the_update_of_one(overrides, gkd, in_two_processes):
    calm = "objective.sampling.top_p=0.9 objective.on_policy=1 objective.terms.clm.weight=0.5 student.dropout=0"
    figures = ["train/loss_ce", "train/loss_clm", "train/grad_norm", "train/completion_tokens", "val/loss_ce"]
    figures += ["val/rouge_l", "val/exact_match", "val/completion_tokens"]
    in_two_processes([*overrides, *gkd, *calm.split(), "trainer.max_steps=3"], 2, figures)


def test_other_options_go_together_with_sampling(run, gkd):
    options = [
        "objective.on_policy=1", "objective.terms.clm.weight=0.5", "objective.gradient_shares_every=1",
        "objective.matches=[{teacher: 4, student: 2, loss: hidden_mse}]", "trainer.precision=bf16-mixed",
        "student.checkpointing=full", "data.max_tokens=200", "trainer.accumulate_grad_batches=2",
        "objective.sampling.batch_size=3", "objective.sampling.max_new_tokens=60",
    ]  # fmt: skip
    folder, summary = run("options", *gkd, *options, "trainer.max_steps=2")
    shares = [summary[f"train/gradient_share_{term}"] for term in ("ce", "clm", "match_0")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    assert 6 < summary["train/completion_tokens"] <= 60
    assert "say " in (folder / "report.html").read_text()  # a prompt of the samples


def test_completions_of_the_teacher_are_written_once(run, gkd, cache, monkeypatch):
    """A killed run keeps its parts; the second one writes the others and trains on the same tokens."""
    monkeypatch.setattr(sequences, "PART", 20)
    monkeypatch.setenv("POTSTILL_CACHE", str(cache))
    hard = ["objective.terms.ce.weight=0", "objective.terms.clm.weight=1", "objective.on_policy=0"]
    words = [*gkd, *hard, "objective.sequence_kd=true", "trainer.max_steps=4"]
    written, limit = [], 2

    def store(path, completions, plain=sequences._store):
        if len(written) == limit:
            raise KeyboardInterrupt
        written.append(path)
        plain(path, completions)

    monkeypatch.setattr(sequences, "_store", store)
    with pytest.raises(KeyboardInterrupt):
        run("killed", *words)
    limit = 100
    one, summary = run("one", *words)
    assert len(written) == len(set(written)) == 5  # of 96 rows
    assert summary["data/learned"] <= 96 * 6
    other, again = run("other", *words)
    assert len(written) == 5
    assert_equal(weights(one), weights(other))
    assert again["train/loss_clm"] == summary["train/loss_clm"]
    written[0].write_bytes(written[0].read_bytes()[:-30])
    with pytest.raises(CacheError, match=str(written[0])):
        run("damaged", *words)


def test_models_are_compared_by_what_they_write(run, chats, gpt2_teacher, tmp_path, compose_config, evaluated):
    """A model that has learned to repeat the word, against one that has not."""
    folder, learned = run("learned", "objective=clm", f"student.model={gpt2_teacher}", "trainer.max_epochs=16")
    models = f"model=[{folder}/student,{gpt2_teacher}]"
    names = ["benchmark=generation", f"data.eval_files=[{chats}/eval.jsonl]"]
    template = f"data.chat_template={chats}/template.jinja"
    options = [*names, template, "benchmark.max_new_tokens=8", "names=[learned,raw]", models]
    table = evaluated(tmp_path / "table", *options)
    assert table.value >= 0.3
    found = table.summary
    assert found["learned/test/perplexity"] == pytest.approx(learned["val/perplexity"], rel=1e-4)
    low, value, high = (found[f"learned/test/exact_match{end}"] for end in ("_low", "", "_high"))
    assert low < value <= high
    assert found["raw/test/exact_match"] == 0
    assert found["raw/test/exact_match_difference"] == pytest.approx(-value)
    assert found["raw/test/exact_match_difference_high"] < 0
    lines = [json.loads(line) for line in (tmp_path / "table" / "predictions_learned.jsonl").read_text().splitlines()]
    assert sum(line["right"] for line in lines) / len(lines) == value
    wanted = [json.loads(line)["answer"] for line in (chats / "eval.jsonl").read_text().splitlines()]
    assert sorted(line["expected"] for line in lines) == sorted(wanted)
    assert "Samples of raw" in (tmp_path / "table" / "report.html").read_text()

    for wrong, key in (
        ("benchmark.monitor=perplexity", r"benchmark\.monitor=perplexity"),
        ("benchmark.max_new_tokens=64", r"benchmark\.max_new_tokens=64: .* at most 63"),
        ("export=onnx", "export=onnx"),
    ):
        with pytest.raises(PotstillError, match=key):
            validate_evaluate(compose_config(*options, wrong, name="evaluate"))


@pytest.mark.parametrize(
    ("further", "key"),
    [
        (["objective.terms.ce.weight=0", "objective.terms.clm.weight=1"], r"objective\.on_policy=0\.5: "),
        (["objective.sampling.max_new_tokens=64"], r"objective\.sampling\.max_new_tokens=64: .* at most 63"),
        (["trainer.strategy=fsdp"], r"trainer\.strategy=fsdp: .*strategy=ddp"),
        (["teacher.model=BERT", "student.layers=null"], "the student is masked"),
        (["student.layers=null", "student.model=BERT"], "the student is masked"),
        (["student.layers=null", "student.model=OTHER"], r"one tokenizer; .*teacher\.tokenizer=own \(uld\)"),
        (["teacher.tokenizer=own"], r"teacher\.tokenizer"),
        (["teacher/cache=on"], r"teacher\.cache\.enabled=true"),
        (["teacher.model=null", "student.layers=null"], r"teacher\.model=null"),
    ],
)
def test_user_errors(further, key, run, gkd, bert_teacher, tmp_path):
    save_pretrained_gpt2(tmp_path / "other", 3000)
    filled = (word.replace("BERT", str(bert_teacher)).replace("OTHER", f"{tmp_path}/other") for word in further)
    with pytest.raises(PotstillError, match=key):
        run("error", *gkd, *filled)


def save_pretrained_gpt2(folder, vocabulary):
    GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)


def test_other_data(compose_config, text_file):
    config = compose_config("objective=gkd", "teacher.model=x", "data=text_files", f"data.train_files=[{text_file}]")
    with pytest.raises(PotstillError, match=r"^data=text_files: .* data=conversations$"):
        validate_train(config)
