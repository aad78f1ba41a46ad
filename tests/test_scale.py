"""The arithmetic of docs/scale.md, made anew."""

import re
from pathlib import Path
from statistics import median

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
STUDENT, TEACHER, STUDENT_BLOCKS, TEACHER_BLOCKS = 66_985_530, 109_514_298, 42_527_232, 85_054_464
TOKENS, STEP, ACHIEVED = 3.3e9, 512_000, 0.3 * 312e12
BANDWIDTH = {8: 200e9, 64: 20e9}
CLOSE = {"rel": 6e-3}  # figures of three digits


def table(header):
    """The numbers of the table that begins with these columns, a list a row."""
    (body,) = re.findall(rf"^\| {re.escape(header)} .*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.M)
    return [
        [float(cell.replace(",", "").replace("%", "")) for cell in row.strip(" |").split("|")]
        for row in body.splitlines()
    ]


def ddp_bytes(processes):
    return 2 * (processes - 1) / processes * 4 * STUDENT


def fsdp_bytes(processes, micro, gathers):
    blocks = micro * (gathers * STUDENT_BLOCKS + TEACHER_BLOCKS)
    rest = STUDENT - STUDENT_BLOCKS + TEACHER - TEACHER_BLOCKS
    return (processes - 1) / processes * 4 * (blocks + rest + STUDENT)


def seconds(processes, step=STEP, achieved=ACHIEVED):
    compute = (6 * STUDENT + 2 * TEACHER) * step / processes / achieved
    return compute, ddp_bytes(processes) / BANDWIDTH[processes] if processes > 1 else 0.0


def efficiency(*args, **kwargs):
    compute, sent = seconds(*args, **kwargs)
    return 100 * compute / (compute + sent)


def test_parameters_are_those_of_the_models():
    import torch
    from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

    with torch.device("meta"):
        teacher, student = BertForMaskedLM(BertConfig()), DistilBertForMaskedLM(DistilBertConfig())
    counted = [
        sum(weight.numel() for weight in part.parameters())
        for part in (student, student.distilbert.transformer, teacher, teacher.bert.encoder)
    ]
    assert counted == [STUDENT, STUDENT_BLOCKS, TEACHER, TEACHER_BLOCKS]
    for count in counted:
        assert f"{count:,}" in TEXT


def test_bytes_between_processes():
    rows = table("N | m")
    assert [row[:2] for row in rows] == [[8, 1], [8, 8], [64, 1], [64, 8]]
    for n, m, ddp, fsdp, gradients in rows:
        found = [ddp_bytes(n), fsdp_bytes(n, m, 2), fsdp_bytes(n, m, 1)]
        assert [ddp, fsdp, gradients] == [round(size / 1e6) for size in found]


def test_costs_of_a_pass():
    rows = table("N | tokens")
    assert [row[0] for row in rows] == [1, 8, 64]
    for n, tokens, compute, sent, hours, gpu_hours, efficient in rows:
        took = seconds(n)
        assert tokens == STEP / n
        assert [compute, sent] == [pytest.approx(took[0], **CLOSE), pytest.approx(took[1], rel=0.03)]
        assert hours == pytest.approx(TOKENS / STEP * sum(took) / 3600, **CLOSE)
        assert gpu_hours == pytest.approx(n * TOKENS / STEP * sum(took) / 3600, **CLOSE)
        assert efficient == pytest.approx(efficiency(n), **CLOSE)


def test_statements_about_other_assumptions():
    assert round(efficiency(64, achieved=ACHIEVED / 2)) == 80
    assert round(efficiency(64, step=4 * STEP)) == 89
    held = (16 * STUDENT + 4 * TEACHER) / 1e9
    assert held == pytest.approx(1.5, rel=0.02)


def test_measured_ratios():
    rows = table("pair")
    assert all(row[3] == pytest.approx(row[2] / row[1], abs=6e-3) for row in rows)
    assert f"median ratio is {median(row[3] for row in rows):.2f}" in TEXT
