"""Distillation of architectures with windows and rotary positions: terms, swaps, a stored teacher, long sequences."""

import json

import pytest
import torch
from torch.testing import assert_close

from potstill.errors import PotstillError

pytestmark = pytest.mark.integration

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 1024,
}
CASES = {
    "modernbert": {"local_attention": 8},
    "deberta-v2": {
        "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "legacy": False,
    },
    "qwen3": {
        "num_key_value_heads": 1, "head_dim": 16, "use_sliding_window": True, "sliding_window": 8,
        "max_window_layers": 2,
    },
    "gpt_neox": {},
    "olmo2": {"num_key_value_heads": 1},
    "gemma3_text": {
        "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
    },
}  # fmt: skip
LONG = 600  # tokens, more than any default


@pytest.fixture(params=CASES)
def teacher(request, tmp_path, bert_tokenizer, gpt2_tokenizer):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    from potstill.models.specs import ARCHITECTURES

    masked, folder = ARCHITECTURES[request.param].kind == "masked", tmp_path / "teacher"
    tokenizer = AutoTokenizer.from_pretrained(bert_tokenizer if masked else gpt2_tokenizer)
    torch.manual_seed(0)
    sizes = SMALL | CASES[request.param] | {"vocab_size": len(tokenizer), "initializer_range": 0.3}
    ends = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0}
    config = AutoConfig.for_model(request.param, **sizes, **ends)
    (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teacher_type(folder):
    return json.loads((folder / "config.json").read_text())["model_type"]


@pytest.fixture
def overrides(text_file, eval_file, teacher):
    return [
        "data=text_files", f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]", "data.num_proc=1",
        f"teacher.model={teacher}", "data.max_length=32", "data.batch_size=4", "trainer.max_steps=2", "logger=csv",
        "trainer.enable_progress_bar=false",
    ]  # fmt: skip


def test_a_student_of_all_layers_is_its_teacher(run, teacher):
    """Its soft targets cost nothing, and its saved folder computes what the teacher does, at any length."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    long = [f"data.max_length={LONG}", "data.packed=true", "student.layers=[0,1,2,3]", "trainer.max_steps=0"]
    folder, found = run("same", *long, "objective=diito", "objective.matches=[{teacher:2,student:2,loss:hidden_mse}]")
    for term in ("ce", "causal_ce", "match_0"):
        assert found[f"val/loss_{term}"] == pytest.approx(0, abs=1e-5)
    auto = AutoModelForMaskedLM if "val/loss_mlm" in found else AutoModelForCausalLM
    ids = torch.randint(5, 90, (2, LONG), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (auto.from_pretrained(path)(ids).logits for path in (folder / "student", teacher))
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_stored_teacher_gives_the_same_student(run, teacher):
    from safetensors.torch import load_file

    size = json.loads((teacher / "config.json").read_text())["vocab_size"]
    cached = ["teacher/cache=on", "teacher.cache.precision=float32"]
    ways = {"alone": [], "top": [*cached, f"teacher.cache.k={size}"], "hidden": [*cached, "teacher.cache.form=hidden"]}
    folders = {name: run(name, "objective.terms.cos.weight=0", *more).folder for name, more in ways.items()}
    found = {name: load_file(folder / "student" / "model.safetensors") for name, folder in folders.items()}
    # A bias of keys has no gradient but rounding, which Adam scales up.
    for form in ("top", "hidden"):
        assert_close(found["alone"], found[form], atol=1e-5, rtol=1e-4)


def test_lengths_up_to_the_models_own_are_accepted(run):
    run("longest", "data.max_length=1024", "data.packed=true", "trainer.max_steps=1")
    with pytest.raises(PotstillError, match=r"^data\.max_length=1025: "):
        run("longer", "data.max_length=1025")


def test_an_attention_that_an_architecture_does_not_have_is_refused(run, teacher):
    if teacher_type(teacher) != "deberta-v2":
        pytest.skip("it has several")
    with pytest.raises(
        PotstillError, match=r"^teacher\.attention=flex_attention: .*; student\.attention=flex_attention: "
    ):
        run("flex", "teacher.attention=flex_attention", "student.attention=flex_attention")
