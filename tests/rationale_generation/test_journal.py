import errno
import json
import math
import os
import re
from pathlib import Path

import pytest

from potstill.errors import DataError, FileError, FormatError, WriteError
from potstill.rationale_generation.answers import Answer, make_request
from potstill.rationale_generation.journal import Journal
from potstill.rationale_generation.settings import Sampling

ANSWER = Answer("Ein Grund, naïve\n\u2028", "stop", 7, 3, [("Ein", -0.5)])


def test_answers_are_read_back_unchanged(tmp_path):
    path = tmp_path / "llm" / "train_journal.jsonl"
    with Journal(path) as journal:
        journal.add("a", ANSWER)
        journal.add("b", Answer("x", "length", 0, 0))
    with Journal(path) as journal:
        assert journal.lines == 2
        assert journal.answers == {"a": ANSWER, "b": Answer("x", "length", 0, 0)}


@pytest.mark.parametrize("kept", [1, 10, -1])
def test_an_incomplete_last_line_is_removed(tmp_path, kept):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add("a", ANSWER)
        whole = path.read_bytes()
        journal.add("b", ANSWER)
    incomplete = path.read_bytes()[len(whole) :][:kept]
    path.write_bytes(whole + incomplete)
    with Journal(path) as journal:
        assert set(journal.answers) == {"a"}
        journal.add("c", ANSWER)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "c"]


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "b"}', '{"key": 1, "text": "", "finish": "", '
                                  '"input_tokens": 0, "output_tokens": 0}', "\xff"])  # fmt: skip
def test_a_damaged_line_is_skipped_with_a_warning(tmp_path, line, caplog):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add("a", ANSWER)
    path.write_bytes(line.encode("latin1") + b"\n" + path.read_bytes())
    with Journal(path) as journal:
        assert set(journal.answers) == {"a"}
    assert "line 1 " in caplog.text


def test_a_journal_has_one_writer(tmp_path):
    path = tmp_path / "journal.jsonl"
    with (
        Journal(path),
        pytest.raises(DataError, match=rf"{re.escape(str(path))} .* process {os.getpid()};"),
        Journal(path),
    ):
        pass
    with Journal(path) as journal:  # the lock is released
        assert journal.answers == {}


def test_a_folder_that_cannot_be_written_is_a_write_error(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "j.jsonl"
    with pytest.raises(WriteError) as raised, Journal(path):
        pass
    assert raised.value.filename == str(path)


def test_a_full_disk_is_a_write_error(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal._stream.close()
        with Path("/dev/full").open("ab", buffering=0) as full:
            journal._stream = full
            with pytest.raises(WriteError) as raised:
                journal.add("a", ANSWER)
            assert raised.value.errno == errno.ENOSPC
            assert journal.answers == {}


BASE = {"prompt": "Q", "identity": {"model": "m"}, "sampling": Sampling(temperature=1.0), "stop": ["x"], "sample": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "R"},
        {"prompt": [{"role": "user", "content": "Q"}]},
        {"identity": {"model": "n"}},
        {"sampling": Sampling(temperature=0.5)},
        {"sampling": Sampling(temperature=1.0, seed=1)},
        {"sampling": Sampling(temperature=1.0, max_tokens=9)},
        {"sampling": Sampling(temperature=1.0, top_p=0.5)},
        {"sampling": Sampling(temperature=1.0, logprobs=True)},
        {"stop": ["y"]},
        {"sample": 1},
    ],
)
def test_key_and_seed_depend_on_all_settings_of_an_answer(change):
    one, other = make_request(**BASE), make_request(**{**BASE, **change})
    assert one.key != other.key
    assert one.seed != other.seed
    assert 0 <= one.seed < 2**31


def test_a_key_does_not_depend_on_the_number_of_samples_or_on_unused_settings():
    more = make_request(**{**BASE, "sampling": Sampling(temperature=1.0, samples=5)})
    assert more == make_request(**BASE)
    greedy = [make_request(**{**BASE, "sampling": Sampling(seed=seed, top_p=p)}) for seed, p in ((0, 1.0), (1, 0.5))]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize("name", ["j.jsonl", "j.jsonl.lock"])
def test_a_named_pipe_is_rejected_before_it_is_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(FileError, match=rf"{name} "), Journal(tmp_path / "j.jsonl"):
        pass


def test_a_line_longer_than_the_maximum_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.rationale_generation.journal.SMALL_BYTES", 1000)
    (tmp_path / "j.jsonl").write_text("{}\n" + "x" * 2000 + "\n")
    with pytest.raises(FormatError, match=r"j\.jsonl line 2"), Journal(tmp_path / "j.jsonl"):
        pass
    assert (tmp_path / "j.jsonl").stat().st_size == 2004


def test_a_log_probability_of_minus_infinity_is_read_back(tmp_path):
    answer = Answer("x", "stop", 1, 1, [("x", -0.5)], [[("x", -0.5), ("y", -math.inf)]])
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add("a", answer)
    assert "Infinity" not in (tmp_path / "j.jsonl").read_text()
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.answers == {"a": answer}
