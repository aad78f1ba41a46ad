"""Students that follow a teacher's vectors of a store, of the user's own files, or of a server."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from potstill.data.common.tokenizers import load_backend
from potstill.errors import CacheError, CheckpointError, ConfigError, EndpointError, FormatError, PotstillError
from potstill.methods.embedding import models
from potstill.methods.embedding.models import open_encoder
from potstill.models.sentence_folders import sentence_settings
from potstill.runs import teacher_outputs
from potstill.runs.checks import validate_train
from potstill.runs.doctor import examine
from potstill.teacher_cache import OutputStore, parts, vectors

pytestmark = pytest.mark.integration

KEY = "sk-vectors/abcdef0123456789"
PROMPT = "he was "
SMALL = [
    "student.layers=null", "student=bert_tiny", "student.config.hidden_size=16", "student.config.num_hidden_layers=1",
    "student.config.intermediate_size=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def encoder(make_encoder):
    return make_encoder({"query": PROMPT}, "query")


@pytest.fixture(scope="module")
def lines(tmp_path_factory, words):
    """A file with blank lines and equal lines, and the texts that are read from it."""
    texts = [" ".join(words[(7 * n) % 60 : (7 * n) % 60 + 4 + n % 6]) for n in range(48)]
    read = [text for n, text in enumerate(texts) for text in [text] * (1 + (n % 5 == 0))]
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    path.write_text("\n\n".join(read) + "\n")
    return path, read


@pytest.fixture(scope="module")
def made(encoder, lines):
    """The teacher's vectors of all texts that are read."""
    side, _ = open_encoder("model", str(encoder))
    tokenizer = load_backend(encoder)
    with torch.no_grad():
        return side.encoder.encode([np.array(tokenizer.encode(PROMPT + text).ids) for text in lines[1]], 0).numpy()


@pytest.fixture(scope="module")
def source(lines):
    return [
        "objective=embed", f"data.train_files=[{lines[0]}]", "data.eval_share=0.2", "data.batch_size=8",
        "data.num_proc=1", "optimizer.lr=1e-3", "schedule=constant", "schedule.warmup_steps=0", "student.dropout=0",
        "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "logger=csv", "trainer.max_steps=4",
        "objective.terms.similarity.weight=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def small(source, gpt2_tokenizer):
    """With a narrow student of other tokens."""
    return [*source, *SMALL, f"data.tokenizer={gpt2_tokenizer}"]


@pytest.fixture
def run(source, small, trained, tmp_path):
    def start(name, *overrides):
        own = any(word.startswith(("student.layers=", "student=")) for word in overrides)
        return trained(tmp_path / name, *(source if own else small), *overrides)

    return start


@pytest.fixture
def loaded(monkeypatch):
    """The keys of the encoders whose weights are loaded."""
    keys, load = [], models.load_sentence_model
    monkeypatch.setattr(models, "load_sentence_model", lambda key, *more: keys.append(key) or load(key, *more))
    return keys


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


FIGURES = ("train/loss_mse", "train/loss_similarity", "val/loss_mse", "val/cosine", "data/texts")


def test_a_store_takes_the_place_of_the_teacher(run, encoder, loaded, tmp_path, capsys, compose_config, small):
    teacher, cache = f"teacher.model={encoder}", ["teacher/cache=on", f"teacher.cache.folder={tmp_path}/stores"]
    exact = "teacher.cache.precision=float32"
    _, live = run("live", teacher)
    first, summary = run("first", teacher, *cache, exact)
    assert loaded == ["teacher.model"] * 2
    for name in FIGURES:
        assert summary[name] == pytest.approx(live[name], rel=1e-4), name
    assert summary["data/vector_bytes"] == 128
    assert OutputStore.open(tmp_path / "stores" / "train").index["items"] == live["data/texts"]
    loaded.clear()
    again, _ = run("again", teacher, *cache, exact, "objective.prompt=query")
    alone, found = run("alone", *cache, exact, "objective.pooling=mean")
    assert loaded == []  # the store is complete
    assert_equal(weights(first), weights(again))
    assert_equal(weights(first), weights(alone))
    assert found["val/cosine"] == summary["val/cosine"]
    own = sentence_settings("student", alone / "student")
    assert (own.pooling, own.normalize, own.prompt(None)) == ("mean", True, PROMPT)
    cut = [*cache, exact, "objective.pooling=mean", "resume=auto"]
    run("cut", *cut, "trainer.max_steps=2")
    resumed, _ = run("cut", *cut)
    assert_equal(weights(resumed), weights(alone))
    config = compose_config(*small, *cache, exact, "objective.pooling=mean")
    validate_train(config)
    examine(config)
    assert "largest batch" in capsys.readouterr().out
    for overrides, problem in (
        ([teacher, "objective.prompt='say '"], "teacher.prompts is"),
        ([teacher, "data.max_length=9"], "teacher.max_length is"),
        ([teacher, exact.replace("32", "16")], "form.precision is"),
        (["objective.pooling=mean", "data.eval_share=0.3"], "data is"),
        (["objective.pooling=mean", "objective.prompt=he"], "teacher.prompts is"),
    ):
        with pytest.raises(CacheError, match=problem):
            run("stale", *cache, exact, *overrides)
    (tmp_path / "stores" / "train" / "vectors-00000.npy").write_bytes(b"")
    with pytest.raises(CacheError, match=r"vectors-00000\.npy"):
        run("damaged", *cut[:-1])


def test_a_killed_computation_continues(run, encoder, monkeypatch, tmp_path):
    monkeypatch.setattr(vectors, "PART_TEXTS", 4)
    monkeypatch.setattr("potstill.methods.embedding.vectors._ENCODED", 8)
    options = [f"teacher.model={encoder}", "teacher/cache=on", f"teacher.cache.folder={tmp_path}/stores"]
    kept, real = [], parts.Parts.write

    def write(own):
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(own.done)
        real(own)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts.Parts, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run("killed", *options)
    assert len(list((tmp_path / "stores" / "train.parts").glob("*[0-9]"))) == 3
    assert not (tmp_path / "stores" / "train").exists()
    _, summary = run("killed", *options)
    _, whole = run("whole", f"teacher.model={encoder}", "teacher/cache=on")  # in the cache
    assert summary["train/loss_mse"] == pytest.approx(whole["train/loss_mse"], rel=1e-6)
    assert summary["data/vector_bytes"] == 64
    assert not (tmp_path / "stores" / "train.parts").exists()


def test_layers_of_a_teacher_follow_a_store_in_its_tokens(run, encoder, loaded):
    layers = [f"teacher.model={encoder}", "student.layers=[0,3]"]
    _, live = run("live", *layers)
    _, found = run("cached", *layers, "teacher/cache=on", "objective.widths=[8]", "teacher.cache.precision=bfloat16")
    assert np.isfinite(found["val/loss_mse"])
    _, found = run("cached", *layers, "teacher/cache=on", "overwrite=true")
    for name in FIGURES:
        assert found[name] == pytest.approx(live[name], rel=2e-2), name


def test_a_static_student_begins_with_stored_vectors(run, encoder):
    static = [f"teacher.model={encoder}", "student=static", "student.config.hidden_size=16", "trainer.max_steps=0"]
    _, live = run("live", *static)
    _, found = run("cached", *static, "teacher/cache=on")
    assert found["val/cosine"] == pytest.approx(live["val/cosine"], abs=1e-3)


def test_two_processes_follow_a_store_as_one(small, encoder, command, shared_cache, run, tmp_path):
    store = [f"teacher.model={encoder}", "teacher/cache=on", f"teacher.cache.folder={tmp_path}/stores"]
    one, summary = run("one", *store)
    two = ["strategy=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    cut = ["data.batch_size=2", "trainer.accumulate_grad_batches=2", f"hydra.run.dir={tmp_path}/two"]
    shutil.rmtree(tmp_path / "stores")  # one process computes it, the other waits
    done = command("train.py", *small, *store, *two, *cut, POTSTILL_CACHE=str(shared_cache))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "two" / "summary.json").read_text())
    for name in (*FIGURES, "train/grad_norm"):
        assert found[name] == pytest.approx(summary[name], rel=1e-4), name
    other = weights(tmp_path / "two")
    for name, value in weights(one).items():
        if not name.endswith("key.bias"):  # has no gradient but for rounding, which Adam scales up
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)


def test_vectors_of_the_users_own(run, encoder, made, lines, loaded, tmp_path, compose_config, small, capsys):
    _, live = run("live", f"teacher.model={encoder}")
    loaded.clear()
    names = [tmp_path / "a.npy", tmp_path / "b.safetensors"]
    np.save(names[0], made[:20])
    save_file({"embeddings": torch.from_numpy(made[20:])}, names[1])
    given = [f"teacher.cache.file=[{names[0]},{names[1]}]", "objective.pooling=mean", f"objective.prompt='{PROMPT}'"]
    first, found = run("own", *given)
    assert loaded == []
    for name in FIGURES:
        assert found[name] == pytest.approx(live[name], rel=1e-4), name
    assert sentence_settings("student", first / "student").normalize
    assert "a.npy" in (first / "student" / "README.md").read_text()
    # The teacher gives its layers alone.
    layers = [f"teacher.model={encoder}", "student.layers=[0,3]", "trainer.max_steps=1"]
    one, other = run("layers", *layers).summary, run("own_layers", given[0], *layers).summary
    assert other["val/cosine"] == pytest.approx(one["val/cosine"], abs=1e-4)
    assert "teacher/parameters" not in other
    cut = [*given, "resume=auto"]
    run("cut", *cut, "trainer.max_steps=2")
    resumed, _ = run("cut", *cut)
    assert_equal(weights(resumed), weights(first))
    config = compose_config(*small, *given)
    validate_train(config)
    examine(config)
    assert "largest batch" in capsys.readouterr().out
    np.save(names[0], made[:20][::-1])
    with pytest.raises(CheckpointError, match=r"teacher\.cache\.file"):
        run("cut", *cut, "trainer.max_steps=5")
    # Of an evaluation file the rows come behind those of the training file.
    dev = tmp_path / "dev.txt"
    dev.write_text("\n".join(lines[1][:9]) + "\n")
    np.save(tmp_path / "all.npy", np.concatenate([made, made[:9]]))
    files = [f"data.eval_files=[{dev}]", *given[1:]]
    _, live = run("live", f"teacher.model={encoder}", files[0], "overwrite=true")
    _, found = run("both", f"teacher.cache.file={tmp_path}/all.npy", *files)
    for name in FIGURES:
        assert found[name] == pytest.approx(live[name], rel=1e-4), name
    with pytest.raises(FormatError, match="has 58 rows, and 58 training texts and then 9 evaluation texts are read"):
        run("short", *given[:1], *files)
    np.save(names[0], made[:19])
    with pytest.raises(FormatError, match="has 57 rows, and 58 training texts are read"):
        run("short", *given)


class Served:
    """An OpenAI-compatible server of the teacher's vectors; `change(reply, number)` may return a status."""

    def __init__(self, texts, made):
        self.vectors = {PROMPT + text: row.tolist() for text, row in zip(texts, made, strict=True)}
        self.asked, self.keys, self.change = [], set(), lambda reply, number: None
        outer, guard = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self._send(200, {"data": [{"id": "tiny"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert (self.path, body["model"], body["encoding_format"]) == ("/v1/embeddings", "tiny", "float")
                with guard:
                    outer.asked.append(body["input"])
                    outer.keys.add(self.headers["Authorization"])
                    found = [outer.vectors[text] for text in body["input"]]
                    data = [{"index": n, "embedding": row} for n, row in enumerate(found)]
                    reply = {"data": data[::-1], "usage": {"prompt_tokens": 3 * len(data)}}
                    status = outer.change(reply, len(outer.asked))
                self._send(status or 200, reply if not status else {"error": {"message": f"no {KEY}"}})

            def _send(self, status, content):
                raw = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def endpoint(lines, made, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(vectors, "PART_TEXTS", 8)
    found = Served(lines[1], made)
    yield found
    found.close()


@pytest.fixture
def ask(endpoint, lines, compose_config, tmp_path):
    """Fill `<tmp_path>/<name>`; gives the share of texts that are stored."""

    def words(name, *overrides):
        return [
            "stage=teacher_outputs", "objective=embed", f"objective.prompt='{PROMPT}'",
            f"data.train_files=[{lines[0]}]", "data.eval_share=0.2", f"generation.url={endpoint.url}",
            "generation.model=tiny", "generation.backoff_seconds=0", "generation.batch_size=5",
            "generation.concurrency=1", f"teacher.cache.folder={tmp_path}/{name}", *overrides,
        ]  # fmt: skip

    def start(name, *overrides):
        config = compose_config(*words(name, *overrides))
        validate_train(config)
        (tmp_path / f"{name}_run").mkdir(exist_ok=True)
        return teacher_outputs.store_teacher_outputs(config, tmp_path / f"{name}_run")

    start.words = words
    return start


def test_a_server_makes_the_vectors(ask, endpoint, run, encoder, made, lines, tmp_path):
    assert ask("served", "generation.concurrency=3", "teacher.cache.precision=float32") == 1
    assert endpoint.keys == {f"Bearer {KEY}"}
    assert max(map(len, endpoint.asked)) == 5
    texts = [text for batch in endpoint.asked[1:] for text in batch]
    assert sorted(texts) == sorted(PROMPT + text for text in set(lines[1]))  # each text once
    summary = json.loads((tmp_path / "served_run" / "summary.json").read_text())
    assert summary["teacher_outputs/stored"] == summary["teacher_outputs/texts"] == 48
    assert summary["teacher_outputs/input_tokens"] == 3 * 49
    _, live = run("live", f"teacher.model={encoder}")
    stores = ["teacher/cache=on", f"teacher.cache.folder={tmp_path}/served", "teacher.cache.precision=float32"]
    folder, found = run("taught", *stores, "objective.pooling=mean")
    for name in FIGURES:
        assert found[name] == pytest.approx(live[name], rel=1e-4), name
    assert "served" in (folder / "student" / "README.md").read_text()


def test_a_request_run_continues(ask, endpoint, command, started_command, tmp_path):
    ask("whole")
    wanted = len(endpoint.asked) - 1  # without the one for the width
    endpoint.asked.clear()
    assert 0 < ask("cut", "generation.max_requests=4") < 1
    assert len(endpoint.asked) == 4
    reached = threading.Event()
    endpoint.change = lambda reply, number: reached.set() if number == 7 else None
    words = ["train.py", *ask.words("cut", f"hydra.run.dir={tmp_path}/run")]
    process = started_command(*words, OPENAI_API_KEY=KEY)
    assert reached.wait(60)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut" / "train").exists()
    endpoint.change = lambda reply, number: 503 if number % 4 == 0 else None
    done = command(*words, OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    for part in ("train", "eval"):
        (file,) = (tmp_path / "whole" / part).glob("vectors-*.npy")
        assert file.read_bytes() == (tmp_path / "cut" / part / file.name).read_bytes()
    assert wanted <= len(endpoint.asked) <= wanted + 8
    endpoint.asked.clear()
    assert ask("cut") == 1
    assert not endpoint.asked
    with pytest.raises(CacheError, match=r"form\.precision"):
        ask("cut", "teacher.cache.precision=float32")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda reply, number: reply["data"].pop(), "vectors of"),
        (lambda reply, number: reply["data"][0].update(index=7), "vectors of"),
        (lambda reply, number: reply["data"][0]["embedding"].pop(), "numbers, and others have 32"),
        (lambda reply, number: reply["data"][0].update(embedding=[0.0] * 32), "not finite, or zero"),
        (lambda reply, number: reply["data"][0].update(embedding=["x"] * 32), "no list of numbers"),
        (lambda reply, number: reply.pop("data") and None, "no data"),
        (lambda reply, number: 400, "generation.batch_size"),
        (lambda reply, number: 401, "OPENAI_API_KEY"),
    ],
)
def test_bad_replies_end_the_run_in_one_line(change, problem, ask, endpoint, tmp_path):
    def later(reply, number):
        found = change(reply, number) if number > 1 else None
        return found if isinstance(found, int) else None

    endpoint.change = later
    with pytest.raises(EndpointError, match=problem) as caught:
        ask("bad")
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(endpoint.asked) <= 3
    assert not (tmp_path / "bad" / "train").exists()


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["teacher.cache.folder=null"], r"teacher\.cache\.folder=null"),
        (["generation.url=null"], r"generation\.url=null"),
        (["teacher.cache.precision=int8"], r"teacher\.cache\.precision=int8"),
        (["data=task"], "data=task"),
    ],
)
def test_unusable_settings_of_a_server_are_rejected(overrides, key, ask):
    with pytest.raises(ConfigError, match=key):
        ask("rejected", *overrides)


def test_an_objective_without_outputs_of_a_server_is_rejected(compose_config):
    with pytest.raises(ConfigError, match="objective=gkd"):
        validate_train(compose_config("stage=teacher_outputs", "objective=gkd", "data=conversations"))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["teacher/cache=on"], r"teacher\.model=null"),
        (["teacher/cache=on", "teacher.cache.folder=NONE"], r"teacher\.cache\.folder=.*no store"),
        (["teacher.cache.file=NONE.npy"], r"teacher\.cache\.file=.*NONE\.npy"),
        (["teacher.cache.file=NONE.csv"], r"\.npy, \.safetensors, \.parquet"),
        (["teacher.model=ENCODER", "teacher.cache.file=OWN"], r"teacher\.model=.*takes its place"),
        (["teacher.cache.file=OWN", "teacher/cache=on"], r"give one of them"),
        (["teacher.cache.file=OWN", "objective.matches=[{teacher: 1, student: 1, loss: hidden_mse}]"],
         r"objective\.matches"),
        (["teacher.cache.file=OWN", "student.layers=[0]"], r"teacher\.model=null"),
        (["teacher.cache.file=OWN", "data.tokenizer=null", "objective.pooling=mean"], r"data\.tokenizer=null"),
        (["teacher.cache.file=OWN", "objective.projection=teacher", "student.config.hidden_size=64",
          "objective.pooling=mean"], "64 wide, the teacher's 32"),
        (["teacher.model=ENCODER", "teacher/cache=on", "teacher.cache.precision=int8"], r"precision=int8"),
        (["teacher.model=ENCODER", "teacher/cache=on", "objective.matches=L3"], r"objective\.matches"),
    ],
)  # fmt: skip
def test_user_errors(overrides, key, run, encoder, made, tmp_path):
    np.save(tmp_path / "own.npy", made)
    names = {"NONE": tmp_path / "none", "ENCODER": encoder, "OWN": tmp_path / "own.npy"}
    words = overrides
    for name, value in names.items():
        words = [word.replace(name, str(value)) for word in words]
    with pytest.raises(PotstillError, match=key.replace("NONE", "none")):
        run("error", *words)
