"""The fused divergences against the generalised Jensen-Shannon divergence of TRL's GKDTrainer."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from potstill.losses.soft_targets import IGNORED_LABEL, generalized_js_divergence
from potstill.losses.vocabulary import vocabulary_losses

GIVEN = os.environ.get("POTSTILL_PARITY_DIR")
FOLDER = Path(GIVEN or ".")
FOUND = GIVEN and (FOLDER / "generalized_jsd.json").is_file()
CASES = json.loads((FOLDER / "generalized_jsd.json").read_text()) if FOUND else []
TENSORS = load_file(FOLDER / "generalized_jsd.safetensors") if FOUND else {}
pytestmark = pytest.mark.skipif(not CASES, reason="POTSTILL_PARITY_DIR is not set, or has no generalized_jsd.json")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['tensors']}-{case['beta']}-{case['temperature']}")
@pytest.mark.parametrize("fused", [True, False])
def test_the_divergences_of_trl(case, fused):
    """Beta 0 is KL(teacher || student) there, 1 the reverse; no T^2, and a mean over labelled positions."""
    own, beta, temperature = case["tensors"], case["beta"], case["temperature"]
    counted = TENSORS[f"{own}.labels"] != IGNORED_LABEL
    student = TENSORS[f"{own}.student_logits"].clone().requires_grad_()
    rows, teacher = student[counted], TENSORS[f"{own}.teacher_logits"][counted]
    if fused:
        same = torch.eye(rows.shape[1])  # the logits are the states
        total = vocabulary_losses(
            rows,
            same,
            None,
            teacher_NE=teacher,
            teacher_weight_VE=same,
            temperature=temperature,
            divergence={0: "forward_kl", 1: "reverse_kl"}.get(beta, "jsd"),
            beta=beta,
            weights={"ce": temperature**-2},
            denominators={"ce": len(rows)},
            chunk_rows=4,
        ).total
    elif 0 < beta < 1:
        total = generalized_js_divergence(rows, teacher, temperature, beta=beta) / temperature**2
    else:
        pytest.skip("the dense divergence is another function at its ends")
    total.backward()
    assert total.item() == pytest.approx(case["loss"], rel=1e-5)
    assert student.grad.norm().item() == pytest.approx(case["grad_norm"], rel=1e-5, abs=1e-7)
