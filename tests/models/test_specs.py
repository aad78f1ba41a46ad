import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest

from potstill.errors import ConfigError, ModelError
from potstill.models import specs
from potstill.models.pretrained import hub_answers
from potstill.models.specs import (
    ARCHITECTURES,
    ModelSpec,
    check_layers,
    check_pair,
    default_layers,
    read_spec,
    spec_from_settings,
    vocabularies_fit,
)

BERT = {
    "model_type": "bert",
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 100,
}


def write_config(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text)
    return str(folder)


def error(value, key="teacher.model"):
    with pytest.raises(ModelError) as caught:
        read_spec(key, value)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{key}={value}")
    return message


def test_reads_the_sizes(tmp_path):
    spec = read_spec("teacher.model", write_config(tmp_path, BERT))
    assert spec == ModelSpec("bert", "masked", 4, 32, 2, 100, 64)
    assert spec.head_dim == 16


def test_own_and_standard_names_both_count():
    own = {"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 9}
    standard = BERT | {"model_type": "gpt2"}
    assert spec_from_settings(own, "x") == ModelSpec("gpt2", "causal", 2, 8, 2, 9, 16)
    assert spec_from_settings(standard, "x") == ModelSpec("gpt2", "causal", 4, 32, 2, 100, 64)


@pytest.mark.parametrize(("pad", "usable"), [(1, 62), (0, 63)])
def test_roberta_counts_positions_from_the_padding_id(pad, usable):
    settings = BERT | {"model_type": "roberta", "pad_token_id": pad}
    assert spec_from_settings(settings, "x").max_length == usable


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_defaults_are_those_of_transformers(model_type):
    from transformers import AutoConfig

    import potstill.models.views  # noqa: F401  (registers those of this package with transformers)

    config = AutoConfig.for_model(model_type)
    assert spec_from_settings({"model_type": model_type}, "x") == spec_from_settings(config.to_dict(), "x")


def test_the_documentation_has_every_architecture():
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    table = page.read_text().partition("### Architectures")[2].partition("\n### ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `") and "model_type" not in line]
    assert [name.strip("`") for row in rows for name in row.split()] == list(ARCHITECTURES)


@pytest.mark.parametrize("value", ["./nowhere", "/no/where", "~/nowhere-at-all", "a/b/c", "-x", "a b"])
def test_a_path_that_does_not_exist(value):
    error(value)


def test_a_folder_without_config(tmp_path):
    assert "config.json" in error(str(tmp_path))


def test_a_file_and_an_empty_value(tmp_path):
    write_config(tmp_path, BERT)
    error(str(tmp_path / "config.json"))
    error("")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"model_type": ', "config.json"),
        ("[1]", "list"),
        ({}, "model_type None"),
        ({"model_type": "bart"}, "model_type 'bart'; .*bert, roberta, .*models/views.py"),
        (BERT | {"num_hidden_layers": "4"}, "num_hidden_layers='4'"),
        (BERT | {"num_hidden_layers": 0}, "num_hidden_layers=0"),
        (BERT | {"num_attention_heads": 5}, "width 32.* 5 heads"),
        (BERT | {"is_decoder": True}, "is_decoder"),
        (BERT | {"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        (BERT | {"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        (BERT | {"model_type": "deberta-v2", "conv_kernel_size": 3}, "conv_kernel_size=3"),
        (BERT | {"model_type": "roberta", "pad_token_id": None}, "pad_token_id=None"),
    ],
)
def test_an_invalid_config(tmp_path, content, expected):
    import re

    assert re.search(expected, error(write_config(tmp_path, content)))


@pytest.mark.parametrize("value", ["no-such-model", "nobody/no-such-model"])
def test_a_hub_id_without_network(monkeypatch, tmp_path, value):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(specs, "hub_answers", lambda: False)
    assert "teacher.model=/path/to/model" in error(value)


def test_a_hub_id_in_the_local_cache_needs_no_network(monkeypatch, tmp_path):
    snapshot = tmp_path / "models--nobody--tiny" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    write_config(snapshot, BERT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(specs, "hub_answers", lambda: pytest.fail("asked the hub"))
    assert read_spec("teacher.model", "nobody/tiny").depth == 4


def test_an_unknown_hub_model(monkeypatch, tmp_path):
    def reject(*args, **kwargs):
        raise OSError("404 Client Error\nlong explanation")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(specs, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", reject)
    assert error("nobody/no-such-model").endswith("(404 Client Error)")


def test_a_hub_that_does_not_answer_costs_little(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        started = time.monotonic()
        assert not hub_answers(timeout=0.3)
        assert time.monotonic() - started < 2


def test_an_error_is_found_in_seconds_without_torch(tmp_path):
    code = (
        "import sys, potstill.models.specs as s\n"
        "try: s.read_spec('teacher.model', 'nobody/no-such-model')\n"
        "except Exception as e: print(type(e).__name__, e)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("ModelError teacher.model=nobody/no-such-model: ")
    assert done.stdout.splitlines()[1:] == ["False False"]
    assert done.stderr == ""
    assert time.monotonic() - started < 5  # 0.6 s on a free machine


def test_default_layers():
    assert default_layers(12) == default_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert default_layers(1) == default_layers(12, 1) == [0]
    assert default_layers(6, 6) == list(range(6))
    for depth in range(1, 50):
        for count in range(1, depth + 1):
            layers = default_layers(depth, count)
            assert check_layers(layers, depth, "k") == layers
            assert len(layers) == count
            assert count == 1 or (layers[0], layers[-1]) == (0, depth - 1)


@pytest.mark.parametrize("count", [0, 13])
def test_a_count_of_layers_out_of_range(count):
    with pytest.raises(ConfigError, match=f"^{count} layers .*1 to 12"):
        default_layers(12, count)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], r"^student.layers=\[\]: .*0 to 11"),
        ([0, 12], r"^student.layers=\[0,12\]: 12 .*0 to 11"),
        ([-1], r"^student.layers=\[-1\]: -1 .*0 to 11"),
        ([0, 2, 2], r"^student.layers=\[0,2,2\]: .*\[0, 2\]"),
        ([4, 2], r"^student.layers=\[4,2\]: .*\[2, 4\]"),
        ([0, 1.5], r"^student.layers=\[0,1.5\]: 1.5 "),
        ([True], r"^student.layers=\[True\]: True "),
        (["1"], r"^student.layers=\['1'\]: '1' "),
    ],
)
def test_invalid_layers(layers, expected):
    with pytest.raises(ConfigError, match=expected):
        check_layers(layers, 12, "student.layers")


def test_vocabularies():
    assert vocabularies_fit(50257, 50257)
    assert vocabularies_fit(50257, 50304)
    assert vocabularies_fit(30528, 30522)
    assert not vocabularies_fit(50257, 50265)
    assert not vocabularies_fit(30522, 28996)
    assert not vocabularies_fit(30000, 32000)


def test_pairs():
    bert = ModelSpec("bert", "masked", 12, 768, 12, 30522, 512)
    gpt2 = ModelSpec("gpt2", "causal", 12, 768, 12, 50257, 1024)
    assert check_pair(bert, bert) == []
    assert len(check_pair(bert, gpt2)) == 2
