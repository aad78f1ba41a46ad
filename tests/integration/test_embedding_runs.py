"""Sentence encoders that follow a teacher's vectors."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from potstill.cli.api import TrainingResult
from potstill.data.common.tokenizers import load_backend
from potstill.errors import PotstillError
from potstill.methods.embedding.models import open_encoder
from potstill.models.load import load_base_model
from potstill.models.sentence import add_dense
from potstill.models.sentence_folders import SentenceSettings, sentence_settings
from potstill.models.static import StaticConfig
from potstill.runs.checks import validate_evaluate, validate_train

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def teacher(make_encoder):
    return make_encoder({"query": "he was ", "document": ""})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, teacher, words):
    """Scored pairs: the more words two texts have in common, the higher the score."""
    folder, draw = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    lines = ["one\tother\tscore"]
    for _ in range(40):
        first, same = list(draw.choice(words, 10)), int(draw.integers(0, 11))
        lines.append(f"{' '.join(first)}\t{' '.join([*first[:same], *draw.choice(words, 10 - same)])}\t{same / 2}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    columns = ["benchmark.text_columns=[one,other]", "benchmark.label_column=score"]
    return ["benchmark=sts", f"benchmark.eval_file={folder}/pairs.tsv", *columns]


@pytest.fixture(scope="module")
def overrides(teacher, text_file, eval_file):
    return [
        "objective=embed", f"teacher.model={teacher}", "student.layers=[0,3]", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "data.batch_size=16", "data.num_proc=1", "optimizer.lr=1e-3",
        "schedule=constant", "schedule.warmup_steps=0", "trainer.enable_progress_bar=false",
        "trainer.log_every_n_steps=1", "logger=csv", "objective.terms.similarity.weight=2",
    ]  # fmt: skip


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def training_losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss_mse"]) for row in csv.DictReader(file) if row.get("train/loss_mse")]


def vectors(folder, texts=("the man was there", "who")):
    side, _ = open_encoder("model", str(folder))
    tokenizer = load_backend(folder)
    with torch.no_grad():
        return side.encoder.encode([np.array(tokenizer.encode(text).ids) for text in texts], 0)


def test_a_student_of_layers_is_trained_saved_and_compared(run, pairs, teacher, tmp_path, evaluated):
    match = "objective.matches=[{teacher: 4, student: 2, loss: hidden_mse, weight: 0.1}]"
    folder, summary = run("run", *pairs, match, "trainer.max_epochs=12", "trainer.val_check_interval=8")
    losses = training_losses(folder)
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])
    assert summary["val/cosine"] > 0.6
    assert summary["data/texts"] == 120
    assert 0 < summary["train/best_step"] <= summary["train/steps"] == 96
    (matched,) = {name for name in summary if name.startswith("val/loss_")} - {"val/loss_mse", "val/loss_similarity"}
    parts = summary["val/loss_mse"], 2 * summary["val/loss_similarity"], 0.1 * summary[matched]
    assert summary["val/loss"] == pytest.approx(sum(parts), rel=1e-5)
    own = sentence_settings("student", folder / "student")
    assert own == sentence_settings("teacher", teacher)
    card = (folder / "student" / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert "he was" in card
    raw = AutoModel.from_pretrained(folder / "student").eval()
    ids = torch.tensor([load_backend(folder / "student").encode("the man was there").ids])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(raw(input_ids=ids).last_hidden_state.mean(1), dim=-1)
    torch.testing.assert_close(vectors(folder / "student")[:1], expected, atol=1e-5, rtol=0)

    models = [f"model=[{teacher},{folder}/student]", "names=[teacher,student]"]
    table = evaluated(tmp_path / "table", *pairs, *models)
    value, found = table.value, table.summary
    assert value == found["teacher/test/spearman"] == pytest.approx(summary["val/teacher_spearman"], abs=1e-6)
    assert found["student/test/spearman"] == pytest.approx(summary["val/spearman"], abs=1e-6)
    difference = found["student/test/spearman"] - value
    assert found["student/test/spearman_difference"] == pytest.approx(difference)
    assert found["student/test/spearman_difference_low"] <= difference <= found["student/test/spearman_difference_high"]
    rows = (tmp_path / "table" / "predictions_student.tsv").read_text().splitlines()
    assert len(rows) == 41


def test_retrieval_is_watched_and_compared(run, teacher, words, tmp_path, evaluated):
    draw = np.random.default_rng(1)
    (tmp_path / "qrels").mkdir()
    texts = [" ".join(draw.choice(words, 8)) for _ in range(60)]
    documents = [json.dumps({"_id": f"d{n}", "text": text}) for n, text in enumerate(texts)]
    queries = [json.dumps({"_id": f"q{n}", "text": " ".join(texts[n].split()[n % 4 :])}) for n in range(0, 60, 2)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(documents))
    (tmp_path / "queries.jsonl").write_text("\n".join(queries))
    (tmp_path / "qrels" / "test.tsv").write_text("".join(f"q{n}\td{n}\t1\n" for n in range(0, 60, 2)))
    common = ["benchmark=retrieval", f"benchmark.folder={tmp_path}", "benchmark.query_prompt=''"]
    common += ["benchmark.metrics=[ndcg@10,recall@1]"]
    half = ["strategy=cpu_bf16", "trainer.max_steps=2", "trainer.val_check_interval=1"]
    folder, summary = run("run", *common, *half)
    assert 0.5 <= summary["val/recall@1"] <= summary["val/ndcg@10"] <= 1
    models = [f"model=[{teacher},{folder}/student]", "names=[teacher,student]"]
    table = evaluated(tmp_path / "table", *common, *models, "strategy=cpu_bf16")
    value, found = table.value, table.summary
    assert value == found["teacher/test/ndcg@10"] == pytest.approx(summary["val/teacher_ndcg@10"], abs=1e-6)
    assert found["student/test/recall@1"] == pytest.approx(summary["val/recall@1"], abs=1e-6)
    rows = [line.split() for line in (tmp_path / "table" / "predictions_student.trec").read_text().splitlines()]
    assert len(rows) == 30 * 10
    first = np.mean([row[0][1:] == row[2][1:] for row in rows if row[3] == "1"])
    assert first == pytest.approx(found["student/test/recall@1"])


def test_a_resumed_run_is_the_same(run, tmp_path):
    cut = ["trainer.accumulate_grad_batches=2", "data.batch_size=8"]
    whole, summary = run("whole", *cut, "trainer.max_steps=6")
    run("first", *cut, "trainer.max_steps=3")
    first, again = run("first", *cut, "trainer.max_steps=6", f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt")
    one, other = weights(whole), weights(first)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert again["train/loss_similarity"] == summary["train/loss_similarity"]
    assert not any(name.startswith("teacher.") for name in one)


def plain(summary):
    return {name.replace(" ", "_"): value for name, value in summary.items()}


def test_a_static_student_begins_near_the_teacher_and_goes_on(run, pairs, tmp_path, evaluated):
    first, summary = run("first", *STATIC, *pairs, "trainer.max_steps=0")
    assert summary["val/cosine"] > 0.4
    modules = json.loads((first / "student" / "modules.json").read_text())
    assert [own["type"].rpartition(".")[2] for own in modules] == ["StaticEmbedding", "Normalize"]
    assert (first / "student" / "tokenizer.json").is_file()
    assert "AutoModel` cannot open it" in (first / "student" / "README.md").read_text()
    last = [*STATIC, "optimizer.lr=1e-2", "data.batch_size=8", "trainer.max_steps=40"]
    whole, trained = run("whole", *last, *pairs)
    opened = TrainingResult.open(whole).student(torch.tensor([[5, 6]])).last_hidden_state
    table = load_file(whole / "student" / "model.safetensors")["embedding.weight"]
    torch.testing.assert_close(opened[0], table[[5, 6]])
    losses = training_losses(whole)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    run("cut", *last, *pairs, "trainer.max_steps=20")
    again, _ = run("cut", *last, *pairs, f"ckpt_path={tmp_path}/cut/checkpoints/last.ckpt")
    ours, theirs = weights(again), weights(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    further = ["student.layers=null", f"student.model={whole}/student", "trainer.max_steps=0", *pairs]
    _, resumed = run("further", *further)
    assert resumed["val/spearman"] == pytest.approx(trained["val/spearman"], abs=1e-6)
    models = [f"model={whole}/student", "names=[trained]", "export=[onnx,int8]"]
    found = plain(evaluated(tmp_path / "table", *pairs, *models).summary)
    assert found["trained/test/spearman"] == pytest.approx(trained["val/spearman"], abs=1e-6)
    assert (found["trained/width"], found["trained/parameters_without_embeddings"]) == (16, 0)
    assert found["trained_onnx/test/spearman"] == pytest.approx(trained["val/spearman"], abs=1e-4)
    assert found["trained_int8/test/spearman"] == pytest.approx(trained["val/spearman"], abs=0.05)
    assert found["trained_int8/export_difference"] > found["trained_onnx/export_difference"]
    assert {path.name for path in (tmp_path / "table").glob("predictions*")} == {
        f"predictions_{name}.tsv" for name in ("trained", "trained_onnx", "trained_int8")
    }


def test_costs_are_those_of_an_encoder_without_a_head(teacher, tmp_path, evaluated):
    passes = [
        "benchmark=efficiency",
        "benchmark.batches=[1]",
        "benchmark.lengths=[4]",
        "export=onnx",
        "data.max_length=32",
    ]
    found = plain(evaluated(tmp_path / "costs", *passes, f"model={teacher}", "names=[m]").summary)
    model = load_base_model("model", str(teacher))
    assert found["m/parameters"] == model.num_parameters()
    assert found["m_onnx/gflop"] == found["m/gflop"] > 0
    assert (tmp_path / "costs" / "export" / "m" / "onnx" / "model.onnx").is_file()


def test_two_processes_make_the_update_of_one(overrides, in_two_processes):
    own = ["student.dropout=0", "trainer.max_steps=3", "objective.terms.cos.weight=1", "objective.widths=[8]"]
    figures = ["train/loss_mse", "train/loss_similarity", "train/grad_norm", "val/loss_similarity", "val/cosine"]
    folder = in_two_processes([*overrides, *own], 4, figures)
    assert sentence_settings("student", folder / "student").dense == "2_Dense"


SMALL = [
    "student.layers=null", "student=bert_tiny", "student.config.hidden_size=16", "student.config.num_hidden_layers=1",
    "student.config.intermediate_size=16",
]  # fmt: skip


STATIC = ["student.layers=null", "student=static", "student.config.hidden_size=16"]
BIGRU = ["student.layers=null", "student=bigru", "student.config.hidden_size=16", "student.config.embedding_size=8"]


@pytest.mark.parametrize(
    ("further", "width"),
    [
        (BIGRU, 16),
        (STATIC, 16),
        ([*STATIC, "student.config.hidden_size=32", "objective.widths=[8,4]", "student.config.smoothing=null"], 32),
        ([*STATIC, "data.tokenizer=OTHER", "objective.prompt=query", "objective.terms.similarity.weight=0"], 16),
        (SMALL, 16),
        ([*SMALL, "objective.projection=student"], 32),
        ([*SMALL, "objective.widths=[8,4]"], 16),
        ([*SMALL, "objective.projection=student", "objective.widths=[8]"], 32),
        (["objective.widths=[16,8]", "objective.prompt=query"], 32),
        ([*SMALL, "data.tokenizer=OTHER", "objective.prompt='say '"], 16),
    ],
)
def test_widths_and_tokenizers(further, width, run, gpt2_tokenizer, teacher):
    words = [word.replace("OTHER", str(gpt2_tokenizer)) for word in further]
    folder, summary = run("run", *words, "trainer.max_steps=2")
    made = vectors(folder / "student")
    assert made.shape == (2, width)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(2))
    assert np.isfinite(summary["val/loss_mse"])
    if "objective.prompt=query" in further:
        assert summary["val/cosine"] > 0.2  # begins as the teacher's layers, turned


def test_a_dense_layer_of_the_teacher_is_kept_and_turned(run, teacher, tmp_path):
    model = load_base_model("x", str(teacher))
    add_dense(model, torch.randn(12, 32) / 6, torch.zeros(12))
    from potstill.models.save import save_student
    from potstill.models.sentence import DENSE, write_sentence_model

    settings, dense = SentenceSettings("mean", True, "2_Dense"), model._modules.pop(DENSE)
    place = tmp_path / "dense"
    save_student(model, teacher, place, "", lambda fresh: write_sentence_model(model, dense, settings, fresh))
    options = [f"teacher.model={place}", "student.layers=[0,1,2,3]", "trainer.max_steps=0"]
    plain, summary = run("plain", *options)
    torch.testing.assert_close(vectors(plain / "student"), vectors(place), atol=1e-5, rtol=0)
    assert summary["val/cosine"] == pytest.approx(1, abs=1e-5)
    turned, summary = run("turned", *options, "objective.widths=[6]")
    ours, theirs = vectors(turned / "student"), vectors(place)
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-5, rtol=0)
    assert summary["val/loss_mse"] < 1e-4


@pytest.mark.parametrize(
    ("further", "key"),
    [
        (["teacher.model=BERT"], r"teacher\.model=.*no modules\.json.*objective\.pooling="),
        (["teacher.model=null"], r"teacher\.model=null"),
        (["student.layers=[0,9]"], r"student\.layers=\[0,9\]"),
        (["objective.terms.mse.weight=0", "objective.terms.similarity.weight=0"], r"objective\.terms: all weights"),
        (["objective.widths=[32]"], r"objective\.widths=\[32\]: 32 is not below the full width, 32"),
        (["data.packed=true"], r"data\.packed=true"),
        (["data.max_length=100"], r"data\.max_length=100: .* at most 64"),
        (["data.min_length=500"], r"data\.min_length=500"),
        (["trainer.strategy=fsdp"], r"trainer\.strategy=fsdp"),
        (["benchmark=sst2", "data=text_files"], r"benchmark=sst2: .*benchmark=sts"),
        (["benchmark=sts"], r"benchmark\.(eval_file|hub)|HF_HUB_OFFLINE|cannot be loaded"),
        (["benchmark=sts", "benchmark.eval_file=PAIRS", "benchmark.text_columns=[one]",
          "benchmark.label_column=score"], r"benchmark\.text_columns=.*has 2 text columns"),
        (["benchmark=sts", "benchmark.eval_file=PAIRS", "benchmark.metrics=[mse]"], r"benchmark\.metrics=\['mse'\]"),
        (["benchmark=sts", "benchmark.monitor=loss"], r"benchmark\.monitor=loss"),
        (["benchmark=paraphrases", "benchmark.eval_file=PAIRS", "benchmark.text_columns=[one,other]",
          "benchmark.label_column=score"], r"pairs\.tsv' line \d+: score .*average_precision"),
        (["benchmark=retrieval"], r"benchmark\.folder=null"),
        (["benchmark=retrieval", "benchmark.folder=."], r"benchmark\.folder: '.*corpus\.jsonl'"),
        (["benchmark=retrieval", "benchmark.metrics=[ndcg]"], r"benchmark\.metrics=\['ndcg'\]: some of ndcg@k"),
        (["student.layers=null", "student=bigru", "student.checkpointing=full"], r"student\.checkpointing=full"),
        ([*STATIC, "compile=true"], r"compile=true: .* static"),
        ([*STATIC, "objective.projection=student"], r"objective\.projection=student: .* static"),
        ([*STATIC, "student.config.hidden_size=40"], r"objective\.projection=teacher: .* 40 wide, the teacher's 32"),
        ([*STATIC, "objective.matches=[{teacher: 4, student: 0, loss: hidden_mse}]"], r"objective\.matches: .* static"),
        ([*STATIC, "student.config.smoothing=much"], r"student\.config=.*smoothing"),
        (["data=conversations"], r"^data=conversations"),
    ],
)  # fmt: skip
def test_user_errors(further, key, run, bert_teacher, pairs, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = pairs[1].partition("=")[2]
    words = [word.replace("BERT", str(bert_teacher)).replace("PAIRS", file) for word in further]
    with pytest.raises(PotstillError, match=key):
        run("error", *words)


def test_a_static_model_is_of_this_objective_alone(compose_config, text_file, bert_teacher, tmp_path):
    StaticConfig(vocab_size=40, hidden_size=4).save_pretrained(tmp_path)
    common = [f"data.train_files=[{text_file}]"]
    for own in (
        ["student=static", "objective=mlm", f"data.tokenizer={bert_teacher}"],
        ["student=static", "objective=kd", f"teacher.model={bert_teacher}"],
        ["objective=kd", f"teacher.model={tmp_path}"],
    ):
        with pytest.raises(PotstillError, match=r"objective=\w+: a static model .*use embed"):
            validate_train(compose_config(*common, *own))
    with pytest.raises(PotstillError, match=r"student\.model=null: a static teacher"):
        validate_train(
            compose_config(*common, "objective=embed", "objective.pooling=mean", f"teacher.model={tmp_path}")
        )
    evaluation = ["benchmark=mlm", f"data.eval_files=[{text_file}]", f"model={tmp_path}"]
    with pytest.raises(PotstillError, match=r"model=.*makes vectors of texts"):
        validate_evaluate(compose_config(*evaluation, name="evaluate"))


def test_a_plain_model_with_a_pooling_of_its_own(run, bert_teacher, compose_config, pairs):
    folder, _ = run("run", f"teacher.model={bert_teacher}", "objective.pooling=cls", "trainer.max_steps=1")
    assert sentence_settings("student", folder / "student").pooling == "cls"
    with pytest.raises(PotstillError, match=r"model=.*no modules\.json"):
        validate_evaluate(compose_config(*pairs, f"model={bert_teacher}", name="evaluate"))
