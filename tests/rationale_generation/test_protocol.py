import email.utils
import json
import time

import pytest

from potstill.rationale_generation.answers import Answer, Request
from potstill.rationale_generation.protocol import (
    LONGEST_WAIT,
    backoff,
    error_text,
    read_reply,
    request_body,
    retry_after,
)
from potstill.rationale_generation.settings import Sampling

MESSAGES = [{"role": "user", "content": "Q"}]


def test_a_greedy_chat():
    body = request_body(Request("k", MESSAGES, 5), "m", Sampling(max_tokens=9), (), {})
    assert body == {"model": "m", "messages": MESSAGES, "max_tokens": 9, "temperature": 0.0}


def test_a_sampled_completion_with_all_options():
    sampling = Sampling(temperature=0.7, top_p=0.9, logprobs=True)
    body = request_body(Request("k", "Q", 5), "m", sampling, ("\n\n",), {"top_k": 3, "seed": None})
    assert body == {
        "model": "m", "prompt": "Q", "max_tokens": 256, "temperature": 0.7, "top_p": 0.9, "stop": ["\n\n"],
        "logprobs": 5, "top_k": 3,
    }  # fmt: skip
    chat = request_body(Request("k", MESSAGES, 5), "m", sampling, (), {})
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 20)
    assert request_body(Request("k", MESSAGES, 5), "m", sampling, (), {})["seed"] == 5


def test_replies_of_both_forms_are_read():
    usage = {"prompt_tokens": 4, "completion_tokens": 2}
    chat = {
        "choices": [
            {
                "message": {"content": "A"},
                "finish_reason": "stop",
                "logprobs": {"content": [{"token": "A", "logprob": -1, "top_logprobs": []}]},
            }
        ],
        "usage": usage,
    }
    assert read_reply(json.dumps(chat).encode()) == Answer("A", "stop", 4, 2, [("A", -1.0)])
    text = {"choices": [{"text": "A", "logprobs": {"tokens": ["A", "B"], "token_logprobs": [None, -2.0]}}]}
    assert read_reply(json.dumps(text).encode()) == Answer("A", "", 0, 0, [("B", -2.0)])


@pytest.mark.parametrize(
    ("message", "finish", "text", "reason"),
    [
        ({"content": "A", "reasoning_content": "thoughts"}, "stop", "A", "stop"),
        ({"content": "A", "reasoning": "thoughts"}, "length", "A", "length"),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "A"}]}, "stop", "A", "stop"),
        ({"content": None, "reasoning_content": "thoughts"}, "length", "", "length"),
        ({"content": None, "tool_calls": [{}]}, "stop", "", "tool_calls"),
        ({"tool_calls": [{}]}, "tool_calls", "", "tool_calls"),
        ({"content": None, "refusal": "no"}, "stop", "", "refusal"),
        ({"content": "", "refusal": None}, "content_filter", "", "content_filter"),
        ({"content": "A"}, "MAX_TOKENS", "A", "length"),
        ({"content": None}, None, "", "stop"),
    ],
)
def test_finish_reasons(message, finish, text, reason):
    answer = read_reply(json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode())
    assert (answer.text, answer.reason) == (text, reason)


def test_the_most_likely_tokens_are_read_in_both_forms():
    likely = [{"token": "A", "logprob": -1}, {"token": "C", "logprob": -2}, {"token": "D", "logprob": None}]
    content = [{"token": "A", "logprob": -1, "top_logprobs": likely}, {"token": ".", "logprob": 0, "top_logprobs": []}]
    chat = {"choices": [{"message": {"content": "A."}, "logprobs": {"content": content}}]}
    assert read_reply(json.dumps(chat).encode()).top == [[("A", -1.0), ("C", -2.0)], []]
    own = {"tokens": ["x", "B"], "token_logprobs": [None, -2.0], "top_logprobs": [None, {"B": -2.0, "E": -3.0}]}
    text = {"choices": [{"text": "B", "logprobs": own}]}
    assert read_reply(json.dumps(text).encode()).top == [[("B", -2.0), ("E", -3.0)]]


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_reply_outside_of_the_protocol_is_none(reply):
    assert read_reply(reply) is None


@pytest.mark.parametrize(
    ("usage", "output_tokens"),
    [
        *((usage, 0) for usage in ("[]", "3", '"many"', '{"prompt_tokens": [1]}')),
        *(
            (f'{{"prompt_tokens": {count}, "completion_tokens": 2}}', 2)
            for count in ('"many"', "1e999", "-3", "NaN", "null")
        ),
    ],
)
def test_invalid_counts_of_tokens_are_0(usage, output_tokens):
    raw = f'{{"choices": [{{"text": "A"}}], "usage": {usage}}}'
    assert read_reply(raw.encode()) == Answer("A", "", 0, output_tokens)


@pytest.mark.parametrize("value", ["NaN", "1000", '"no"'])
def test_invalid_log_probabilities_are_left_out(value):
    likely = f'[{{"token": "A", "logprob": {value}}}]'
    for logprob, top in ((value, "[]"), ("-1", likely)):
        content = f'[{{"token": "A", "logprob": {logprob}, "top_logprobs": {top}}}]'
        raw = f'{{"choices": [{{"message": {{"content": "A"}}, "logprobs": {{"content": {content}}}}}]}}'
        assert read_reply(raw.encode()) == Answer("A", "", 0, 0)


def test_backoff_doubles_up_to_the_maximum_and_is_deterministic():
    waits = [backoff("k", attempt, 1.0, 20.0) for attempt in range(8)]
    assert all(0.5 * min(20.0, 2.0**n) <= wait <= min(20.0, 2.0**n) for n, wait in enumerate(waits))
    assert waits == [backoff("k", attempt, 1.0, 20.0) for attempt in range(8)]
    assert backoff("other", 0, 1.0, 20.0) != waits[0]
    assert backoff("k", 10_000, 1.0, 20.0) <= 20.0


def test_retry_after_is_a_number_or_a_date():
    assert retry_after("7") == 7.0
    assert retry_after(None) == retry_after("soon") == retry_after("-3") == retry_after("nan") == 0.0
    assert retry_after("1e999") == retry_after("9" * 400) == LONGEST_WAIT
    assert retry_after("Fri, 31 Dec 9999 23:59:59 GMT") == LONGEST_WAIT
    assert 50 < retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    assert retry_after(email.utils.formatdate(time.time() - 60, usegmt=True)) == 0.0


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b'{"error": {"message": "too\\n long", "code": 1}}', "too long"),
        (b'{"error": "no"}', "no"),
        (b'{"detail": [1]}', "[1]"),
        (b"plain\ntext", "plain text"),
        (b"[1]", "[1]"),
        (b"x" * 999, "x" * 200),
    ],
)
def test_error_texts_are_one_line_of_at_most_200_characters(reply, text):
    assert error_text(reply) == text
