"""Stores that a server computes, and students that learn from them; the server is a tiny model behind HTTP."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.errors import CacheError, CheckpointError, ConfigError, EndpointError, PairError
from potstill.models import load
from potstill.runs import teacher_outputs
from potstill.runs.checks import validate_train
from potstill.teacher_cache import OutputStore, parts, served

pytestmark = pytest.mark.integration

K = 8
KEY = "sk-served/abcdef0123456789"
QUIET = ["logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
SMALL = ["data.max_length=16", "data.num_proc=1", "data.batch_size=8", "data.eval_batch_size=1", "optimizer.lr=3e-3"]


class Served:
    """What vLLM's completions return for `prompt_logprobs`, from a model of transformers.

    `change(reply, number)` may return a status, or change the reply in place.
    """

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.prompts, self.keys, self.change = [], set(), lambda reply, number: None
        outer, guard = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self._send(200, {"data": [{"id": "tiny"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with guard:
                    outer.prompts.append(body["prompt"])
                    outer.keys.add(self.headers["Authorization"])
                    reply = outer.answer(body)
                    status = outer.change(reply, len(outer.prompts))
                self._send(status or 200, reply if not status else {"error": {"message": "as scripted"}})

            def _send(self, status, content):
                raw = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, body):
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 1, 1.0)
        ids, k = body["prompt"], body["prompt_logprobs"]
        with torch.inference_mode():
            log_probs_NV = self.model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        found = [None]
        for own_V, token in zip(log_probs_NV, ids[1:], strict=True):
            values, likely = own_V.topk(k)
            pairs = list(zip(likely.tolist(), values.tolist(), range(1, k + 1), strict=True))
            if token not in likely:
                pairs.insert(0, (token, float(own_V[token]), int((own_V > own_V[token]).sum()) + 1))
            found.append(
                {
                    str(n): {"logprob": value, "rank": rank, "decoded_token": self.tokenizer.decode([n])}
                    for n, value, rank in pairs
                }
            )
        return {"choices": [{"text": "", "prompt_logprobs": found}], "usage": {"prompt_tokens": len(ids)}}

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def teacher_server(gpt2_teacher, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(served, "PART_TOKENS", 100)
    found = Served(gpt2_teacher)
    yield found
    found.close()


@pytest.fixture(scope="module")
def texts(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("texts")
    for part, count in (("train", 24), ("eval", 6)):
        lines = [" ".join(words[(7 * n) % 60 : (7 * n) % 60 + 5 + n % 6]) for n in range(count)]
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return [
        "data=text_files", f"data.train_files=[{folder}/train.txt]", f"data.eval_files=[{folder}/eval.txt]",
        "data.min_length=2",
    ]  # fmt: skip


@pytest.fixture
def ask(teacher_server, texts, gpt2_teacher, compose_config, tmp_path):
    """Fill `<tmp_path>/<name>`; gives the share of tokens that are stored."""

    def start(name, *overrides):
        config = compose_config(
            "stage=teacher_outputs", *texts, *SMALL[:2], f"data.tokenizer={gpt2_teacher}",
            f"generation.url={teacher_server.url}", "generation.model=tiny", "generation.backoff_seconds=0",
            f"teacher.cache.folder={tmp_path}/{name}", f"teacher.cache.k={K}", *overrides,
        )  # fmt: skip
        validate_train(config)
        (tmp_path / f"{name}_run").mkdir(exist_ok=True)
        return teacher_outputs.store_teacher_outputs(config, tmp_path / f"{name}_run")

    return start


@pytest.fixture
def train(texts, gpt2_teacher, trained, tmp_path):
    """The folder of a run that reads a store."""
    kd = ["objective=kd", "objective.terms.cos.weight=0", "objective.temperature=1", "teacher/cache=on"]
    own = [f"data.tokenizer={gpt2_teacher}", f"teacher.cache.k={K}", "trainer.max_steps=3"]
    return lambda name, *overrides: trained(tmp_path / name, *kd, *texts, *SMALL, *QUIET, *own, *overrides).folder


def test_a_served_store_is_that_of_the_live_teacher(ask, train, teacher_server, gpt2_teacher, tmp_path, monkeypatch):
    assert ask("served", "generation.concurrency=3") == 1.0
    assert teacher_server.keys == {f"Bearer {KEY}"}
    summary = json.loads((tmp_path / "served_run" / "summary.json").read_text())
    assert summary["teacher_outputs/stored"] == summary["teacher_outputs/tokens"]
    assert not list((tmp_path / "served").glob("*.parts"))
    student = [f"student.model={gpt2_teacher}"]
    local = train("local", f"teacher.model={gpt2_teacher}", *student, f"teacher.cache.folder={tmp_path}/local_stores")
    for part in ("train", "eval"):
        ours, theirs = (OutputStore.open(tmp_path / name / part) for name in ("served", "local_stores"))
        assert len(ours) == len(theirs)
        for name in ("ids", "log_probs"):
            files = [store.folder / f"{name}-00000.npy" for store in (ours, theirs)]
            assert files[0].read_bytes() == files[1].read_bytes(), name
        tails = [store.gather(np.arange(len(store))).values["log_tails"] for store in (ours, theirs)]
        np.testing.assert_allclose(*tails, atol=1e-5)
    # The same student without the teacher, from either store.
    loaded = []
    real = load.load_language_model
    monkeypatch.setattr(
        "potstill.methods.common.models.load_language_model",
        lambda key, *more, **settings: loaded.append(key) or real(key, *more, **settings),
    )
    alone = train("alone", *student, f"teacher.cache.folder={tmp_path}/local_stores")
    weights = [AutoModelForCausalLM.from_pretrained(folder / "student").state_dict() for folder in (local, alone)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=0)
    taught = train("taught", *student, f"teacher.cache.folder={tmp_path}/served")
    losses = [json.loads((folder / "summary.json").read_text())["val/loss_ce"] for folder in (local, taught)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert loaded == ["student.model"] * 2


def test_a_run_that_ends_early_continues(ask, teacher_server, tmp_path):
    ask("whole")
    wanted = len(teacher_server.prompts)
    teacher_server.prompts.clear()
    share = ask("cut", "generation.max_requests=7", "generation.concurrency=1")
    assert 0 < share < 1
    assert len(teacher_server.prompts) == 7
    teacher_server.change = lambda reply, number: 500 if number >= 20 else None
    with pytest.raises(EndpointError, match="as scripted"):
        ask("cut", "generation.retries=1", "generation.concurrency=1")
    teacher_server.change = lambda reply, number: None
    answered = 7 + len(teacher_server.prompts[7:]) - 2
    teacher_server.prompts.clear()
    # Killed between the last part and the store.

    def kill(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts.Parts, "copy", kill)
        with pytest.raises(KeyboardInterrupt):
            ask("cut")
    assert ask("cut") == 1.0
    assert len(teacher_server.prompts) == wanted - answered  # nothing is asked twice
    for part in ("train", "eval"):
        for file in (tmp_path / "whole" / part).glob("*.npy"):
            assert file.read_bytes() == (tmp_path / "cut" / part / file.name).read_bytes()
    assert ask("cut") == 1.0
    with pytest.raises(CacheError, match=r"form\.k"):
        ask("cut", "teacher.cache.k=9")


def test_a_killed_command_is_repeated(started_command, command, ask, teacher_server, texts, gpt2_teacher, tmp_path):
    ask("whole")
    reached = threading.Event()
    teacher_server.prompts.clear()
    teacher_server.change = lambda reply, number: reached.set() if number == 9 else None
    words = [
        "train.py", "stage=teacher_outputs", *texts, *SMALL[:2], f"data.tokenizer={gpt2_teacher}",
        f"generation.url={teacher_server.url}", "generation.model=tiny", "generation.concurrency=1",
        f"teacher.cache.folder={tmp_path}/killed", f"teacher.cache.k={K}", f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    process = started_command(*words, OPENAI_API_KEY=KEY)
    assert reached.wait(60)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "train").exists()
    done = command(*words, OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    assert "teacher.cache.folder=" in done.stdout + done.stderr
    for part in ("train", "eval"):
        for file in (tmp_path / "whole" / part).glob("*.npy"):
            assert file.read_bytes() == (tmp_path / "killed" / part / file.name).read_bytes()


def test_transient_errors_are_retried(ask, teacher_server):
    teacher_server.change = lambda reply, number: {2: 429, 3: 503}.get(number)
    assert ask("retried") == 1.0


def shorter(reply, number):
    reply["choices"][0]["prompt_logprobs"].pop()


def without(reply, number):
    del reply["choices"][0]["prompt_logprobs"]


def fewer(reply, number):
    for entries in reply["choices"][0]["prompt_logprobs"][1:]:
        for token in list(entries)[3:]:
            if entries[token]["rank"] > 3:
                del entries[token]


def other_tokens(reply, number):
    found = reply["choices"][0]["prompt_logprobs"]
    found[1:] = [{str((int(token) + 1) % 300): own for token, own in entries.items()} for entries in found[1:]]


def other_words(reply, number):
    for entries in reply["choices"][0]["prompt_logprobs"][1:]:
        for entry in entries.values():
            entry["decoded_token"] = "x" + entry["decoded_token"]


def beyond(reply, number):
    reply["choices"][0]["prompt_logprobs"][1]["70000"] = {"logprob": -9.0, "rank": 9}


def sharper(reply, number):
    for entries in reply["choices"][0]["prompt_logprobs"][1:]:
        for entry in entries.values():
            entry["logprob"] /= 9


def no_numbers(reply, number):
    reply["choices"][0]["prompt_logprobs"][1] = {str(n): "x" for n in range(400)}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (shorter, "prompt_logprobs of"),
        (without, "no prompt_logprobs"),
        (fewer, f"teacher.cache.k={K}"),
        (other_tokens, "than those that were sent"),
        (other_words, "another tokenizer"),
        (beyond, "70000 is no token"),
        (sharper, "add up to"),
        (no_numbers, "not of the form"),
        (lambda reply, number: 400, r"--max-logprobs"),
        (lambda reply, number: 401, "OPENAI_API_KEY"),
    ],
)
def test_bad_replies_end_the_run_in_one_line(change, problem, ask, teacher_server, tmp_path):
    teacher_server.change = change
    with pytest.raises(EndpointError, match=problem) as caught:
        ask("bad", "generation.concurrency=1")
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(teacher_server.prompts) <= (6 if change is other_words else 2)
    assert not (tmp_path / "bad" / "train").exists()


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data.max_length=null"], "data.max_length=null"),
        (["teacher.cache.folder=null"], "teacher.cache.folder=null"),
        (["generation.url=null"], "generation.url=null"),
        (["teacher.cache.form=hidden"], "teacher.cache.form=hidden"),
        (["teacher.cache.temperatures=[1,2]"], "teacher.cache.temperatures"),
        (["data=task"], "data=task"),
    ],
)
def test_unusable_settings_are_rejected(overrides, key, ask):
    with pytest.raises(ConfigError, match=key):
        ask("rejected", *overrides)


def test_stores_without_a_teacher_that_do_not_fit(ask, train, gpt2_teacher, bert_teacher, tmp_path):
    ask("served")
    student, stores = f"student.model={gpt2_teacher}", f"teacher.cache.folder={tmp_path}/served"
    for overrides, problem in (
        ([student, f"teacher.cache.folder={tmp_path}/none"], "stage=teacher_outputs"),
        ([student], "teacher.model=null"),
        ([student, stores, "teacher.cache.form=hidden"], "teacher.cache.form=hidden"),
        ([stores], "student.model=null"),
    ):
        with pytest.raises(ConfigError, match=problem):
            train("rejected", *overrides)
    for overrides, problem in (
        (["objective.temperature=2"], "form.temperatures"),
        (["data.max_length=15"], "data is"),
        (["teacher.cache.k=9"], "form.k is 8"),
    ):
        with pytest.raises(CacheError, match=problem):
            train("stale", student, stores, *overrides)
    with pytest.raises(PairError, match="a vocabulary of 400"):
        train("masked", f"student.model={bert_teacher}", stores, f"data.tokenizer={bert_teacher}")
    train("resumed", student, stores, "trainer.max_steps=1")
    shutil.copytree(tmp_path / "served", tmp_path / "moved")
    train("resumed", student, f"teacher.cache.folder={tmp_path}/moved", "resume=auto", "trainer.max_steps=2")
    ask("other", "+generation.extra_body.seed=1")
    with pytest.raises(CheckpointError, match=r"teacher\.cache\.folder"):
        train("resumed", student, f"teacher.cache.folder={tmp_path}/other", "resume=auto", "trainer.max_steps=3")
