"""GGUF files as teachers; those of the tests are written by the package gguf."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from potstill.data.common.tokenizers import describe
from potstill.errors import ModelError, PackageError, WeightsError
from potstill.methods.common.data import vocabulary_of
from potstill.models import gguf as own
from potstill.models.load import load_language_model
from potstill.models.pretrained import local_folder
from potstill.models.specs import read_spec
from potstill.runs import train as train_run
from potstill.runs.checks import validate_train

TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|endoftext|>' }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
HEADS = {"attn_q": 4, "attn_k": 2}


def rotated(weight, heads):
    """Rows in llama.cpp's order, where a rotation turns neighbours; transformers turns halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def llama(gpt2_tokenizer):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(AutoTokenizer.from_pretrained(gpt2_tokenizer)),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()


@pytest.fixture(scope="module")
def write(llama, gpt2_tokenizer):
    """Write the model as GGUF; returns the weights as the file holds them."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'potstill[gguf]'")
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'potstill[gguf]'")
    backend = json.loads((gpt2_tokenizer / "tokenizer.json").read_text())["model"]
    tokens = sorted(backend["vocab"], key=backend["vocab"].get)

    def make(path, kind="F32", architecture="llama", extra=()):
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_block_count(4)
        writer.add_feed_forward_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(8)
        writer.add_rope_freq_base(10000.0)
        writer.add_vocab_size(len(tokens))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
        writer.add_token_merges([" ".join(merge) for merge in backend["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.add_chat_template(TEMPLATE)
        held = {}
        for name, tensor in llama.state_dict().items():
            weight, short = tensor.numpy(), name.removesuffix(".weight")
            if short.startswith("model.layers."):
                _, _, number, part = short.split(".", 3)
                theirs = f"blk.{number}.{NAMES[part]}"
            else:
                theirs = {"lm_head": "output", "model.norm": "output_norm"}.get(short, "token_embd")
            heads = HEADS.get(theirs.rpartition(".")[2])
            stored = rotated(weight, heads) if heads else weight
            if kind != "F32" and weight.ndim == 2:
                form = gguf.GGMLQuantizationType[kind]
                packed = gguf.quantize(np.ascontiguousarray(stored), form)
                writer.add_tensor(f"{theirs}.weight", packed, raw_dtype=form)
                weight = gguf.dequantize(gguf.quantize(weight, form), form)
            else:
                writer.add_tensor(f"{theirs}.weight", np.ascontiguousarray(stored))
            held[name] = torch.from_numpy(weight)
        for name in extra:
            writer.add_tensor(name, np.ones(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return held

    return make


@pytest.fixture(scope="module")
def files(write, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return {kind: (folder / f"{kind}.gguf", write(folder / f"{kind}.gguf", kind)) for kind in ("F32", "Q8_0")}


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_the_weights_are_those_of_the_file(files, kind, llama, tmp_path):
    path, held = files[kind]
    model = load_language_model("teacher.model", str(path), need_head=True)
    found = model.state_dict()
    assert found.keys() == held.keys()
    for name, weight in held.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=0)
    spec = read_spec("teacher.model", str(path))
    assert (spec.model_type, spec.depth, spec.width, spec.heads, spec.max_length) == ("llama", 4, 32, 4, 64)
    assert spec.vocab_size == llama.config.vocab_size
    ids = torch.tensor([[5, 6, 7, 8]])
    if kind == "F32":
        torch.testing.assert_close(model(ids).logits, llama(ids).logits)
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(ids).logits, model(ids).logits)


def test_the_progress_bar_follows_the_setting_of_transformers(files, capfd):
    path, _ = files["Q8_0"]
    load_language_model("teacher.model", str(path), need_head=True)
    assert capfd.readouterr() == ("", "")
    AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    assert "GGUF tensors" in capfd.readouterr().err  # as transformers shows it by itself


def test_the_tokenizer_is_that_of_the_file(files, gpt2_tokenizer):
    path, _ = files["F32"]
    found, folder = vocabulary_of("teacher.model", str(path), saved=True), describe(gpt2_tokenizer)
    names = ("size", "start_id", "end_id", "pad_id", "mask_id", "special_ids", "max_length")
    assert [getattr(found, name) for name in names] == [getattr(folder, name) for name in names]
    assert found.path == str(path)


def test_a_folder_holds_one_file(write, tmp_path):
    write(tmp_path / "a.gguf")
    assert local_folder("model", str(tmp_path)) == tmp_path / "a.gguf"
    assert vocabulary_of("model", str(tmp_path)).path == str(tmp_path / "a.gguf")
    write(tmp_path / "b.gguf")
    with pytest.raises(ModelError, match=r"2 GGUF files \(a\.gguf, b\.gguf\)"):
        read_spec("teacher.model", str(tmp_path))


def test_unusable_files_are_rejected_before_torch_is_imported(files, write, tmp_path):
    whole = files["Q8_0"][0].read_bytes()
    contents = {
        "empty": b"",
        "text": b"no GGUF file",
        "header": whole[:2000],
        "weights": whole[:-1000],
        "version": whole[:4] + b"\x09\0\0\0" + whole[8:],
        "count": whole[:8] + b"\xff" * 8 + whole[16:],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    write(tmp_path / "architecture.gguf", architecture="mamba")
    write(tmp_path / "tensor.gguf", extra=["rope_freqs.weight"])
    kinds = dict.fromkeys(contents, WeightsError) | {"architecture": ModelError, "tensor": ModelError}
    for name, kind in kinds.items():
        with pytest.raises(ModelError) as caught:
            read_spec("teacher.model", str(tmp_path / f"{name}.gguf"))
        assert type(caught.value) is kind, name
        assert str(caught.value).startswith(f"teacher.model={tmp_path}/{name}.gguf: ")
        assert "\n" not in str(caught.value)
    code = (
        "import sys; from potstill.models.specs import read_spec; "
        f"read_spec('model', {str(files['F32'][0])!r}); assert not {{'torch', 'transformers'}} & {{*sys.modules}}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PackageError, match=r"pip install 'potstill\[gguf\]'"):
        own.read_header(tmp_path / "a.gguf", "teacher.model=a.gguf")


@pytest.mark.integration
def test_a_student_of_its_layers_is_a_plain_folder(files, text_file, compose_config, cache, tmp_path):
    path, held = files["Q8_0"]
    config = compose_config(
        "objective=kd", f"teacher.model={path}", "student.layers=[0,3]", "objective.terms.cos.weight=0",
        "teacher/cache=on", "data=text_files", f"data.train_files=[{text_file}]", "data.max_length=32",
        "trainer.max_steps=1", "trainer.enable_progress_bar=false", "optimizer.lr=0", "logger=csv",
    )  # fmt: skip
    validate_train(config)
    train_run.train(config, tmp_path)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    torch.testing.assert_close(
        student.model.layers[1].mlp.up_proj.weight, held["model.layers.3.mlp.up_proj.weight"], rtol=0, atol=0
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "user: a<|endoftext|>"
    assert tokenizer.decode(tokenizer("they were").input_ids) == "they were"
