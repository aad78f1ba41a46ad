"""Sentence encoders that learn from rows of a query, a positive and negatives."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import PotstillError
from potstill.models.sentence_folders import sentence_settings
from potstill.runs.doctor import examine

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def encoder(make_encoder):
    return make_encoder({"query": "he was ", "passage": ""})


@pytest.fixture(scope="module")
def files(tmp_path_factory, words):
    """Rows whose positive has words of the query; with a negative and scores, and without."""
    folder, draw = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    rows = []
    for number in range(96):
        first = list(draw.choice(words, 6))
        positive, negative = [*first[:4], *draw.choice(words, number % 9)], draw.choice(words, 7)
        rows.append([" ".join(text) for text in (first, positive, negative)] + [3.0, number % 3])
    (folder / "pairs.tsv").write_text(
        "\n".join("\t".join(row) for row in [["query", "positive"], *(row[:2] for row in rows)]) + "\n"
    )
    names = ["anchor", "positive", "negative", "good", "bad"]
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (folder / "triplets.jsonl").write_text("\n".join(lines) + "\n")
    return {name: f"data.train_files=[{folder}/{name}]" for name in ("pairs.tsv", "triplets.jsonl")}


@pytest.fixture(scope="module")
def overrides(encoder, files):
    return [
        "objective=embed", f"teacher.model={encoder}", "student.layers=[0,3]", "data=text_pairs",
        files["triplets.jsonl"], "data.eval_share=0.2", "data.batch_size=8", "data.num_proc=1", "optimizer.lr=1e-3",
        "schedule=constant", "schedule.warmup_steps=0", "trainer.enable_progress_bar=false",
        "trainer.log_every_n_steps=1", "logger=csv",
    ]  # fmt: skip


FAST = ["student.dropout=0", "data.length_bin=0", "trainer.max_epochs=4"]


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


ALL = [
    "objective.terms.similarity.weight=2", "objective.terms.contrastive.weight=1",
    "objective.terms.margin_mse.weight=3", "objective.widths=[16]",
]  # fmt: skip


def test_all_terms_learn_from_triplets(run):
    folder, summary = run("run", *ALL, "trainer.max_epochs=4", "objective.document_prompt='said '")
    assert summary["data/rows"] + summary["data/negatives"] < 192
    assert (summary["data/duplicates"], summary["data/dropped"]) == (0, 0)
    assert summary["data/negatives"] == summary["data/rows"] > 60
    assert summary["val/cosine"] > 0.6
    terms = {"mse": 1, "similarity": 2, "contrastive": 1, "margin_mse": 3}
    expected = sum(weight * summary[f"val/loss_{term}"] for term, weight in terms.items())
    assert summary["val/loss"] == pytest.approx(expected, rel=1e-5)
    saved = sentence_settings("student", folder / "student")
    assert saved.prompts == {"query": "he was ", "passage": "said "}
    card = (folder / "student" / "README.md").read_text()
    assert "- `query`: `he was`" in card
    assert "- `passage`: `said`" in card
    assert (saved.prompt_of("query", None), saved.prompt_of("document", None)) == ("he was ", "said ")


def test_no_teacher_is_loaded_for_contrastive_alone(run, files):
    alone = ["objective.terms.mse.weight=0", "objective.terms.contrastive.weight=1", files["pairs.tsv"]]
    folder, summary = run("layers", *alone, "trainer.max_steps=3")
    assert "teacher/parameters" not in summary
    assert "val/cosine" not in summary
    student = ["teacher.model=null", "student.layers=null", f"student.model={folder}/student"]
    other, summary = run("more", *alone, *student, *FAST)
    losses = _metric(other, "train/loss_contrastive")
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])
    assert summary["val/loss"] == summary["val/loss_contrastive"]
    assert sentence_settings("student", other / "student").prompts == {"query": "he was ", "passage": ""}


def _metric(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_a_static_student_learns_from_pairs_with_and_without_a_teacher(run, files, bert_teacher):
    alone = ["objective.terms.mse.weight=0", "objective.terms.contrastive.weight=1", files["pairs.tsv"]]
    static = ["student.layers=null", "student=static", "student.config.hidden_size=16", "trainer.max_steps=0"]
    begun, _ = run("teacher", *alone, *static)
    lone, _ = run("alone", *alone, *static, "teacher.model=null", f"data.tokenizer={bert_teacher}")
    tables = [load_file(folder / "student" / "model.safetensors")["embedding.weight"] for folder in (begun, lone)]
    assert [table[0].tolist() for table in tables] == [[0.0] * 16] * 2
    assert tables[1].std() == pytest.approx(0.02, rel=0.1)
    assert tables[0].std() > 0.05
    stored, _ = run("stored", "teacher/cache=on", *static)
    plain, _ = run("plain", *static)
    first, second = (load_file(folder / "student" / "model.safetensors") for folder in (stored, plain))
    torch.testing.assert_close(first["embedding.weight"], second["embedding.weight"], atol=1e-3, rtol=1e-2)


def test_margins_follow_the_scores_of_the_rows(run):
    scored = ["data.columns.scores=[good,bad]", "objective.terms.mse.weight=0", "objective.terms.margin_mse.weight=1"]
    with pytest.raises(PotstillError, match=r"objective\.margin_scale=1\.0: .* up to 3, .* use 0\.67 or less"):
        run("large", *scored)
    folder, summary = run("run", *scored, "objective.margin_scale=0.25", *FAST)
    losses = _metric(folder, "train/loss_margin_mse")
    assert np.mean(losses[-8:]) < 0.3 * np.mean(losses[:8])
    assert "teacher/parameters" not in summary


def test_rows_follow_the_vectors_of_a_store(run, tmp_path):
    short = [*ALL, "trainer.max_steps=3", "student.dropout=0"]
    folder, live = run("live", *short)
    store = ["teacher/cache=on", f"teacher.cache.folder={tmp_path}/stores", "teacher.cache.precision=float32"]
    _, found = run("cached", *short, *store)
    for name in (
        "train/loss_mse",
        "train/loss_margin_mse",
        "train/loss_similarity",
        "val/loss_margin_mse",
        "val/cosine",
    ):
        assert found[name] == pytest.approx(live[name], rel=1e-4), name
    assert not (tmp_path / "stores" / "eval").exists()  # held-out rows have the same texts
    student = ["teacher.model=null", "student.layers=null", f"student.model={folder}/student"]
    _, more = run("more", *short, *store, *student)
    assert more["val/cosine"] > live["val/cosine"]


def test_a_resumed_run_is_the_same(run, tmp_path):
    cut = [*ALL, "trainer.accumulate_grad_batches=2", "data.batch_size=4"]
    whole, summary = run("whole", *cut, "trainer.max_steps=6")
    run("first", *cut, "trainer.max_steps=3")
    first, again = run("first", *cut, "trainer.max_steps=6", f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt")
    one, other = weights(whole), weights(first)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert again["train/loss_contrastive"] == summary["train/loss_contrastive"]


def test_two_processes_make_the_update_of_one(overrides, in_two_processes):
    terms = ("mse", "similarity", "contrastive", "margin_mse")
    figures = [f"{part}/loss_{term}" for term in terms for part in ("train", "val")]
    in_two_processes([*overrides, *ALL, "student.dropout=0", "trainer.max_steps=3"], 2, figures)


def test_doctor_measures_rows(overrides, compose_config, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path))
    examine(compose_config(*overrides, *ALL))
    found = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert {"measured", "memory needed", "time"} <= {name.strip() for name in found}


@pytest.mark.parametrize(
    ("further", "key"),
    [
        (["objective.terms.contrastive.weight=1", "data=text_files", "TEXT"],
         r"objective\.terms\.contrastive\.weight=1\.0: .*data=text_pairs"),
        (["objective.terms.margin_mse.weight=1", "PAIRS"],
         r"objective\.terms\.margin_mse\.weight: .*have no negatives.*data\.columns\.negatives"),
        (["teacher.model=null"], r"teacher\.model=null"),
        (["teacher.model=null", "student.layers=null", "student=bert_tiny"], r"teacher\.model=null"),
        (["teacher.model=null", "student.layers=null", "student=bert_tiny", "objective.terms.mse.weight=0",
          "objective.terms.contrastive.weight=1"], r"objective\.pooling=null"),
        (["data.columns.query=text"], r"data\.train_files: .*line 1: no column 'text'"),
        (["data.train_files=[none.tsv]"], r"data\.train_files: .*none\.tsv"),
        (["data.train_files=null"], r"data\.train_files=null"),
        (["data.eval_share=0.999999"], r"data\.eval_share=0\.999999"),
        (["objective=kd"], r"data=text_pairs: is read by objective=embed"),
    ],
)  # fmt: skip
def test_user_errors(further, key, run, files, text_file):
    own = {"PAIRS": files["pairs.tsv"], "TEXT": f"data.train_files=[{text_file}]"}
    with pytest.raises(PotstillError, match=key):
        run("error", *(own.get(word, word) for word in further))
