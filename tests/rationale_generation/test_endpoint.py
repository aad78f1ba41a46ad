import copy
import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from potstill.cli.commands import one_line
from potstill.errors import ConfigError, EndpointError, ModelError
from potstill.rationale_generation.answers import make_request
from potstill.rationale_generation.endpoint import Endpoint
from potstill.rationale_generation.settings import EndpointSettings, Sampling

SAMPLING = Sampling(max_tokens=9)


def requests(count, form="chat"):
    texts = [f"Q: {number}" for number in range(count)]
    prompts = texts if form == "completion" else [[{"role": "user", "content": text}] for text in texts]
    return [make_request(prompt, {"model": "m"}, SAMPLING, (), 0) for prompt in prompts]


class Run:
    """One call of `Endpoint.answer`: its answers by row, its waits and its tally."""

    def __init__(self, server, count=4, form="chat", accepted=False, stop=(), **settings):
        self.waits = []
        self.answers = {}
        options = {"concurrency": 1, "timeout": 5.0, "retries": 3, **settings}
        self.endpoint = Endpoint(
            EndpointSettings(server.url, "m", **options), SAMPLING, stop, accepted=accepted, wait=self._wait
        )
        self._requests = requests(count, form)

    async def _wait(self, seconds):
        self.waits.append(seconds)

    def run(self):
        numbers = {request.key: number for number, request in enumerate(self._requests)}

        def record(request, answer):
            self.answers[numbers[request.key]] = answer

        self.tally = self.endpoint.answer(self._requests, record)
        return self


@pytest.mark.parametrize(("form", "path"), [("chat", "/v1/chat/completions"), ("completion", "/v1/completions")])
def test_each_request_gets_its_own_answer(endpoint, form, path):
    endpoint.script = lambda body, _: f"to {(body.get('prompt') or body['messages'][0]['content'])[3:]}"
    run = Run(endpoint, 20, form, concurrency=6).run()
    assert {number: answer.text for number, answer in run.answers.items()} == {n: f"to {n}" for n in range(20)}
    assert {body["path"] for body in endpoint.bodies} == {path}
    assert (run.tally.asked, run.tally.answered, run.tally.retried) == (20, 20, 0)
    assert (run.tally.input_tokens, run.tally.output_tokens) == (200, 60)


def test_requests_are_concurrent(endpoint):
    together = threading.Barrier(4, timeout=5)

    def script(body, count):
        together.wait()  # breaks unless four requests meet here
        return "A"

    endpoint.script = script
    assert Run(endpoint, 8, concurrency=4).run().tally.answered == 8


def test_retry_after_of_a_429_is_waited_for(endpoint):
    def script(body, count):
        return {"status": 429, "headers": {"Retry-After": "17"}} if count == 0 else "A"

    endpoint.script = script
    run = Run(endpoint, 2).run()
    assert run.waits == [17.0, 17.0]
    assert (run.tally.answered, run.tally.retried, run.tally.failed) == (2, 2, 2)


def test_a_wait_longer_than_the_maximum_ends_the_run(endpoint):
    endpoint.script = lambda body, count: (
        "A" if body["messages"][0]["content"] == "Q: 0" else {"status": 429, "headers": {"Retry-After": "1000"}}
    )
    run = Run(endpoint, 5).run()
    assert run.waits == []
    assert (run.tally.asked, run.tally.answered, run.tally.retried) == (2, 1, 0)
    assert run.tally.requested_wait == 1000
    assert run.tally.ended_early


def test_ten_failed_rows_in_succession_end_the_run(endpoint):
    endpoint.script = lambda body, count: {"status": 500, "raw": b""}
    with pytest.raises(EndpointError, match=r"^generation\.url=.*\(500\)"):
        Run(endpoint, 50, retries=1).run()
    assert len(endpoint.bodies) == 20  # ten rows, each with one retry


def test_rows_that_fail_between_answers_are_skipped(endpoint):
    def script(body, count):
        return {"status": 500} if int(body["messages"][0]["content"][3:]) % 3 else "A"

    endpoint.script = script
    assert Run(endpoint, 30, retries=0).run().tally.answered == 10


def test_an_incomplete_reply_is_retried(endpoint):
    def script(body, count):
        return {"raw": b'{"choices": ', "headers": {"Content-Length": "500"}} if count < 3 else "A"

    endpoint.script = script
    run = Run(endpoint, 1).run()
    assert (run.tally.answered, run.tally.failed, run.tally.malformed) == (1, 3, 0)


@pytest.mark.parametrize("error", [{"status": 500}, {"status": 503}, {"drop": True}, {"status": 429}])
def test_transient_errors_are_retried_with_exponential_backoff(endpoint, error):
    endpoint.script = lambda body, count: "A" if count == 3 else error
    run = Run(endpoint, 1, backoff_seconds=1.0).run()
    assert run.answers[0].text == "A"
    assert run.tally.retried == run.tally.failed == 3
    first, second, third = run.waits
    assert 0.5 <= first <= 1 <= second <= 2 <= third <= 4


def test_a_row_that_fails_after_all_retries_is_skipped(endpoint):
    endpoint.script = lambda body, count: {"status": 502} if body["messages"][0]["content"] == "Q: 1" else "A"
    run = Run(endpoint, 3, retries=2).run()
    assert set(run.answers) == {0, 2}
    assert (run.tally.asked, run.tally.retried, run.tally.failed) == (3, 2, 3)


def test_a_timeout_is_retried(endpoint):
    endpoint.script = lambda body, count: {"text": "A", "delay": 0.6 if count == 0 else 0}
    run = Run(endpoint, 1, timeout=0.2).run()
    assert (run.tally.answered, run.tally.retried) == (1, 1)


@pytest.mark.parametrize(
    ("spoiled", "counted"),
    [
        ({"raw": b"<html>"}, "malformed"),
        ({"raw": b'{"error": {"message": "overloaded"}}'}, "malformed"),
        ({"text": None}, "empty"),
        ({"text": " \n"}, "empty"),
    ],
)
def test_an_unusable_answer_is_retried_once(endpoint, spoiled, counted):
    endpoint.script = lambda body, count: "A" if count == 1 and body["messages"][0]["content"] == "Q: 0" else spoiled
    run = Run(endpoint, 2).run()
    assert set(run.answers) == {0}
    assert getattr(run.tally, counted) == 3  # one of the first row, two of the second
    assert len(endpoint.bodies) == 4


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls"])
def test_an_answer_without_text_is_recorded_if_its_finish_reason_explains_it(endpoint, finish):
    endpoint.script = lambda body, count: {"text": None, "finish": finish}
    run = Run(endpoint, 2).run()
    assert [(answer.text, answer.reason) for answer in run.answers.values()] == [("", finish)] * 2
    assert (run.tally.empty, run.tally.answered, run.tally.retried) == (2, 0, 0)


def test_ten_replies_outside_of_the_protocol_end_the_run(endpoint):
    endpoint.script = lambda body, count: {"raw": b'{"error": {"message": "no such engine"}}'}
    with pytest.raises(EndpointError, match=r"^generation.url=.*no such engine"):
        Run(endpoint, 50).run()
    assert len(endpoint.bodies) == 20


class SlowServer:
    """Sends a head at once, and then `drip` 600 times, one per 50 ms."""

    def __init__(self, head, drip):
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"
        self._head, self._drip = head, drip
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client):
        with client:
            try:
                client.recv(65536)
                client.sendall(self._head)
                for _ in range(600):
                    client.sendall(self._drip)
                    time.sleep(0.05)
            except OSError:
                pass

    def close(self):
        self._listening.close()


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 1000\r\n\r\n", b" "),
    ],
)
def test_the_timeout_covers_the_whole_reply(head, drip):
    server = SlowServer(head, drip)
    try:
        endpoint = Run(server).endpoint
        reply = endpoint._run(lambda: endpoint._send("/completions", b"{}", 0.3))
    finally:
        server.close()
    assert reply.status == 0
    assert "0.3 s" in reply.error


def test_an_invalid_chunk_length_is_a_failure(endpoint):
    chunked = {"headers": {"Transfer-Encoding": "chunked"}, "raw": b"-5\r\nabc\r\n"}
    endpoint.script = lambda body, count: {**chunked, "headers": {**chunked["headers"]}} if count == 0 else "A"
    run = Run(endpoint, 1).run()
    assert (run.tally.answered, run.tally.retried) == (1, 1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_rejected_key_ends_the_run(endpoint, key, status):
    endpoint.script = lambda body, count: {"status": status, "raw": f'{{"error": "Bad key: {key}"}}'.encode()}
    run = Run(endpoint, 50, concurrency=2)
    with pytest.raises(EndpointError, match=rf"{status}: .*OPENAI_API_KEY") as raised:
        run.run()
    assert len(endpoint.bodies) <= 2
    assert key not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_key_names_its_variable(endpoint, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    endpoint.models_status = 401
    with pytest.raises(EndpointError, match="MY_KEY"):
        Run(endpoint, key_variable="MY_KEY").endpoint.check()


def test_404_names_the_model(endpoint):
    endpoint.script = lambda body, count: {"status": 404, "raw": b'{"error": {"message": "unknown"}}'}
    with pytest.raises(ModelError, match=r"^generation.model=m: .*unknown"):
        Run(endpoint).run()


def test_a_redirection_is_not_followed(endpoint, key):
    endpoint.script = lambda body, count: {"status": 302, "headers": {"Location": f"{endpoint.url}/models"}}
    with pytest.raises(EndpointError, match=r"^generation\.url=.*302"):
        Run(endpoint).run()
    assert len(endpoint.headers) == 1


def test_a_rejected_row_is_skipped(endpoint):
    endpoint.script = lambda body, count: {"status": 400} if body["messages"][0]["content"] == "Q: 0" else "A"
    run = Run(endpoint, 3).run()
    assert set(run.answers) == {1, 2}
    assert (run.tally.refused, run.tally.retried) == (1, 0)


def test_three_rejections_before_the_first_answer_end_the_run(endpoint):
    endpoint.script = lambda body, count: {"status": 422, "raw": b'{"detail": "no field seed"}'}
    with pytest.raises(EndpointError, match=r"^generation\.url=.*422.*no field seed"):
        Run(endpoint, 10).run()
    assert len(endpoint.bodies) == 3
    # An earlier run had answers with these settings.
    assert Run(endpoint, 10, accepted=True).run().tally.refused == 10


def test_the_budget_of_requests_includes_retries(endpoint):
    endpoint.script = lambda body, count: {"status": 500} if count == 0 else "A"
    run = Run(endpoint, 4, max_requests=5).run()
    assert len(endpoint.bodies) == 5
    assert run.tally.answered == 2
    assert run.tally.budget_spent


@pytest.mark.parametrize(("limit", "answered", "spent"), [(26, 2, True), (27, 3, True), (52, 4, False)])
def test_the_budget_of_tokens_ends_the_run(endpoint, limit, answered, spent):
    run = Run(endpoint, 4, max_total_tokens=limit).run()  # 13 tokens per answer
    assert (run.tally.answered, run.tally.budget_spent) == (answered, spent)


def test_truncated_answers_are_counted(endpoint):
    endpoint.script = lambda body, count: {"text": "A", "finish": "length"}
    assert Run(endpoint, 2).run().tally.truncated == 2


def test_an_unreachable_endpoint_is_an_error_of_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"

    run = Run(SimpleNamespace(url=url), 3, retries=1)
    with pytest.raises(EndpointError, match=r"^generation.url=.*ConnectionRefusedError") as raised:
        run.endpoint.check()
    assert "\n" not in str(raised.value)
    with pytest.raises(EndpointError, match=r"^generation\.url="):
        run.run()


def test_an_unsupported_proxy_is_an_endpoint_error(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(EndpointError, match=r"^generation.url=http://example.org"):
        Run(SimpleNamespace(url="http://example.org/v1")).endpoint.check()


def test_the_list_of_models_is_optional(endpoint):
    endpoint.models_status = 404
    Run(endpoint).endpoint.check()


def test_the_key_is_sent_but_never_shown(endpoint, key, caplog, capsys):
    caplog.set_level("DEBUG")
    echo = f'{{"choices": [{{"message": {{"content": "I saw {key}"}}}}]}}'.encode()
    escaped = echo.replace(b"sk-test/", b"sk-test\\/")
    refused = {"status": 400, "raw": f"no {key}".encode()}
    endpoint.script = lambda body, count: [{"raw": echo}, {"raw": escaped}, refused][
        int(body["messages"][0]["content"][3:])
    ]
    run = Run(endpoint, 3)
    run.endpoint.check()
    run.run()
    assert {headers["Authorization"] for headers in endpoint.headers} == {f"Bearer {key}"}
    assert [answer.text for answer in run.answers.values()] == ["I saw ***"] * 2
    seen = [caplog.text, *capsys.readouterr(), repr(run.endpoint), repr(vars(run.endpoint)), repr(run.tally)]
    assert "no ***" in caplog.text
    assert not [text for text in seen if key in text]
    with pytest.raises(TypeError):
        copy.copy(run.endpoint._key)


def test_a_placeholder_key_does_not_change_answers(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "content")
    endpoint.script = lambda body, count: "the content"
    assert Run(endpoint, 1).run().answers[0].text == "the content"


def test_without_a_key_no_header_is_sent(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    Run(endpoint, 1).run()
    assert "Authorization" not in endpoint.headers[0]


@pytest.mark.parametrize("value", ["sk-secret\nX-Other: 1", "sk-sécret", "sk secret"])
def test_an_invalid_key_is_rejected_without_showing_it(endpoint, monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(ConfigError, match=r"generation.key_variable=OPENAI_API_KEY") as raised:
        Run(endpoint)
    assert "sk" not in str(raised.value)


def test_a_line_end_after_the_key_is_removed(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\n")
    Run(endpoint, 1).run()
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "generation.url=localhost:8000: "),
        ({"url": "http://h:port/v1"}, "generation.url: "),
        ({"url": "https://user:sk-1@host/v1"}, "generation.url: "),
        ({"url": "https://host/v1?key=sk-1"}, "generation.url: "),
        ({"model": ""}, "generation.model"),
        ({"concurrency": 0}, "generation.concurrency=0: "),
        ({"timeout": 0}, "generation.timeout=0"),
        ({"max_requests": 0}, "generation.max_requests=0"),
        ({"max_total_tokens": -1}, "generation.max_total_tokens=-1"),
        ({"retries": -1}, "generation.retries=-1"),
        *(
            ({name: value}, f"generation.{name}={value}: ")
            for name in ("backoff_seconds", "longest_wait_seconds", "timeout")
            for value in (float("inf"), float("nan"), -1)
        ),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        EndpointSettings(**{"url": "http://localhost/v1", "model": "m", **settings})
    assert "sk-1" not in str(raised.value)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 0}, "generation.max_tokens=0"),
        ({"temperature": -1}, "generation.temperature=-1"),
        ({"temperature": float("nan")}, "generation.temperature=nan"),
        ({"temperature": float("inf")}, "generation.temperature=inf"),
        ({"top_p": 0}, "generation.top_p=0"),
        ({"samples": 0}, "generation.samples=0"),
        ({"samples": 2}, "generation.samples=2: "),
    ],
)
def test_invalid_sampling_is_rejected(sampling, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**sampling)


@pytest.mark.parametrize("text", ["\x1b[2J red", "a\u202eb", "NUL \x00", "\x9bm"])
def test_error_texts_of_an_endpoint_are_printable(endpoint, text):
    endpoint.script = lambda body, count: {"status": 404, "raw": json.dumps({"error": {"message": text}}).encode()}
    with pytest.raises(ModelError) as raised:
        Run(endpoint).run()
    assert one_line(raised.value).isprintable()


def test_extra_fields_are_sent_as_json(endpoint):
    extra = {"stop_token_ids": [1, 2], "chat_template_kwargs": {"enable_thinking": False, 1: [None, {"a": 0.5}]}}
    Run(endpoint, 1, extra_body=extra).run()
    sent = {name: endpoint.bodies[0][name] for name in extra}
    assert sent == {
        "stop_token_ids": [1, 2],
        "chat_template_kwargs": {"enable_thinking": False, "1": [None, {"a": 0.5}]},
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", float("nan")),
        ("top_k", [float("inf")]),
        ("bias", {"a": b"x"}),
        ("bias", {(1, 2): 3}),
        ("stream", True),
        ("n", 4),
        ("messages", []),
    ],
)
def test_invalid_extra_fields_are_rejected(name, value):
    with pytest.raises(ConfigError, match=rf"generation.extra_body.{name}="):
        EndpointSettings("http://localhost/v1", "m", extra_body={name: value})
