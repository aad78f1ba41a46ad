"""Code that comes with a model folder is never run, and nothing is asked on stdin."""

import ast
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

import potstill
from potstill.data.common.tokenizers import describe
from potstill.errors import DataError, ModelError, TokenizerError
from potstill.models.load import load_language_model
from potstill.models.save import save_student
from potstill.models.specs import read_settings
from potstill.rationale_generation.settings import LocalSettings

SOURCE = Path(potstill.__file__).parent
LOADER = SOURCE / "models" / "pretrained.py"
FORBIDDEN = {"from_pretrained", "from_config", "pipeline", "get_class_from_dynamic_module"}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            yield node, getattr(function, "attr", getattr(function, "id", "")), ast.unparse(function)


def keywords(call):
    return {word.arg: ast.unparse(word.value) for word in call.keywords}


@pytest.mark.parametrize("path", sorted(SOURCE.parent.rglob("*.py")), ids=lambda p: p.stem)
def test_no_module_loads_code(path):
    for call, name, written in calls(ast.parse(path.read_text())):
        where = f"{path}:{call.lineno}"
        if name in FORBIDDEN and path == LOADER:
            assert keywords(call)["trust_remote_code"] == "False", where
            continue
        assert name not in FORBIDDEN, f"{where}: goes through models/pretrained.py"
        assert written not in ("eval", "exec", "input", "pickle.load", "pickle.loads", "yaml.load"), where
        assert "trust_remote_code" not in keywords(call), where
        if written == "torch.load":
            assert keywords(call).get("weights_only") == "True", where
        if written == "np.load":
            assert keywords(call).get("allow_pickle") == "False", where


@pytest.fixture
def sentinel(tmp_path, monkeypatch):
    """A file that the code of a hostile folder would create; stdin would answer y, and shows whether it was read."""
    stdin = io.StringIO("y\n" * 50)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists()
    assert stdin.tell() == 0


CODE = """
from pathlib import Path
Path({sentinel!r}).touch()
from transformers import BertConfig as EvilConfig, BertForMaskedLM as EvilModel, BertTokenizer as EvilTokenizer
def generate(*args, **kwargs): Path({sentinel!r}).touch()
"""
AUTO_MAP = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoModelForMaskedLM": "evil.EvilModel",
    "AutoModelForCausalLM": "evil.EvilModel",
    "AutoModelForSeq2SeqLM": "evil.EvilModel",
    "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
}


def write_hostile(folder, sentinel, config=None, tokenizer=None):
    """Add code, and entries that refer to it, to a folder."""
    code = CODE.format(sentinel=str(sentinel))
    (folder / "evil.py").write_text(code)
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(code)
    entries = {"auto_map": AUTO_MAP, "custom_pipelines": {"text": {"impl": "evil.EvilModel", "pt": ["AutoModel"]}}}
    for name, more in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        path = folder / name
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**known, **entries, **(more or {})}))
    return folder


@pytest.fixture
def bert_copy(bert_teacher, tmp_path):
    return shutil.copytree(bert_teacher, tmp_path / "hostile")


@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [
        ({"model_type": "evil"}, {"tokenizer_class": "EvilTokenizer"}),
        ({"model_type": "bert", "tokenizer_class": "EvilTokenizer"}, {}),
        ({}, {"tokenizer_class": "EvilTokenizerFast"}),
        ({"auto_map": {}}, {"auto_map": {"AutoTokenizer": "evil.EvilTokenizer"}}),
        ({"auto_map": {}}, {"auto_map": {"AutoTokenizer": "owner/repository--evil.EvilTokenizer"}}),
    ],
)
def test_a_tokenizer_folder_with_code(tmp_path, sentinel, config, tokenizer):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_hostile(folder, sentinel, config, tokenizer)
    with pytest.raises(DataError, match=r"data\.tokenizer") as rejected:
        describe(folder)
    assert str(folder) in str(rejected.value)
    assert "trust_remote_code" not in str(rejected.value)
    with pytest.raises(TokenizerError):
        save_student(_Nothing(), folder, tmp_path / "student", "")


class _Nothing:
    def save_pretrained(self, folder):
        pass


def test_a_known_architecture_is_loaded_without_its_code_and_the_student_names_none(bert_copy, sentinel, tmp_path):
    write_hostile(bert_copy, sentinel)
    model = load_language_model("student.model", str(bert_copy), need_head=True)
    student = save_student(model, bert_copy, tmp_path / "student", "card")
    for name in ("config.json", "tokenizer_config.json"):
        assert not {"auto_map", "custom_pipelines"} & set(json.loads((student / name).read_text()))
    assert not list(student.rglob("*.py"))


def test_an_unknown_architecture_is_rejected(bert_copy, sentinel):
    write_hostile(bert_copy, sentinel, {"model_type": "evil"})
    with pytest.raises(ModelError, match=r"student\.model"):
        load_language_model("student.model", str(bert_copy), need_head=True)


@pytest.mark.parametrize("model_type", ["evil", "gpt2"])
def test_a_model_that_generates(gpt2_teacher, tmp_path, sentinel, model_type):
    from potstill.rationale_generation.local import _load

    folder = shutil.copytree(gpt2_teacher, tmp_path / "hostile")
    write_hostile(folder, sentinel, {"model_type": model_type})
    settings = LocalSettings(model=str(folder))
    if model_type == "gpt2":
        tokenizer, model = _load(settings)
        assert "EvilTokenizer" not in type(tokenizer).__name__
        model.generate(max_new_tokens=1)
    else:
        with pytest.raises(ModelError, match=r"generation\.model"):
            _load(settings)


def test_a_kernel_of_the_hub_is_rejected(bert_copy, gpt2_teacher, tmp_path, sentinel):
    from potstill.rationale_generation.local import _load

    write_hostile(bert_copy, sentinel, {"_attn_implementation": "owner/kernel"})
    with pytest.raises(ModelError, match=r"student\.model.*owner/kernel"):
        read_settings("student.model", str(bert_copy))
    folder = shutil.copytree(gpt2_teacher, tmp_path / "causal")
    write_hostile(folder, sentinel, {"_attn_implementation": "owner/kernel"})
    with pytest.raises(ModelError, match=r"generation\.model.*owner/kernel"):
        _load(LocalSettings(model=str(folder)))


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_as_weights_is_not_unpickled(bert_copy, sentinel, zipped):
    import torch

    (bert_copy / "model.safetensors").unlink()
    torch.save(
        {"cls.predictions.bias": _Payload(sentinel)},
        bert_copy / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ModelError, match=r"student\.model"):
        load_language_model("student.model", str(bert_copy), need_head=True)


def test_an_adapter_leads_to_no_code(bert_copy, sentinel, tmp_path):
    base = shutil.copytree(bert_copy, tmp_path / "base")
    write_hostile(base, sentinel, {"model_type": "evil"})
    (bert_copy / "adapter_config.json").write_text(
        json.dumps(
            {"base_model_name_or_path": str(base), "peft_type": "LORA", "auto_mapping": {"parent_library": "evil"}}
        )
    )
    load_language_model("student.model", str(bert_copy), need_head=True)
