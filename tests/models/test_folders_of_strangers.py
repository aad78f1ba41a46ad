"""Folders with anything in them: whatever fails, the key and the folder are named, and nothing is trained before."""

import json
import os
import shutil

import pytest
from transformers import AutoConfig

from potstill.errors import PotstillError
from potstill.methods.common.data import vocabulary_of
from potstill.models.load import keep_tokenizer, load_language_model, load_tokenizer
from potstill.models.pretrained import read_pretrained
from potstill.models.specs import read_spec

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def folder(bert_teacher, tmp_path):
    return shutil.copytree(bert_teacher, tmp_path / "model")


def change(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def header(text, claimed=None):
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text


HUGE = b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}'


def check(load, key, folder):
    with pytest.raises(PotstillError) as error:
        load()
    assert str(error.value).startswith(f"{key}={folder}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": []}, {"model_type": {}}, {"model_type": 5}, {"architectures": 5},
        {"hidden_size": 33}, {"vocab_size": 7}, {"num_attention_heads": 0}, {"hidden_act": "nope"}, {"hidden_act": []},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_a_model(settings, folder):
    change(folder / "config.json", **settings)
    check(lambda: load_language_model("teacher.model", str(folder), need_head=True), "teacher.model", folder)


@pytest.mark.parametrize("content", [DEEP, "", "5", "[]", '{"model_type": "\\ud83d"}'], ids=lambda c: c[:8])
def test_files_of_a_model(content, folder):
    (folder / "config.json").write_text(content)
    check(lambda: load_language_model("student.model", str(folder), need_head=False), "student.model", folder)


@pytest.mark.parametrize("content", [b"", b"x" * 50, header(b"{}", 1 << 62), header(HUGE)], ids=lambda c: repr(c[:4]))
def test_weights_of_a_model(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    check(lambda: load_language_model("model", str(folder), need_head=True), "model", folder)


@pytest.mark.parametrize("place", ["gone.safetensors", "../../../../etc/passwd", 5])
def test_an_index_that_leads_nowhere(place, folder):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": place}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check(lambda: load_language_model("model", str(folder), need_head=True), "model", folder)


def test_a_link_that_leads_nowhere_and_a_folder_of_a_tokenizer_alone(folder):
    (folder / "model.safetensors").unlink()
    check(lambda: load_language_model("model", str(folder), need_head=True), "model", folder)
    (folder / "model.safetensors").symlink_to(folder / "gone")
    check(lambda: load_language_model("model", str(folder), need_head=True), "model", folder)


@pytest.mark.parametrize(
    "settings",
    [{"mask_token": 5}, {"added_tokens_decoder": {"x": 5}}, {"added_tokens_decoder": []}, {"tokenizer_class": []}],
    ids=str,
)
@pytest.mark.parametrize("key", ["data.tokenizer", "student.model"])
def test_settings_of_a_tokenizer_are_tried_before_training(key, settings, folder):
    change(folder / "tokenizer_config.json", **settings)
    check(lambda: vocabulary_of(key, str(folder), saved=True), key, folder)


def test_a_config_that_keeps_a_tokenizer_from_being_loaded(folder):
    change(folder / "config.json", dtype="evil")
    check(lambda: vocabulary_of("teacher.model", str(folder), saved=True), "teacher.model", folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [DEEP, '{"a": "\\ud83d"}', "5"], ids=["nested", "half", "number"])
def test_files_of_a_tokenizer(name, content, folder):
    (folder / name).write_text(content)
    check(lambda: vocabulary_of("data.tokenizer", str(folder), saved=True), "data.tokenizer", folder)


def test_a_tokenizer_whose_folder_is_deleted_is_kept(folder, tmp_path):
    keep_tokenizer(f"data.tokenizer={folder}", folder)
    shutil.rmtree(folder)
    load_tokenizer(folder).save_pretrained(tmp_path / "student")
    assert (tmp_path / "student" / "tokenizer.json").is_file()


SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
SPOILT = [(name, kind) for name in SMALL for kind in ("pipe", "device", "huge")]


@pytest.mark.parametrize(("name", "kind"), [*SPOILT, ("model.safetensors", "pipe"), ("model.safetensors", "device")])
@pytest.mark.parametrize(
    ("key", "load"),
    [
        ("teacher.model", lambda folder: read_spec("teacher.model", folder)),
        ("model", lambda folder: load_language_model("model", folder, need_head=True)),
        ("data.tokenizer", lambda folder: vocabulary_of("data.tokenizer", folder, saved=True)),
    ],
    ids=["spec", "model", "tokenizer"],
)
def test_no_file_is_waited_for_and_none_is_beyond_its_bound(name, kind, key, load, folder):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**28 + 1)
    check(lambda: load(str(folder)), key, folder)
    with pytest.raises(ValueError, match=name):
        read_pretrained(AutoConfig, folder)
