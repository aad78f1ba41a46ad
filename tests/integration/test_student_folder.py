"""`student/` belongs to its user: transformers opens it where this package does not exist."""

import os
import subprocess
import sys

import pytest
import torch

from potstill.methods import method_of
from potstill.runs import train as train_run
from potstill.runs.checks import validate_train

pytestmark = pytest.mark.integration

# Prints nothing that matters: the logits go into a file, exactly.
OPENS = """
import importlib.util, sys
try:
    import potstill
except ImportError:
    pass
else:
    raise SystemExit("potstill is importable")
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
folder, kind, text, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
opener = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}[kind]
model, report = opener.from_pretrained(folder, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
AutoModel.from_pretrained(folder)
ids = tokenizer(text, return_tensors="pt")["input_ids"]
with torch.no_grad():
    save_file({"ids": ids, "logits": model.eval()(ids).logits.contiguous()}, out)
"""

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "potstill":
            raise ImportError("potstill is not here")
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def without_potstill(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text(BLOCKED)
    return folder


@pytest.mark.parametrize(
    ("case", "overrides", "kind", "architecture"),
    [
        ("bert_to_distilbert", ["student=distilbert"], "masked", "distilbert"),
        ("bert_to_bert", ["student=half"], "masked", "bert"),
        ("gpt2_to_gpt2", ["student.layers=[0,3]"], "causal", "gpt2"),
    ],
)
def test_transformers_opens_it_alone(
    case, overrides, kind, architecture, bert_teacher, gpt2_teacher, text_file, eval_file, tmp_path,
    compose_config, monkeypatch, without_potstill,
):  # fmt: skip
    from safetensors.torch import load_file

    teacher = gpt2_teacher if kind == "causal" else bert_teacher
    config = compose_config(
        f"teacher.model={teacher}", *overrides, "data=text_files", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1",
        "trainer.max_steps=2", "logger=csv", "trainer.enable_progress_bar=false",
    )  # fmt: skip
    validate_train(config)
    kept = {}
    build = type(method_of(config)).build

    def keep(method, config):
        kept["training"] = build(method, config)
        return kept["training"]

    monkeypatch.setattr(type(method_of(config)), "build", keep)
    train_run.train(config, tmp_path)

    text = "the man has been there before and will not go down to the water now"
    done = subprocess.run(
        [sys.executable, "-c", OPENS, str(tmp_path / "student"), kind, text, str(tmp_path / "out.safetensors")],
        env={**os.environ, "PYTHONPATH": str(without_potstill), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = load_file(tmp_path / "out.safetensors")
    student = kept["training"].module.student.eval()
    assert student.config.model_type == architecture
    with torch.no_grad():
        torch.testing.assert_close(student(opened["ids"]).logits, opened["logits"], rtol=0, atol=1e-6)
    card = (tmp_path / "student" / "README.md").read_text()
    assert "library_name: transformers" in card
