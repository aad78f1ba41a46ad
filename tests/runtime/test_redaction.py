"""Masking of secrets, and texts that are not masked."""

import json
import logging

import pytest

from potstill.cli import commands
from potstill.runtime import redaction
from potstill.runtime.redaction import (
    is_secret_name,
    redact,
    redact_override,
    redacted,
    remember_overrides,
    remember_references,
)

SECRET = "Sup3r-s3cr3t-v4lue"


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", {})


@pytest.mark.parametrize(
    "text",
    [
        f"generation.url=http://me:{SECRET}@host:8000/v1: no",
        f"generation.url=https://{SECRET}@host/v1",
        f"generation.url=http://me:{SECRET}/x@y@host/v1",
        f"generation.url=me:{SECRET}@host/v1: no address",
        f"http://host/v1?key={SECRET}",
        f"http://host:80/v1?a=1&x={SECRET}&b=2",
        f"host/v1?key={SECRET}: not of the form key=value",
        f"host/v1?a=b&access_token={SECRET}",
        f"https://b.s3.amazonaws.com/x?X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}",
        f"https://a.blob.core.windows.net/c?sv=1&sig={SECRET}",
        f"generation.api_key={SECRET}: no such key",
        f"+generation.api_key={SECRET}",
        f"generation.key={SECRET}",
        f"generation.apiKey='{SECRET} and more {SECRET}'",
        f"HF_TOKEN={SECRET}",
        f"wandb.key={SECRET}",
        f"logger.password: {SECRET}",
        f"generation.extra_body={{api_key:{SECRET}}}",
        f"a=api_key:{SECRET}",
        f"generation.extra_body={{user: a, secret: {SECRET}}}",
        f'{{"x-api-key": "{SECRET}", "a": 1}}',
        f"Authorization: Bearer {SECRET}",
        f"'Authorization': 'Basic {SECRET}'",
        f"headers={{Authorization: Bearer {SECRET}}}",
        f"client_secret={SECRET}",
        f"aws_secret_access_key={SECRET}",
        f"DB_PASS={SECRET}",
    ],
)
def test_a_secret_is_masked(text):
    assert SECRET not in redact(text)
    assert "s3cr3t" not in redact(text)


@pytest.mark.parametrize(
    "value",
    [
        "sk-proj-abcdefgh",
        "sk-1234567890abcdef",
        "sk-ant-api03-xyz",
        "hf_abcdefghijklmnopqrstuv",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "github_pat_11ABCDEFG0abcdefghij_klmn",
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-1234567890-abc",
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.sflKxwRJSMeKKF2QT4",
    ],
)
def test_keys_of_known_forms_are_masked_anywhere(value):
    assert redact(f"generation.model={value}: no such model") == "generation.model=***: no such model"
    assert redact(f"runs/{value}") == "runs/***"
    assert redacted({"generation": {"model": value}}) == {"generation": {"model": "***"}}


@pytest.mark.parametrize(
    "text",
    [
        "teacher.model=bert-base-uncased: no such folder, and no network for the hub",
        "student.model=sentence-transformers/all-MiniLM-L6-v2",
        "model=/srv/runs/sk-learn/student: no such folder",
        "data.tokenizer=/models/tokenizer-v2",
        "train/tokens_per_second: 1200.5",
        "pad_token=[PAD], mask_token=<mask>, eos_token: </s>",
        "a: not of the form key=value or group=option; a dictionary, {key: value}; key=[a,b]",
        "generation.key_variable=OPENAI_API_KEY",
        "generation.url=http://localhost:8000/v1: does not answer",
        "http://localhost:8000/v1/@scope/package",
        "experiment@_global_=distilbert, teacher/cache@teacher.cache=on",
        "git@github.com:owner/repository.git",
        "me@example.com wrote to you at 12:30",
        "$L:6$H:[0:12]$[0:64]",
        "generation.max_tokens=256 generation.temperature=0.5",
        "git_commit: 45af3cc0123456789abcdef0123456789abcdef0",
        "keyword: a, monkey=b, donkey: c, author=me",
        "optimizer.lr=1e-4 data.batch_size=5",
        "token: 5 is not in the vocabulary of the tokenizer",
        "generation.api_key=null",
        "C:\\models\\x",
        "risk-averse-student-2, ask-me-anything-model1",
    ],
)
def test_other_texts_are_kept(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "name", ["pad_token", "tokens_per_second", "max_token", "tokenizer", "monkey", "label_key", "author"]
)
def test_plain_names(name):
    assert not is_secret_name(name)


def test_values_of_secret_variables_are_masked_anywhere(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    assert redact("denied: 0123456789abcdef0123456789abcdef01234567!") == "denied: ***!"


def test_paths_in_secret_variables_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("PWD", str(tmp_path))  # as a shell does
    monkeypatch.setenv("MY_CREDENTIALS", f"{tmp_path}/no-such-file")
    assert redact(f"data.folder={tmp_path}/data") == f"data.folder={tmp_path}/data"
    assert "no-such-file" not in redact(f"{tmp_path}/no-such-file")


def test_values_of_secret_overrides_are_masked_anywhere():
    remember_overrides(["generation.api_key=two words, a comma"])
    assert redact("two words, a comma: no such key") == "***: no such key"


def test_values_of_referenced_variables_become_the_reference(monkeypatch):
    monkeypatch.setenv("MY_SETTING", SECRET)
    monkeypatch.setenv("MY_PASSWORD", "swordfish")
    monkeypatch.setenv("MY_FOLDER", "/srv/data")
    monkeypatch.setenv("MY_NUMBER", "1000000")
    remember_references("a: ${oc.env:MY_SETTING} ${oc.env:MY_PASSWORD} ${oc.env:MY_FOLDER,x} ${oc.env:MY_NUMBER}")
    assert redact(f"{SECRET} swordfish /srv/data 1000000") == (
        "${oc.env:MY_SETTING} ${oc.env:MY_PASSWORD} /srv/data 1000000"
    )


def test_nested_settings():
    settings = {
        "generation": {
            "model": "gpt", "url": f"http://me:{SECRET}@host/v1", "api_key": SECRET, "key_variable": "abcdef0123-x",
            "extra_headers": {"X-Any": SECRET, "Authorization": f"Bearer {SECRET}"},
            "extra_body": {"top_k": 5, "deep": [{"password": 12345678}, {"token": None}, {"secret": "${oc.env:A}"}]},
        },
        "max_tokens": 400, "tokens": ["a", "b"], "key": "kept",
    }  # fmt: skip
    hidden = redacted(settings)
    assert SECRET not in json.dumps(hidden)
    assert "12345678" not in json.dumps(hidden)
    assert hidden["generation"]["key_variable"] == "***"
    assert hidden["generation"]["extra_body"]["top_k"] == 5
    assert hidden["generation"]["extra_body"]["deep"][1:] == [{"token": None}, {"secret": "${oc.env:A}"}]
    assert (hidden["max_tokens"], hidden["tokens"], hidden["generation"]["model"]) == (400, ["a", "b"], "gpt")
    assert redact_override(f"generation.api_key={SECRET} more") == "generation.api_key=***"
    assert redact_override("data.batch_size=5") == "data.batch_size=5"


def test_a_long_text_is_masked_in_linear_time():
    redact("a" * 300_000 + ":" * 300_000 + "a:b" * 100_000 + "://" * 100_000 + "key" * 100_000)


def test_a_line_of_the_log_is_masked(monkeypatch, caplog):
    monkeypatch.setattr(logging, "_logRecordFactory", commands._Record)
    with caplog.at_level(logging.INFO):
        logging.getLogger("potstill").info("%s: %d", f"http://me:{SECRET}@host", 3)
    assert caplog.messages == ["http://***@host: 3"]


def test_a_traceback_is_masked(capsys):
    try:
        raise RuntimeError(f"http://me:{SECRET}@host")
    except RuntimeError as error:
        redaction._report(type(error), error, error.__traceback__)
    assert "http://***@host" in capsys.readouterr().err
