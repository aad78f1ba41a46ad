"""`stage=rationales` by the command line, against a local endpoint and a tiny local model; and training on it."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytestmark = pytest.mark.integration

KEY = "sk-stage/abcdef0123456789"
PROMPTS = """
instruction: Solve it.
question: "Q: {input}"
cue: "A:"
answer: "{rationale} The answer is {label}."
label_field: label
stop: ["\\n\\nQ:"]
demonstrations:
  - {input: ann has 5 pens, label: ( 5 + 0 ), rationale: ann has 5 .}
"""


@pytest.fixture
def endpoint():
    """Solves the problems; `asked` counts what it was asked, `keys` holds the keys that came along."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        asked, keys, status = [], set(), 200

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self._send(200, {"data": []})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.keys.add(self.headers["Authorization"])
            question = body["messages"][-1]["content"]
            self.server.asked.append(question)
            numbers = [word for word in question.split() if word.isdigit()]
            sign = "+" if "gets" in question else "-"
            text = f"It is {' and '.join(numbers)} . The answer is ( {f' {sign} '.join(numbers[:2])} )."
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 9, "completion_tokens": 9}
            self._send(self.server.status, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

        def _send(self, status, content):
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    server = Server(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def svamp(tmp_path, arithmetic_rows):
    """A folder with SVAMP's own files, filled with other problems."""
    home = tmp_path / "sets" / "svamp"
    home.mkdir(parents=True)
    for part, count in (("train", 20), ("test", 6)):
        rows = [{"input": row["input"], "label": row["label"]} for row in arithmetic_rows(count, seed=count)]
        (home / f"svamp_{part}.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return home


def ask(command, tmp_path, endpoint, *overrides, run="asked", **environment):
    return command(
        "train.py", "stage=rationales", f"hydra.run.dir={tmp_path}/{run}", f"generation.url={endpoint.url}",
        "generation.model=solver", *overrides, OPENAI_API_KEY=KEY, **environment,
    )  # fmt: skip


def test_a_set_is_explained_and_learnt_from(command, tmp_path, endpoint, svamp, t5_tokenizer):
    where = ["data=svamp", f"data.folder={svamp.parent}"]
    for split in ("train", "test"):
        done = ask(command, tmp_path, endpoint, *where, f"generation.split={split}", "generation.chunk_rows=8")
        assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "asked" / "summary.json").read_text())
    assert (summary["generation/rows"], summary["generation/understood"]) == (6, 1)
    assert sorted(path.name for path in (svamp / "llm").glob("*_CoT_*")) == [
        "test_CoT_0.json", "train_CoT_0.json", "train_CoT_1.json", "train_CoT_2.json",
    ]  # fmt: skip
    # A second time nothing is asked.
    before = len(endpoint.asked)
    assert ask(command, tmp_path, endpoint, *where, "generation.chunk_rows=8").returncode == 0
    assert len(endpoint.asked) == before == 26
    # The key went to the endpoint and nowhere else.
    assert endpoint.keys == {f"Bearer {KEY}"}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert KEY.encode() not in (gzip.decompress(raw) if path.suffix == ".gz" else raw), path
    trained = command(
        "train.py", "objective=step_by_step", *where, "data.labels=llm", "student=t5_tiny", "logger=csv",
        f"data.tokenizer={t5_tokenizer}", "trainer.max_steps=1", "data.generation_max_length=4",
        f"hydra.run.dir={tmp_path}/trained",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    summary = json.loads((tmp_path / "trained" / "summary.json").read_text())
    assert summary["data/llm_train_accuracy"] == 1
    assert "test/loss_explain" in summary


def test_rationales_of_own_rows(command, tmp_path, endpoint, arithmetic_rows):
    rows = [{"input": row["input"]} for row in arithmetic_rows(5)]  # without labels
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    done = ask(
        command, tmp_path, endpoint, "data=rationales", f"data.train_files=[{tmp_path}/own.jsonl]",
        f"generation.prompts={tmp_path}/prompts.yaml", f"generation.folder={tmp_path}/out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "llm" / "train.jsonl").read_text().splitlines()]
    assert [line["input"] for line in lines] == [row["input"] for row in rows]
    assert [line["llm_label"] for line in lines] == [row["label"] for row in arithmetic_rows(5)]
    assert all(line["rationale"].startswith("It is ") for line in lines)


def test_files_of_the_user_are_never_replaced(command, tmp_path, endpoint, arithmetic_rows):
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    own = tmp_path / "train.jsonl"
    own.write_text("\n".join(map(json.dumps, arithmetic_rows(6))) + "\n")
    before = own.read_bytes()
    overrides = ["data=rationales", f"generation.prompts={tmp_path}/prompts.yaml", "data.max_examples=3"]
    for _ in range(2):  # of which the second replaces what the first has made
        done = ask(command, tmp_path, endpoint, *overrides, f"data.train_files=[{own}]")
        assert done.returncode == 0, done.stderr
    assert own.read_bytes() == before
    made = tmp_path / "llm" / "train.jsonl"
    assert len(made.read_text().splitlines()) == 3
    # Neither its own input, nor what nobody knows the journal of.
    refused = f"generation.folder: '{made}' "
    for files in (made, own):
        done = ask(
            command, tmp_path, endpoint, *overrides, f"data.train_files=[{files}]", f"generation.folder={tmp_path}"
        )
        assert (done.returncode, refused in done.stderr) == (2, True), done.stderr
        (tmp_path / "llm" / "train_journal.jsonl").unlink(missing_ok=True)
    assert len(endpoint.asked) == 3


def test_a_run_continues_after_its_budget_was_spent(command, tmp_path, endpoint, svamp):
    where = ["data=svamp", f"data.folder={svamp.parent}", "generation.concurrency=1"]
    done = ask(command, tmp_path, endpoint, *where, "generation.max_requests=7")
    assert done.returncode == 0, done.stderr
    assert "budget" in done.stderr
    assert not list((svamp / "llm").glob("*_CoT_*"))
    assert ask(command, tmp_path, endpoint, *where).returncode == 0
    assert len(endpoint.asked) == len(set(endpoint.asked))
    assert len(json.loads((svamp / "llm" / "train_CoT_0.json").read_text())) == 20


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generation.model=null"], "generation.model=null: "),
        (["generation.url=nowhere"], "generation.url=nowhere: "),
        (["generation.split=valid"], "generation.split=valid: "),
        (["generation.form=poem"], "generation.form=poem: "),
        (["generation.chunk_rows=0"], "generation.chunk_rows=0: "),
        (["generation.samples=3"], "generation.samples=3: "),
        (["data.set=null"], "data.set=null: "),
        (["data.folder=/no/such"], "data.folder=/no/such"),
        (["generation.shots=99"], "generation.shots=99: "),
        (["stage=dream"], "stage=dream: "),
        (["generation.max_requests=2"], "generation.max_requests=2: "),
        (["generation.url=http://a..b/v1"], "generation.url: "),
        (["generation.url=http://a/v1", "generation.timeout=inf"], "generation.timeout=inf"),
        (["generation.url=http://a/v1", "generation.key_variable=sk-1"], "generation.key_variable: "),
    ],
)
def test_user_errors_are_one_line(compose_config, svamp, overrides, message):
    from potstill.errors import ConfigError
    from potstill.runs.checks import validate_train

    where = ["stage=rationales", "data=svamp", f"data.folder={svamp.parent}", "generation.model=solver"]
    with pytest.raises(ConfigError) as error:
        validate_train(compose_config(*where, *overrides))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rejected_key_ends_the_run(command, tmp_path, endpoint, svamp):
    endpoint.status = 401
    done = ask(command, tmp_path, endpoint, "data=svamp", f"data.folder={svamp.parent}")
    assert done.returncode == 2
    assert "401" in done.stderr
    assert KEY not in done.stderr


def test_a_model_in_this_process(command, tmp_path, svamp, gpt2_teacher):
    (tmp_path / "prompts.yaml").write_text(PROMPTS.replace("Solve it.", "so").replace("Q: {input}", "Q"))
    done = command(
        "train.py", "stage=rationales", "data=svamp", f"data.folder={svamp.parent}", "generation.split=test",
        f"generation.model={gpt2_teacher}", "generation.form=completion", "generation.shots=0",
        "generation.max_tokens=4", f"hydra.run.dir={tmp_path}/asked", "data.max_examples=2",
        f"generation.prompts={tmp_path}/prompts.yaml",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads((svamp / "llm" / "test_CoT_0.json").read_text())) == 2
