"""Small real things that many tests need: text, a tokenizer, models in folders. No network, no weights."""

import copy
import functools
import gc
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside each other; set before torch is imported

import pytest

gc.set_threshold(100_000, 20, 100)  # the default collects too often while configurations are composed

ROOT = Path(__file__).parents[1]


def _module(name):
    """A module beside this one, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


forked, quick_hydra = _module("forked"), _module("quick_hydra")
TEXT = """
the of and to a in that is was he for it with as his on be at by i this had not are but from or have an they
which one you were her all she there would their we him been has when who will more no if out so said what up
its about into than them can only other new some could time these two may then do first any my now such like our
over man me even most made after also did many before must through years where much your way well down should
"""
WORDS = TEXT.split()


def sentences(count, seed=0, length=(12, 40)):
    """Deterministic text with some structure: each word prefers its neighbours in the list."""
    state, lines = seed * 7919 + 1, []
    for _ in range(count):
        words, at = [], state % len(WORDS)
        state = (state * 1103515245 + 12345) % 2**31
        for _ in range(length[0] + state % (length[1] - length[0])):
            state = (state * 1103515245 + 12345) % 2**31
            at = (at + 1 + (state >> 16) % 3) % len(WORDS)
            words.append(WORDS[at])
        lines.append(" ".join(words))
    return lines


def pytest_collection_modifyitems(items):
    """Tests of commands are slow; files with whole runs come first, so that no long one is left for the end."""
    for item in items:
        if {"server", "light_server"} & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)
    long = {item.path for item in items if item.get_closest_marker("integration")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def own_hydra_config():
    """A command that a test runs in this process leaves no configuration and log file of Hydra to the next test."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, logging.FileHandler) and handler.baseFilename != os.devnull:  # that is pytest's
            root.removeHandler(handler)
            handler.close()
    if (hydra := sys.modules.get("hydra.core.hydra_config")) is not None:
        hydra.HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "train.txt"
    path.write_text("\n".join(sentences(120)) + "\n")
    return path


@pytest.fixture(scope="session")
def eval_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "eval.txt"
    path.write_text("\n".join(sentences(16, seed=5)) + "\n")
    return path


@pytest.fixture(scope="session")
def bert_tokenizer(tmp_path_factory):
    """A folder with a WordPiece tokenizer of 120 words."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_tokenizer(tmp_path_factory):
    """A folder with a byte-level BPE tokenizer of a few hundred pieces."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2TokenizerFast

    folder = tmp_path_factory.mktemp("bpe")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(sentences(200), vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(folder))
    GPT2TokenizerFast.from_pretrained(folder, model_max_length=64).save_pretrained(folder)
    return folder


WORD_PROBLEMS = """
ann bob eve has gets loses pens cups . , how many are left ? and so = + - ( )
"""


@pytest.fixture(scope="session")
def t5_tokenizer(tmp_path_factory):
    """A folder with a tokenizer of whole words that has T5's special tokens, and its end token behind a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("t5-tokenizer")
    words = ["<pad>", "</s>", "<unk>", "predict:", "explain:", *WORD_PROBLEMS.split(), *map(str, range(21))]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def arithmetic(count, seed=0):
    """Rows of word problems with an equation as label, and a rationale that comes to it."""
    import random

    draw, rows = random.Random(seed), []
    for _ in range(count):
        who, what, gets = (draw.choice(["ann", "bob", "eve"]), draw.choice(["pens", "cups"]), draw.random() < 0.5)
        first, second = draw.randint(5, 10), draw.randint(0, 5)
        verb, sign, value = ("gets", "+", first + second) if gets else ("loses", "-", first - second)
        rows.append(
            {
                "input": f"{who} has {first} {what} . {who} {verb} {second} {what} . how many {what} are left ?",
                "label": f"( {first} {sign} {second} )",
                "rationale": f"{who} has {first} and {verb} {second} , so {first} {sign} {second} = {value} .",
                "llm_label": f"( {first} {sign} {second} )" if draw.random() < 0.8 else "( 0 + 0 )",
            }
        )
    return rows


@pytest.fixture(scope="session")
def arithmetic_rows():
    return arithmetic


@pytest.fixture(scope="session")
def arithmetic_files(tmp_path_factory):
    """A folder with train.jsonl, valid.jsonl and test.jsonl of word problems with rationales."""
    import json

    folder = tmp_path_factory.mktemp("arithmetic")
    for seed, (part, count) in enumerate((("train", 256), ("valid", 32), ("test", 48))):
        lines = [json.dumps(row) for row in arithmetic(count, seed)]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def save_bert(folder, tokenizer, seed=0, layers=4, **settings):
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    fast = AutoTokenizer.from_pretrained(tokenizer)
    shape = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    BertForMaskedLM(
        BertConfig(vocab_size=len(fast), num_hidden_layers=layers, **{**shape, **settings})
    ).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_bert():
    """Call `make_bert(folder, tokenizer, layers=2, ...)` for a BERT in a folder."""
    return save_bert


@pytest.fixture(scope="session")
def words():
    return WORDS


@pytest.fixture(scope="session")
def bert_teacher(tmp_path_factory, bert_tokenizer):
    return save_bert(tmp_path_factory.mktemp("bert"), bert_tokenizer)


@pytest.fixture(scope="session")
def gpt2_teacher(tmp_path_factory, gpt2_tokenizer):
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    fast = AutoTokenizer.from_pretrained(gpt2_tokenizer)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(fast), n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def roberta_teacher(tmp_path_factory, text_file):
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizerFast

    folder = tmp_path_factory.mktemp("roberta")
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train([str(text_file)], vocab_size=400, special_tokens=special, show_progress=False)
    bpe.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder, model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, type_vocab_size=1, **shape)
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run_command(server, script, *overrides, cache=None, timeout=300, **environment):
    """Run train.py, evaluate.py or a script of a test's own as a user does; returns the finished process."""
    process = start_command(server, script, *overrides, cache=cache, **environment)
    stdout, stderr = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start_command(server, script, *overrides, cache=None, folder=ROOT, **environment):
    """Start such a process: it has `communicate`, `wait`, `poll`, `kill`, `send_signal` as of `subprocess.Popen`.

    Args:
        server: whose fork it is.
        script: relative to the top level of the checkout.
        overrides: its arguments.
        cache: the folder of stores.
        folder: its working directory.
        environment: further variables.
    """
    variables = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": os.environ.get("WANDB_MODE", "offline"),
        **({"POTSTILL_CACHE": str(cache)} if cache else {}),
        **environment,
    }
    return forked.Forked(server.address, str(ROOT / script), overrides, environment=variables, folder=folder)


@pytest.fixture(scope="session")
def server():
    """A process that has imported torch, Lightning and transformers; commands are forks of it."""
    own = forked.Server("torch")
    yield own
    own.stop()


@pytest.fixture(scope="session")
def light_server():
    """A process that has imported what a command imports before torch."""
    own = forked.Server("no torch")
    yield own
    own.stop()


@pytest.fixture(scope="session")
def command(shared_cache, server):
    """Call `command("train.py", "key=value", ...)`; its cache is the session's."""
    return lambda script, *overrides, **kwargs: run_command(
        server, script, *overrides, **{"cache": shared_cache, **kwargs}
    )


@pytest.fixture(scope="session")
def light_command(shared_cache, light_server):
    """The same for a command that ends before it imports torch."""
    return lambda script, *overrides, **kwargs: run_command(
        light_server, script, *overrides, **{"cache": shared_cache, **kwargs}
    )


@pytest.fixture(scope="session")
def started_command(shared_cache, server):
    """The same for a command that is not waited for."""
    return lambda script, *overrides, **kwargs: start_command(
        server, script, *overrides, **{"cache": shared_cache, **kwargs}
    )


def composed(*overrides, name="train", raw=False):
    """The options of a command, as the command line makes them; `raw`: as Hydra composes them."""
    from potstill.config import EvaluateConfig, TrainConfig
    from potstill.config.typed import typed

    config = copy.deepcopy(_composed(name, tuple(str(o) for o in overrides)))
    return config if raw else typed(config, TrainConfig if name == "train" else EvaluateConfig)


@functools.cache
def _registered():
    from potstill.config import register

    register()
    quick_hydra.install()


@functools.lru_cache(maxsize=256)
def _composed(name, overrides):
    from hydra.errors import HydraException

    from potstill.config.overrides import compose_raw, composition_error

    _registered()
    try:
        return compose_raw(name, list(overrides))
    except HydraException as error:
        raise composition_error(name, overrides, error) from error


@pytest.fixture(scope="session")
def compose_config():
    _registered()
    return composed


@pytest.fixture
def source(text_file, shared_cache, monkeypatch):
    """Overrides that a run on the session's text begins with; the hub is out of reach."""
    monkeypatch.setenv("POTSTILL_CACHE", str(shared_cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return ["data=text_files", f"data.train_files=[{text_file}]", "logger=csv"]


@pytest.fixture
def kd(source, bert_teacher):
    """The same, with a teacher."""
    return [*source, f"teacher.model={bert_teacher}"]


@pytest.fixture
def data_dir():
    folder = os.environ.get("POTSTILL_DATA_DIR")
    if not folder:
        pytest.skip("POTSTILL_DATA_DIR is not set: no real data")
    return Path(folder)


class WandbServer:
    """As much of a wandb server as runs and views need, on a port of its own; `asked` are its queries."""

    VIEWER = {"id": "v", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}  # noqa: RUF012

    def __init__(self):
        import threading
        from http.server import ThreadingHTTPServer

        self.asked, self.refused = [], None  # a word of the queries that are answered 403
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self):
        """From now on nothing answers."""
        self._http.shutdown()
        self._http.server_close()

    def answer(self, query):
        if "upsertView" in query["query"]:
            return {"upsertView": {"view": {"id": "1", "name": "made"}, "inserted": True}}
        if "upsertBucket" in query["query"]:
            project = {"id": "p", "name": "potstill", "entity": {"id": "e", "name": "team"}}
            name = query["variables"]["name"]
            bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}
        return {"viewer": self.VIEWER, "serverInfo": {"cliVersionInfo": {}, "features": []}}

    def _handler(self):
        import gzip
        import json
        from http.server import BaseHTTPRequestHandler

        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
                reply, status = {}, 200  # of figures and files, which are taken and forgotten
                if self.path == "/graphql":
                    server.asked.append(json.loads(body))
                    if server.refused and server.refused in server.asked[-1]["query"]:
                        reply, status = {"errors": [{"message": "permission denied"}]}, 403
                    else:
                        reply = {"data": server.answer(server.asked[-1])}
                self._say(json.dumps(reply).encode(), status)

            do_PUT = do_POST

            def _say(self, reply, status):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_):
                pass

        return Handler


@pytest.fixture
def wandb_server(monkeypatch):
    """A server that this process's wandb takes for its own, with a key for it."""
    import wandb

    wandb.teardown()  # it reads its variables once a process
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield server
    server.stop()
    wandb.teardown()
