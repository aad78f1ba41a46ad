import copy
import socket
import threading
import time

import pytest

from potstill.cli.commands import one_line
from potstill.errors import ConfigError, ModelError
from potstill.rationale_generation.answers import make_request
from potstill.rationale_generation.endpoint import Endpoint
from potstill.rationale_generation.settings import EndpointSettings, Sampling

SAMPLING = Sampling(max_tokens=9)


def requests(count, form="chat"):
    texts = [f"Q: {number}" for number in range(count)]
    prompts = texts if form == "completion" else [[{"role": "user", "content": text}] for text in texts]
    return [make_request(prompt, {"model": "m"}, SAMPLING, (), 0) for prompt in prompts]


class Asked:
    """Everything one call of `answer` did."""

    def __init__(self, server, count=4, form="chat", accepted=False, stop=(), **settings):
        self.waits = []
        self.answers = {}
        options = {"concurrency": 1, "timeout": 5.0, "retries": 3, **settings}
        self.endpoint = Endpoint(
            EndpointSettings(server.url, "m", **options),
            SAMPLING,
            stop,
            accepted=accepted,
            wait=self.waits.append,
        )
        self._requests = requests(count, form)

    def run(self):
        numbers = {request.key: number for number, request in enumerate(self._requests)}

        def record(request, answer):
            self.answers[numbers[request.key]] = answer

        self.tally = self.endpoint.answer(self._requests, record)
        return self


@pytest.mark.parametrize(
    ("form", "path"), [("chat", "/v1/chat/completions"), ("completion", "/v1/completions")]
)
def test_each_request_gets_its_own_answer(endpoint, form, path):
    endpoint.script = lambda body, _: f"to {(body.get('prompt') or body['messages'][0]['content'])[3:]}"
    asked = Asked(endpoint, 20, form, concurrency=6).run()
    assert {number: answer.text for number, answer in asked.answers.items()} == {
        n: f"to {n}" for n in range(20)
    }
    assert {body["path"] for body in endpoint.bodies} == {path}
    assert (asked.tally.asked, asked.tally.answered, asked.tally.retried) == (20, 20, 0)
    assert (asked.tally.input_tokens, asked.tally.output_tokens) == (200, 60)


def test_requests_are_under_way_at_the_same_time(endpoint):
    together = threading.Barrier(4, timeout=5)

    def script(body, count):
        together.wait()  # breaks unless four requests meet here
        return "A"

    endpoint.script = script
    assert Asked(endpoint, 8, concurrency=4).run().tally.answered == 8


def test_429_waits_as_long_as_it_is_told(endpoint):
    def script(body, count):
        return {"status": 429, "headers": {"Retry-After": "17"}} if count == 0 else "A"

    endpoint.script = script
    asked = Asked(endpoint, 2).run()
    assert asked.waits == [17.0, 17.0]
    assert (asked.tally.answered, asked.tally.retried, asked.tally.failed) == (2, 2, 2)


def test_a_wait_beyond_the_longest_ends_the_run(endpoint):
    endpoint.script = lambda body, count: (
        "A"
        if body["messages"][0]["content"] == "Q: 0"
        else {"status": 429, "headers": {"Retry-After": "1000"}}
    )
    asked = Asked(endpoint, 5).run()
    assert asked.waits == []
    assert (asked.tally.asked, asked.tally.answered, asked.tally.retried) == (2, 1, 0)
    assert asked.tally.told_to_wait == 1000
    assert asked.tally.ended_early


def test_an_endpoint_that_only_fails_is_given_up(endpoint):
    endpoint.script = lambda body, count: {"status": 500, "raw": b""}
    with pytest.raises(ConfigError, match=r"generation\.url=.* \(500\)"):
        Asked(endpoint, 50, retries=1).run()
    assert len(endpoint.bodies) == 20  # ten rows, each asked twice


def test_rows_that_fail_between_answers_are_left_out(endpoint):
    def script(body, count):
        return {"status": 500} if int(body["messages"][0]["content"][3:]) % 3 else "A"

    endpoint.script = script
    assert Asked(endpoint, 30, retries=0).run().tally.answered == 10


def test_an_answer_that_is_cut_off_is_asked_for_again(endpoint):
    def script(body, count):
        return {"raw": b'{"choices": ', "headers": {"Content-Length": "500"}} if count < 3 else "A"

    endpoint.script = script
    asked = Asked(endpoint, 1).run()
    assert (asked.tally.answered, asked.tally.failed, asked.tally.malformed) == (1, 3, 0)


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"drop": True}, {"status": 429}])
def test_a_passing_fault_is_repeated_with_growing_waits(endpoint, fault):
    endpoint.script = lambda body, count: "A" if count == 3 else fault
    asked = Asked(endpoint, 1, backoff_seconds=1.0).run()
    assert asked.answers[0].text == "A"
    assert asked.tally.retried == asked.tally.failed == 3
    first, second, third = asked.waits
    assert 0.5 <= first <= 1 <= second <= 2 <= third <= 4


def test_a_lasting_fault_leaves_the_row_and_goes_on(endpoint):
    endpoint.script = lambda body, count: {"status": 502} if body["messages"][0]["content"] == "Q: 1" else "A"
    asked = Asked(endpoint, 3, retries=2).run()
    assert set(asked.answers) == {0, 2}
    assert (asked.tally.asked, asked.tally.retried, asked.tally.failed) == (3, 2, 3)


def test_a_slow_answer_is_given_up_and_asked_again(endpoint):
    endpoint.script = lambda body, count: {"text": "A", "delay": 0.6 if count == 0 else 0}
    asked = Asked(endpoint, 1, timeout=0.2).run()
    assert (asked.tally.answered, asked.tally.retried) == (1, 1)


@pytest.mark.parametrize(
    ("spoiled", "counted"),
    [
        ({"raw": b"<html>"}, "malformed"),
        ({"raw": b'{"error": {"message": "overloaded"}}'}, "malformed"),
        ({"text": None}, "empty"),
        ({"text": " \n"}, "empty"),
    ],
)
def test_a_spoiled_answer_is_asked_for_once_more(endpoint, spoiled, counted):
    endpoint.script = lambda body, count: (
        "A" if count == 1 and body["messages"][0]["content"] == "Q: 0" else spoiled
    )
    asked = Asked(endpoint, 2).run()
    assert set(asked.answers) == {0}
    assert getattr(asked.tally, counted) == 3  # one of the first row, two of the second
    assert len(endpoint.bodies) == 4


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls"])
def test_an_answer_without_text_is_recorded_where_its_reason_is_known(endpoint, finish):
    endpoint.script = lambda body, count: {"text": None, "finish": finish}
    asked = Asked(endpoint, 2).run()
    assert [(answer.text, answer.reason) for answer in asked.answers.values()] == [("", finish)] * 2
    assert (asked.tally.empty, asked.tally.answered, asked.tally.retried) == (2, 0, 0)


def test_an_endpoint_that_answers_nothing_of_the_protocol_is_given_up(endpoint):
    endpoint.script = lambda body, count: {"raw": b'{"error": {"message": "no such engine"}}'}
    with pytest.raises(ConfigError, match=r"generation.url=.*no such engine"):
        Asked(endpoint, 50).run()
    assert len(endpoint.bodies) == 20


class Dripping:
    """A server that sends its reply a byte at a time, more slowly than a request may take; `drips` counts them."""

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
def test_a_request_ends_when_its_time_is_over_however_its_reply_comes(head, drip):
    server = Dripping(head, drip)
    try:
        reply = Asked(server).endpoint._send("/completions", b"{}", 0.3)
    finally:
        server.close()
    assert reply.status == 0
    assert "0.3 s" in reply.fault


def test_a_reply_of_an_absurd_length_is_a_failure(endpoint):
    chunked = {"headers": {"Transfer-Encoding": "chunked"}, "raw": b"-5\r\nabc\r\n"}
    endpoint.script = lambda body, count: (
        {**chunked, "headers": {**chunked["headers"]}} if count == 0 else "A"
    )
    asked = Asked(endpoint, 1).run()
    assert (asked.tally.answered, asked.tally.retried) == (1, 1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_at_once(endpoint, key, status):
    endpoint.script = lambda body, count: {"status": status, "raw": f'{{"error": "Bad key: {key}"}}'.encode()}
    asked = Asked(endpoint, 50, concurrency=2)
    with pytest.raises(ConfigError, match=rf"{status}: .* OPENAI_API_KEY ") as raised:
        asked.run()
    assert len(endpoint.bodies) <= 2
    assert key not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_key_that_is_wanted_is_asked_for_by_its_name(endpoint, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    endpoint.models_status = 401
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        Asked(endpoint, key_variable="MY_KEY").endpoint.check()


def test_404_names_the_model(endpoint):
    endpoint.script = lambda body, count: {"status": 404, "raw": b'{"error": {"message": "unknown"}}'}
    with pytest.raises(ModelError, match=r"generation.model=m: .* \(unknown\)"):
        Asked(endpoint).run()


def test_a_redirection_is_not_followed(endpoint, key):
    endpoint.script = lambda body, count: {"status": 302, "headers": {"Location": f"{endpoint.url}/models"}}
    with pytest.raises(ConfigError, match=r"generation\.url=.* \(302\)"):
        Asked(endpoint).run()
    assert len(endpoint.headers) == 1


def test_a_row_that_is_refused_is_left_out(endpoint):
    endpoint.script = lambda body, count: {"status": 400} if body["messages"][0]["content"] == "Q: 0" else "A"
    asked = Asked(endpoint, 3).run()
    assert set(asked.answers) == {1, 2}
    assert (asked.tally.refused, asked.tally.retried) == (1, 0)


def test_if_all_is_refused_the_settings_are_at_fault(endpoint):
    endpoint.script = lambda body, count: {"status": 422, "raw": b'{"detail": "no field seed"}'}
    with pytest.raises(ConfigError, match=r"generation\.url=.* \(422\) \(no field seed\)"):
        Asked(endpoint, 10).run()
    assert len(endpoint.bodies) == 3
    # Unless requests of these settings were answered in an earlier run.
    assert Asked(endpoint, 10, accepted=True).run().tally.refused == 10


def test_the_budget_of_requests_counts_repetitions(endpoint):
    endpoint.script = lambda body, count: {"status": 500} if count == 0 else "A"
    asked = Asked(endpoint, 4, max_requests=5).run()
    assert len(endpoint.bodies) == 5
    assert asked.tally.answered == 2
    assert asked.tally.budget_spent


@pytest.mark.parametrize(("limit", "answered", "spent"), [(26, 2, True), (27, 3, True), (52, 4, False)])
def test_the_budget_of_tokens_ends_the_run(endpoint, limit, answered, spent):
    asked = Asked(endpoint, 4, max_total_tokens=limit).run()  # 13 tokens an answer
    assert (asked.tally.answered, asked.tally.budget_spent) == (answered, spent)


def test_truncated_answers_are_counted(endpoint):
    endpoint.script = lambda body, count: {"text": "A", "finish": "length"}
    assert Asked(endpoint, 2).run().tally.truncated == 2


def test_an_endpoint_that_is_not_there_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"

    class Nowhere:
        pass

    Nowhere.url = url
    asked = Asked(Nowhere, 3, retries=1)
    with pytest.raises(
        ConfigError, match=r"generation.url=.*: does not answer \(ConnectionRefusedError"
    ) as raised:
        asked.endpoint.check()
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"generation\.url="):
        asked.run()


def test_an_endpoint_without_a_list_of_models_is_there(endpoint):
    endpoint.models_status = 404
    Asked(endpoint).endpoint.check()


def test_the_key_is_sent_and_shows_nowhere(endpoint, key, caplog, capsys):
    caplog.set_level("DEBUG")
    echo = f'{{"choices": [{{"message": {{"content": "I saw {key}"}}}}]}}'.encode()
    escaped = echo.replace(b"sk-test/", b"sk-test\\/")
    refused = {"status": 400, "raw": f"no {key}".encode()}
    endpoint.script = lambda body, count: [{"raw": echo}, {"raw": escaped}, refused][
        int(body["messages"][0]["content"][3:])
    ]
    asked = Asked(endpoint, 3)
    asked.endpoint.check()
    asked.run()
    assert {headers["Authorization"] for headers in endpoint.headers} == {f"Bearer {key}"}
    assert [answer.text for answer in asked.answers.values()] == ["I saw ***"] * 2
    seen = [
        caplog.text,
        *capsys.readouterr(),
        repr(asked.endpoint),
        repr(vars(asked.endpoint)),
        repr(asked.tally),
    ]
    assert "no ***" in caplog.text
    assert not [text for text in seen if key in text]
    with pytest.raises(TypeError, match="pickled"):
        copy.copy(asked.endpoint._key)


def test_a_stand_in_for_a_key_changes_no_answer(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "content")
    endpoint.script = lambda body, count: "the content"
    assert Asked(endpoint, 1).run().answers[0].text == "the content"


def test_without_a_key_no_header_is_sent(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    Asked(endpoint, 1).run()
    assert "Authorization" not in endpoint.headers[0]


@pytest.mark.parametrize("value", ["sk-secret\nX-Other: 1", "sk-sécret", "sk secret"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(endpoint, monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(ConfigError, match=r"generation.key_variable=OPENAI_API_KEY") as raised:
        Asked(endpoint)
    assert "sk" not in str(raised.value)


def test_a_key_with_a_line_end_is_the_key(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\n")
    Asked(endpoint, 1).run()
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "generation.url=localhost:8000: expected"),
        ({"url": "http://h:port/v1"}, "generation.url: "),
        ({"url": "https://user:sk-1@host/v1"}, "generation.url: "),
        ({"url": "https://host/v1?key=sk-1"}, "generation.url: "),
        ({"model": ""}, "generation.model"),
        ({"concurrency": 0}, "generation.concurrency=0: expected 1 or more"),
        ({"timeout": 0}, "generation.timeout=0"),
        ({"max_requests": 0}, "generation.max_requests=0"),
        ({"max_total_tokens": -1}, "generation.max_total_tokens=-1"),
        ({"retries": -1}, "generation.retries=-1"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        EndpointSettings(**{"url": "http://localhost/v1", "model": "m", **settings})
    assert "sk-1" not in str(raised.value)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 0}, "generation.max_tokens=0"),
        ({"temperature": -1}, "generation.temperature=-1"),
        ({"temperature": float("nan")}, "generation.temperature=nan"),
        ({"top_p": 0}, "generation.top_p=0"),
        ({"samples": 0}, "generation.samples=0"),
        ({"samples": 2}, "generation.samples=2: "),
    ],
)
def test_sampling_that_cannot_be_is_named(sampling, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**sampling)


@pytest.mark.parametrize("text", ["\x1b[2J red", "a\u202eb", "NUL \x00", "\x9bm"])
def test_what_an_endpoint_says_acts_on_no_terminal(endpoint, text):
    import json

    endpoint.script = lambda body, count: {
        "status": 404,
        "raw": json.dumps({"error": {"message": text}}).encode(),
    }
    with pytest.raises(ModelError) as raised:
        Asked(endpoint).run()
    assert one_line(raised.value).isprintable()


def test_more_fields_of_a_request_are_sent_as_json(endpoint):
    extra = {
        "stop_token_ids": [1, 2],
        "chat_template_kwargs": {"enable_thinking": False, 1: [None, {"a": 0.5}]},
    }
    Asked(endpoint, 1, extra_body=extra).run()
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
def test_fields_that_cannot_be_sent_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"generation.extra_body.{name}="):
        EndpointSettings("http://localhost/v1", "m", extra_body={name: value})


@pytest.mark.parametrize("name", ["backoff_seconds", "longest_wait_seconds", "timeout"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1])
def test_times_are_finite(name, value):
    with pytest.raises(ConfigError, match=rf"generation.{name}={value}"):
        EndpointSettings("http://localhost/v1", "m", **{name: value})
    with pytest.raises(ConfigError, match=rf"generation.temperature={value}"):
        Sampling(temperature=value)
