"""The toolkit's losses and temperatures, and the earth mover's distance between layers."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from potstill.losses import attention, hidden
from potstill.losses.soft_targets import shift_probabilities, soft_cross_entropy, softened_logit_mse
from potstill.losses.transport import earth_movers_distance, transport_plan
from potstill.objectives.soft_targets import cwsm_difficulty, flsw_difficulty, row_temperatures

GIVEN = os.environ.get("POTSTILL_PARITY_DIR")
FOLDER = Path(GIVEN or ".")
FOUND = GIVEN and (FOLDER / "textbrewer.json").is_file()
LOSSES = json.loads((FOLDER / "textbrewer.json").read_text()) if FOUND else {}
TENSORS = load_file(FOLDER / "textbrewer.safetensors") if FOUND else {}
DISTANCES = json.loads((FOLDER / "emd.json").read_text()) if GIVEN and (FOLDER / "emd.json").is_file() else []
no_losses = pytest.mark.skipif(not FOUND, reason="POTSTILL_PARITY_DIR is not set, or has no textbrewer.json")
no_distances = pytest.mark.skipif(not DISTANCES, reason="POTSTILL_PARITY_DIR is not set, or has no emd.json")


def loss_of(name: str) -> torch.Tensor:
    """A case's loss by its name, `loss/how`."""
    loss, how = name.split("/")
    mask = TENSORS["mask"] if how == "masked" else None
    first, second = ([TENSORS[f"hid_{side}{layer}"] for side in "ST"] for layer in (0, 1))
    if loss.startswith("attention_"):
        return getattr(attention, loss)(TENSORS["att_S"], TENSORS["att_T"], mask, published=True)
    if loss == "pkd":
        return hidden.pkd(*first)
    if loss in ("hidden_mse", "cos"):
        return {"hidden_mse": hidden.hidden_mse, "cos": hidden.hidden_cosine}[loss](*first, mask)
    if loss in ("fsp", "nst"):
        return getattr(hidden, loss)(*zip(first, second, strict=True), mask)
    kind = "logits" if loss == "kd_ce_tokens" else "cls"
    student, teacher = TENSORS[f"{kind}_S"], TENSORS[f"{kind}_T"]
    temperature = temperature_of(how, student, teacher)
    return {"kd_mse": softened_logit_mse}.get(loss, soft_cross_entropy)(student, teacher, temperature)


def temperature_of(how, student, teacher):
    named = dict(re.findall(r"(\w+)=([\d.]+)", how))
    base = float(named["T"])
    if how.startswith("flsw"):
        difficulty = flsw_difficulty(student, teacher, gamma=float(named["g"]))
    elif how.startswith("cwsm"):
        difficulty = cwsm_difficulty(student)
    else:
        return base
    return row_temperatures(difficulty, base, beta=float(named["b"]))


@no_losses
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    assert loss_of(name).item() == pytest.approx(LOSSES[name], rel=1e-5, abs=1e-5)


@no_losses
@pytest.mark.parametrize("name", [name for name in TENSORS if "_tau_" in name])
def test_temperatures(name):
    kind, _, *options = name.split("_")
    how = f"{kind} T=4 " + " ".join(f"{option[0]}={option[1:]}" for option in options)
    ours = temperature_of(how, TENSORS["cls_S"], TENSORS["cls_T"])
    torch.testing.assert_close(ours, TENSORS[name], rtol=1e-6, atol=1e-6)


@no_losses
def test_probability_shift():
    shifted = shift_probabilities(TENSORS["cls_T"], TENSORS["labels"])
    torch.testing.assert_close(shifted, TENSORS["cls_T_shifted"], rtol=0, atol=0)


@no_distances
@pytest.mark.parametrize("case", DISTANCES, ids=lambda case: f"{case['student_layers']} layers")
def test_earth_movers_distance(case):
    pytest.importorskip("ot", reason="POT is not installed")
    costs = torch.tensor(case["distance"], dtype=torch.float64)
    assert earth_movers_distance(costs, transport_plan(costs)).item() == pytest.approx(case["emd"], rel=1e-9)
