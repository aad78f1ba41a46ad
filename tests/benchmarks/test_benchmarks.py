"""The benchmarks run, print their ratios and compare equal things. How fast anything is, is not tested."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
TINY = ["--layers=2", "--hidden=32", "--vocabulary=300", "--batch=2", "--rounds=2", "--threads=1"]
RATIO = r"(\d+\.\d+) \((\d+\.\d+) to (\d+\.\d+)\)"


def run(script, *flags, tiny=TINY):
    result = subprocess.run(
        [sys.executable, str(FOLDER / script), *tiny, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def ratio(output, label):
    found = re.search(rf"{re.escape(label)}: {RATIO}", output)
    assert found, output
    median, least, most = map(float, found.groups())
    assert 0 < least <= median <= most


@pytest.mark.parametrize(("objective", "precision"), [("kd", "fp32"), ("diito", "bf16"), ("diito", "bf16-over-fp32")])
def test_step(objective, precision):
    wide = [] if precision == "fp32" else ["--hidden=128"]
    output = run("bench_step.py", objective, "--lengths", "8", "16", f"--precision={precision}", *wide)
    ratio(output, f"{objective} step, {precision}, ours / textbook")
    assert re.search(r"memory, textbook / ours: \d+\.\d+", output)
    assert len(re.findall(r"MB a sequence", output)) == 2
    assert len(re.findall(r"tokens/s, median of 2 rounds", output)) == 2
    assert "losses agree" in output


def test_the_products_of_a_step():
    output = run("bench_step.py", "diito", "--lengths", "8", "16", "--peer=products")
    ratio(output, "diito step, fp32, ours / products")
    assert "losses agree" in output


def test_products_are_all_recorded(monkeypatch):
    """Those of two layers and of attention, forward and backward."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import torch
    from products import recorded, seconds_of

    linear, states = torch.nn.Linear(8, 8), torch.randn(2, 3, 8)

    def step():
        query = linear(states).view(2, 3, 2, 4).transpose(1, 2)
        attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        (linear(attended.transpose(1, 2).reshape(2, 3, 8)) @ torch.ones(8, 5)).sum().backward()

    products, _ = recorded(step)
    sizes = sorted(first[0] + second[0][-1:] for first, second in products)
    layers = [(6, 8, 8)] * 3 + [(8, 6, 8)] * 2  # two outputs, one gradient of an input, two of the weight
    scores = [(4, 3, 4, 3)] * 3 + [(4, 3, 3, 4)] * 4  # of attention: 2 forward, 5 backward
    assert sizes == sorted([*layers, (6, 8, 5), (6, 5, 8), *scores])
    assert seconds_of(products) > 0


def test_toolkit():
    pytest.importorskip("textbrewer")
    output = run("bench_toolkit.py", "--lengths", "8", "16", "--layers=6")
    ratio(output, "task student with matches, checkpointing selective, ours / textbrewer")
    assert re.search(r"memory, textbrewer / ours: \d+\.\d+", output)
    assert "losses agree" in output


def test_loop():
    output = run("bench_loop.py", "--steps=5", "--accumulate=2")
    ratio(output, "the loop, lightning / bare")
    assert len(re.findall(r"steps/s, median of 2 rounds", output)) == 2
    assert "losses and weights agree" in output


def test_tasks(tmp_path, bert_tokenizer):
    (tmp_path / "rows.tsv").write_text("sentence\n" + "\n".join(["the man", "they have many years"] * 20) + "\n")
    output = run("bench_tasks.py", "--steps=2", f"--file={tmp_path}/rows.tsv", f"--tokenizer={bert_tokenizer}")
    for what in ("fine-tuning", "evaluation of a task"):
        ratio(output, f"{what}, ours / trainer")
    assert "losses agree" in output


def test_cache():
    output = run("bench_cache.py", "--layers=4", "--lengths", "8", "16")
    for name in ("all logits", "top 64", "drawn 50", "hidden", "hidden bf16"):
        ratio(output, f", {name} / live")
    ce = dict(re.findall(r"^  (live|all logits) +ce (\d\.\d+)", output[: output.index("language")], re.MULTILINE))
    assert ce["live"] == ce["all logits"]
    assert len(re.findall(r"bytes a (?:row|token)", output)) == 5
    gradients = [float(found) for found in re.findall(r"hidden.*gradient off by (\S+),", output)]
    assert len(gradients) == 2
    assert max(gradients) < 0.01  # the store's precision


@pytest.mark.parametrize("peer", ["textbook", "gkd", "distillation"])
def test_generative(peer):
    if peer != "textbook":
        pytest.importorskip("trl")
    output = run("bench_generative.py", "--lengths", "12", "16", f"--peer={peer}", "--written=8", "--tokens=10")
    for policy in ("off", "on"):
        ratio(output, f"{policy}-policy, fp32, ours / {peer}")
    assert re.search(rf"memory, {peer} / ours: \d+\.\d+", output)
    assert len(re.findall(r"losses agree", output)) == 2


def test_step_by_step():
    flags = ["--rows=200", "--warmup=40", "--steps=2", "--evaluated=16", "--written=12", "--hidden=48"]
    output = run("bench_step_by_step.py", *flags)
    for label in ("step-by-step training, fp32", "step-by-step training, bf16", "step-by-step generation, fp32"):
        ratio(output, f"{label}, ours / textbook")
    assert len(re.findall(r"losses agree", output)) == 2
    assert "predictions agree: 16 rows" in output


def test_embedding(text_file):
    shape = ["--layers=2", "--hidden=32", "--vocabulary=300", "--batch=4", "--rounds=2", "--threads=1"]
    output = run("bench_embedding.py", "--steps=2", "--sentences=60", f"--file={text_file}", tiny=shape)
    for what in ("live", "cached", "encoding"):
        ratio(output, f"sentence encoder, {what}, fp32, ours / sentence-transformers")
    assert "losses agree" in output


def test_table(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import table

    monkeypatch.setattr(table, "commands", lambda: [f"bench_loop.py {' '.join(TINY)} --steps=3", "bench_toolkit.py"])
    monkeypatch.setattr(table, "missing", lambda command: "textbrewer" if "toolkit" in command else None)
    monkeypatch.setattr(sys, "argv", ["table.py", f"--csv={tmp_path}/speed.csv"])
    table.main()
    (row,) = list(csv.DictReader((tmp_path / "speed.csv").open()))
    assert (row["ours"], row["peer"], row["unit"], row["rounds"]) == ("lightning", "bare", "steps/s", "2")
    assert 0 < float(row["low"]) <= float(row["ratio"]) <= float(row["high"])
    assert row["command"].startswith("bench_loop.py")
    assert "torch" in row["machine"]
    monkeypatch.setattr(table, "commands", lambda: ["bench_loop.py --steps=none"])
    with pytest.raises(SystemExit, match=r"failed: bench_loop\.py"):
        table.main()


def test_sparse():
    output = run("bench_sparse.py", "--rows=4", "--vocabulary=80", "--hidden=8", "--draws=3", tiny=())
    table = re.findall(r"^(\S.*?) +([12])" + r" +([-+]?\d+\.\d+)" * 6 + r"$", output, flags=re.MULTILINE)
    found = {(name, temperature): list(map(float, figures)) for name, temperature, *figures in table}
    assert len(found) == 2 * (8 + 9) + 4
    for temperature in "12":
        # 256 is more than the vocabulary: nothing is left out.
        _, loss_bias, _, gradient_bias, cosine, _ = found["top 256, float32", temperature]
        assert abs(loss_bias) < 1e-3
        assert gradient_bias < 1e-3
        assert cosine > 0.999
        assert found["top 8", temperature][1] < -0.01
