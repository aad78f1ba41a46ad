import json
import math
import os
from pathlib import Path

import pytest

from potstill.errors import DataError
from potstill.rationale_generation.answers import Answer, make_request
from potstill.rationale_generation.journal import Journal
from potstill.rationale_generation.settings import Sampling

ANSWER = Answer("Ein Grund, naïve\n\u2028", "stop", 7, 3, [("Ein", -0.5)])


def test_answers_come_back_as_they_were(tmp_path):
    path = tmp_path / "llm" / "train_journal.jsonl"
    with Journal(path) as journal:
        journal.add("a", ANSWER)
        journal.add("b", Answer("x", "length", 0, 0))
    with Journal(path) as journal:
        assert journal.lines == 2
        assert journal.answers == {"a": ANSWER, "b": Answer("x", "length", 0, 0)}


@pytest.mark.parametrize("kept", [1, 10, -1])
def test_a_torn_last_line_is_cut_off(tmp_path, kept):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add("a", ANSWER)
        whole = path.read_bytes()
        journal.add("b", ANSWER)
    torn = path.read_bytes()[len(whole) :][:kept]
    path.write_bytes(whole + torn)
    with Journal(path) as journal:
        assert set(journal.answers) == {"a"}
        journal.add("c", ANSWER)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "c"]


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "b"}', '{"key": 1, "text": "", "finish": "", '
                                  '"input_tokens": 0, "output_tokens": 0}', "\xff"])  # fmt: skip
def test_a_damaged_line_is_asked_again_and_said(tmp_path, line, caplog):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add("a", ANSWER)
    path.write_bytes(line.encode("latin1") + b"\n" + path.read_bytes())
    with Journal(path) as journal:
        assert set(journal.answers) == {"a"}
    assert "line 1 is damaged" in caplog.text


def test_a_second_process_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    with (
        Journal(path),
        pytest.raises(DataError, match=r"is being written by process \d+; wait"),
        Journal(path),
    ):
        pass
    with Journal(path) as journal:  # let go of
        assert journal.answers == {}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"journal .* cannot be written"),
        Journal(tmp_path / "file" / "j.jsonl"),
    ):
        pass


def test_a_full_disk_is_named(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal._stream.close()
        with Path("/dev/full").open("ab", buffering=0) as full:
            journal._stream = full
            with pytest.raises(DataError, match=r"cannot be written \(No space left"):
                journal.add("a", ANSWER)
            assert journal.answers == {}


BASE = {
    "prompt": "Q",
    "identity": {"model": "m"},
    "sampling": Sampling(temperature=1.0),
    "stop": ["x"],
    "sample": 0,
}


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
def test_a_key_is_of_all_that_an_answer_depends_on(change):
    one, other = make_request(**BASE), make_request(**{**BASE, **change})
    assert one.key != other.key
    assert one.seed != other.seed
    assert 0 <= one.seed < 2**31


def test_a_key_is_of_nothing_else():
    more = make_request(**{**BASE, "sampling": Sampling(temperature=1.0, samples=5)})
    assert more == make_request(**BASE)
    greedy = [
        make_request(**{**BASE, "sampling": Sampling(seed=seed, top_p=p)}) for seed, p in ((0, 1.0), (1, 0.5))
    ]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize("name", ["j.jsonl", "j.jsonl.lock"])
def test_a_named_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name} is not a regular file"), Journal(tmp_path / "j.jsonl"):
        pass


def test_a_line_beyond_the_bound_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.rationale_generation.journal.SMALL_BYTES", 1000)
    (tmp_path / "j.jsonl").write_text("{}\n" + "x" * 2000 + "\n")
    with pytest.raises(DataError, match=r"j\.jsonl line 2"), Journal(tmp_path / "j.jsonl"):
        pass
    assert (tmp_path / "j.jsonl").stat().st_size == 2004


def test_an_impossible_token_is_valid_json_and_comes_back(tmp_path):
    answer = Answer("x", "stop", 1, 1, [("x", -0.5)], [[("x", -0.5), ("y", -math.inf)]])
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.add("a", answer)
    assert "Infinity" not in (tmp_path / "j.jsonl").read_text()
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.answers == {"a": answer}
