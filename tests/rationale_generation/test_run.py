import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from potstill.errors import ConfigError, DataError, EndpointError, LabelError
from potstill.rationale_generation.prompts import load_prompts
from potstill.rationale_generation.run import generate
from potstill.rationale_generation.settings import EndpointSettings, LocalSettings, Sampling


def parse(output):
    found = re.match(r"(.*?) The answer is (\(.*?\))\.", output)
    return (found[1], found[2]) if found else None


def rows(count):
    return [{"input": f"{number} and 1?", "label": f"({number} + 1)"} for number in range(count)]


def right(body, count):
    """The correct answer to a row, followed by the next question."""
    number = re.findall(r"Q: (\d+) and 1\?", str(body.get("prompt") or body["messages"][-1]["content"]))[-1]
    return f" Because {number}. The answer is ({number} + 1).\n\nQ: More"


def run(endpoint, folder, data=None, sampling=None, **options):
    settings = {name: options.pop(name) for name in ("max_requests", "concurrency", "model") if name in options}
    waits = options.pop("waits", [])

    async def wait(seconds):
        waits.append(seconds)

    return generate(
        rows(5) if data is None else data,
        **{
            "split": "train",
            "folder": folder,
            "prompts": load_prompts("svamp", shots=1),
            "backend": EndpointSettings(
                endpoint.url, **{"model": "m", "concurrency": 2, "timeout": 5.0, "retries": 2, **settings}
            ),
            "sampling": sampling or Sampling(),
            "parse": parse,
            "wait": wait,
            **options,
        },
    )


def written(folder, name="train_CoT_0.json"):
    return json.loads((folder / "llm" / name).read_text())


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_the_published_layout(endpoint, tmp_path, form):
    endpoint.script = right
    report = run(endpoint, tmp_path, form=form, chunk_rows=2)
    chunks = [written(tmp_path, f"train_CoT_{number}.json") for number in range(3)]
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    assert [text for chunk in chunks for text in chunk] == [f"Because {n}. The answer is ({n} + 1)." for n in range(5)]
    assert sorted(path.name for path in (tmp_path / "llm").iterdir()) == [
        "train_CoT_0.json", "train_CoT_1.json", "train_CoT_2.json", "train_journal.jsonl",
        "train_journal.jsonl.lock", "train_report.json",
    ]  # fmt: skip
    assert report.flat() == written(tmp_path, "train_report.json")
    assert report.complete
    flat = report.flat()
    assert flat.pop("seconds") >= 0
    assert flat == {
        "rows": 5, "wanted": 5, "journaled": 0, "asked": 5, "answered": 5, "retried": 0, "failed": 0,
        "malformed": 0, "empty": 0, "refused": 0, "truncated": 0, "input_tokens": 50, "output_tokens": 15,
        "budget_spent": False, "requested_wait": 0.0, "unanswered": 0, "unparsed": 0, "contradicting": 0,
            "dropped": 0, "complete": True,
    }  # fmt: skip


def test_a_second_call_makes_no_requests(endpoint, tmp_path):
    endpoint.script = right
    run(endpoint, tmp_path)
    before = written(tmp_path)
    endpoint.close()
    report = run(endpoint, tmp_path)
    assert (report.journaled, report.tally.asked, report.wanted) == (5, 0, 5)
    assert written(tmp_path) == before


def test_only_missing_answers_are_requested(endpoint, tmp_path):
    endpoint.script = right
    run(endpoint, tmp_path)
    report = run(endpoint, tmp_path, rows(7)[::-1])
    assert (report.journaled, report.tally.asked) == (5, 2)
    assert written(tmp_path)[0].startswith("Because 6.")
    assert run(endpoint, tmp_path, model="other").tally.asked == 5
    sampled = Sampling(temperature=1.0, samples=2)
    assert run(endpoint, tmp_path, sampling=sampled).tally.asked == 10
    more = Sampling(temperature=1.0, samples=3)
    assert run(endpoint, tmp_path, sampling=more).tally.asked == 5


def test_files_of_an_earlier_longer_run_are_removed(endpoint, tmp_path):
    endpoint.script = right
    run(endpoint, tmp_path, chunk_rows=1)
    run(endpoint, tmp_path, chunk_rows=4)
    assert sorted(path.name for path in (tmp_path / "llm").glob("*_CoT_*")) == ["train_CoT_0.json", "train_CoT_1.json"]
    assert len(written(tmp_path)) == 4


def test_equal_rows_share_a_request(endpoint, tmp_path):
    endpoint.script = right
    report = run(endpoint, tmp_path, [*rows(2), *rows(2)])
    assert (report.rows, report.wanted, len(endpoint.bodies)) == (4, 2, 2)
    assert written(tmp_path)[:2] == written(tmp_path)[2:]


def test_the_majority_label_of_the_samples_is_written(endpoint, tmp_path):
    texts = ["First. The answer is (9).", "Second. The answer is (0 + 1).", "Third. The answer is (0 + 1).", "Nothing."]
    endpoint.script = lambda body, count: texts[count]
    report = run(endpoint, tmp_path, rows(1), Sampling(temperature=0.7, samples=4), concurrency=1)
    assert written(tmp_path) == ["Second. The answer is (0 + 1)."]
    assert report.contradicting == report.unparsed == 0
    assert len({body["seed"] for body in endpoint.bodies}) == 4


def test_contradicting_rows_are_counted_and_optionally_dropped(endpoint, tmp_path):
    texts = {"0": "Why. The answer is (1).", "1": "Why. The answer is (9).", "2": "I do not know."}
    endpoint.script = lambda body, count: texts[body["messages"][-1]["content"][3]]
    value = {"(0 + 1)": 1, "(1)": 1, "(1 + 1)": 2, "(9)": 9, "(2 + 1)": 3}.get
    kept = run(endpoint, tmp_path, rows(3), canonical=value)
    assert (kept.contradicting, kept.dropped, kept.unparsed) == (1, 0, 1)
    assert written(tmp_path) == list(texts.values())
    dropped = run(endpoint, tmp_path, rows(3), canonical=value, drop_contradicting=True)
    assert (dropped.contradicting, dropped.dropped, dropped.tally.asked) == (1, 1, 0)
    assert written(tmp_path) == [texts["0"], "", texts["2"]]


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_thoughts_are_neither_written_nor_counted_as_votes(endpoint, tmp_path, form):
    texts = {
        "0": "<think>The answer is (9).</think>\n\nWhy. The answer is (1).",
        "1": "Hm. The answer is (9).</THINK> Why. The answer is (2).\n\nQ: More <think>",
        "2": "<think>So. The answer is (9). Wait",
        "3": "<think>So.</think>",
        "4": "I do not know.",
    }

    def script(body, count):
        return texts[re.findall(r"Q: (\d+) and 1\?", str(body.get("prompt") or body["messages"]))[-1]]

    endpoint.script = script
    report = run(endpoint, tmp_path, form=form)
    kept = ["Why. The answer is (1).", "Why. The answer is (2).", "", "", texts["4"]]
    assert written(tmp_path) == kept
    assert (report.unparsed, report.unanswered) == (3, 0)
    assert report.not_understood == {"thoughts_only": 1, "unfinished_thought": 1}
    endpoint.script = lambda body, count: (
        "<think>The answer is (9).</think> Why. The answer is (1)."
        if count
        else ("<think>The answer is (9).</think> <think>The answer is (9).")
    )
    sampling = Sampling(temperature=1.0, samples=3)
    run(endpoint, tmp_path, rows(1), sampling, form=form, concurrency=1)
    assert written(tmp_path) == ["Why. The answer is (1)."]


def test_unusable_answers_are_counted_by_reason(endpoint, tmp_path):
    replies = {
        "0": {"text": "Why. The answer is (1).", "finish": "length"},
        "1": {"text": "Why. The answer is (1).", "finish": "content_filter"},
        "2": {"text": None, "finish": "length"},
        "3": {"text": None, "finish": "tool_calls"},
        "4": "Why. The answer is (5).",
    }
    endpoint.script = lambda body, count: replies[body["messages"][-1]["content"][3]]
    report = run(endpoint, tmp_path)
    assert written(tmp_path) == ["", "", "", "", "Why. The answer is (5)."]
    assert (report.unparsed, report.unanswered, report.tally.truncated) == (2, 2, 1)
    reasons = {"length": 1, "content_filter": 1, "no_text_length": 1, "no_text_tool_calls": 1}
    assert report.not_understood == reasons
    assert reasons.items() <= {n.removeprefix("not_understood_"): v for n, v in report.flat().items()}.items()
    again = run(endpoint, tmp_path)  # from the journal alone
    assert (again.tally.asked, again.not_understood, again.unparsed) == (0, reasons, 2)
    assert len(endpoint.bodies) == 5


def test_the_error_of_a_run_without_texts_has_the_reasons(endpoint, tmp_path):
    endpoint.script = lambda body, count: {"text": None, "finish": "length"}
    with pytest.raises(EndpointError, match=r"2 rows .* 2 no_text_length.*generation.max_tokens"):
        run(endpoint, tmp_path, rows(2))


def test_rows_need_labels_only_to_drop_contradictions(endpoint, tmp_path):
    endpoint.script = right
    data = [{"input": "0 and 1?"}]
    assert run(endpoint, tmp_path, data).contradicting == 0
    with pytest.raises(LabelError, match=r"^row 0: .*'label'"):
        run(endpoint, tmp_path, data, drop_contradicting=True)


def test_an_unanswered_row_has_an_empty_text_and_is_requested_again(endpoint, tmp_path):
    endpoint.script = lambda body, count: (
        {"status": 500} if "Q: 3 " in str(body["messages"][-1]) else right(body, count)
    )
    waits = []
    report = run(endpoint, tmp_path, waits=waits)
    assert (report.unanswered, report.tally.asked, report.tally.answered, report.complete) == (1, 5, 4, True)
    assert len(waits) == 2
    assert [bool(text) for text in written(tmp_path)] == [True, True, True, False, True]
    endpoint.script = right
    assert run(endpoint, tmp_path).tally.asked == 1
    assert all(written(tmp_path))


def test_a_run_that_spent_its_budget_is_resumed(endpoint, tmp_path):
    endpoint.script = right
    report = run(endpoint, tmp_path, max_requests=3)
    assert (report.complete, report.tally.answered, report.unanswered) == (False, 3, 2)
    assert not list((tmp_path / "llm").glob("*_CoT_*"))
    report = run(endpoint, tmp_path, max_requests=3)
    assert (report.complete, report.journaled, report.tally.asked) == (True, 3, 2)
    assert len(endpoint.bodies) == 5
    assert len(written(tmp_path)) == 5


def test_nothing_is_written_without_answers(endpoint, tmp_path):
    endpoint.script = lambda body, count: {"raw": b"?"}
    with pytest.raises(EndpointError, match=r"2 rows .* 4 answers"):
        run(endpoint, tmp_path, rows(2))
    assert not list((tmp_path / "llm").glob("*_CoT_*"))


def test_files_without_a_journal_are_not_overwritten(endpoint, tmp_path):
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "train_CoT_0.json").write_text('["published"]')
    (tmp_path / "llm" / "test_CoT_0.json").write_text('["published"]')
    with pytest.raises(DataError, match="train_CoT"):
        run(endpoint, tmp_path)
    assert written(tmp_path) == ["published"]
    assert endpoint.bodies == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "../train"}, ConfigError, r"generation.split=\.\./train"),
        ({"data": [*rows(1), {"label": "1"}]}, DataError, r"row 1: .*'input'"),
    ],
)
def test_invalid_options_are_rejected_before_any_request(endpoint, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run(endpoint, tmp_path, **options)
    assert endpoint.headers == []


def test_the_key_is_in_no_file(endpoint, key, tmp_path, caplog):
    caplog.set_level("DEBUG")
    endpoint.script = lambda body, count: f"Your key is {key}. The answer is (1)."
    report = run(endpoint, tmp_path)
    assert all(headers.get("Authorization") == f"Bearer {key}" for headers in endpoint.headers)
    assert written(tmp_path)[0] == "Your key is ***. The answer is (1)."
    texts = [path.read_text() for path in (tmp_path / "llm").iterdir()]
    assert not [text for text in [*texts, caplog.text, repr(report)] if key in text]


def test_log_probabilities_are_in_the_journal(endpoint, tmp_path):
    logprobs = {"content": [{"token": "Why", "logprob": -0.25}]}
    endpoint.script = lambda body, count: {"text": "Why. The answer is (1).", "choice": {"logprobs": logprobs}}
    run(endpoint, tmp_path, rows(1), Sampling(logprobs=True))
    assert endpoint.bodies[0]["logprobs"] is True
    entry = json.loads((tmp_path / "llm" / "train_journal.jsonl").read_text())
    assert entry["logprobs"] == [["Why", -0.25]]


def test_label_probabilities_are_written(endpoint, tmp_path):
    tokens = ["Why. The answer is", " yes", "."]
    likely = [{"token": " yes", "logprob": math.log(0.6)}, {"token": " no", "logprob": math.log(0.2)}]
    content = [{"token": token, "logprob": 0.0, "top_logprobs": likely if token == " yes" else []} for token in tokens]
    endpoint.script = lambda body, count: {"text": "".join(tokens), "choice": {"logprobs": {"content": content}}}
    own = {"label_sets": [["no", "yes"], None], "parse": lambda text: ("Why.", "yes")}
    run(endpoint, tmp_path, rows(2), Sampling(logprobs=True), **own)
    found, free = written(tmp_path, "train_labels.json")
    assert found == pytest.approx({"no": 0.25, "yes": 0.75})
    assert free is None
    run(endpoint, tmp_path, rows(2), Sampling(), **own)
    assert not (tmp_path / "llm" / "train_labels.json").exists()  # the file of the earlier run


SCRIPT = """
import sys
from test_run import rows, parse
from potstill.rationale_generation.prompts import load_prompts
from potstill.rationale_generation.run import generate
from potstill.rationale_generation.settings import EndpointSettings, Sampling
generate(
    rows(12), split="train", folder=sys.argv[2], prompts=load_prompts("svamp", shots=1), parse=parse,
    sampling=Sampling(), backend=EndpointSettings(sys.argv[1], "m", concurrency=2, timeout=30),
)
"""


def settled(endpoint):
    """Number of requests at the server, including those that a killed process had sent."""
    for _ in range(50):
        before = len(endpoint.bodies)
        time.sleep(0.2)
        if len(endpoint.bodies) == before:
            break
    return len(endpoint.bodies)


def test_a_killed_run_is_resumed_without_repeated_requests(endpoint, tmp_path):
    hold, reached = threading.Event(), threading.Event()

    def script(body, count):
        if len(endpoint.bodies) > 5 and not hold.is_set():
            reached.set()
            hold.wait(20)  # two requests are unanswered when the process is killed
        return right(body, count)

    endpoint.script = script
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), endpoint.url, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    journal = tmp_path / "llm" / "train_journal.jsonl"
    try:
        assert reached.wait(60), process.stderr.read()
        for _ in range(500):
            if journal.read_bytes().count(b"\n") >= 4:
                break
            time.sleep(0.01)
        with pytest.raises(DataError, match=rf"train_journal.jsonl .* {process.pid};"):
            run(endpoint, tmp_path, rows(12))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        process.stderr.close()
        hold.set()
    kept = journal.read_bytes().count(b"\n")
    assert 4 <= kept < 12
    assert not list((tmp_path / "llm").glob("*_CoT_*"))
    with journal.open("ab") as stream:
        stream.write(b'{"key": "incomplete')
    asked_before = settled(endpoint)
    report = run(endpoint, tmp_path, rows(12))
    assert report.journaled == kept
    assert len(endpoint.bodies) - asked_before == report.tally.asked == 12 - kept
    assert len(written(tmp_path)) == 12
    assert all(parse(text) for text in written(tmp_path))
    # Only requests that were unanswered at the kill are repeated.
    asked = endpoint.prompts()
    assert len(asked) - len(set(asked)) == asked_before - kept <= 2


def test_a_local_model_answers(gpt2_tokenizer, tmp_path):
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    fast = AutoTokenizer.from_pretrained(gpt2_tokenizer)
    config = GPT2Config(
        vocab_size=len(fast), n_positions=2048, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    fast.save_pretrained(tmp_path / "model")

    def local(folder, batch_size):
        return generate(
            rows(4), split="test", folder=tmp_path / folder, prompts=load_prompts("svamp", shots=1),
            form="completion", parse=parse,
            backend=LocalSettings(str(tmp_path / "model"), batch_size=batch_size),
            sampling=Sampling(max_tokens=6, temperature=1.0, samples=2),
        )  # fmt: skip

    report = local("one", 1)
    assert (report.tally.asked, report.unparsed, report.unanswered) == (8, 4, 0)
    texts = written(tmp_path / "one", "test_CoT_0.json")
    assert len(texts) == 4
    local("three", 3)
    assert written(tmp_path / "three", "test_CoT_0.json") == texts
    assert local("one", 1).tally.asked == 0
