"""Questions in the format of SQuAD: small files, and the published ones if available."""

import gzip
import json

import pytest

from potstill.data.tasks.questions import Answer, Question, QuestionCounts, Questions, QuestionSource
from potstill.data.tasks.sources import DataFile
from potstill.errors import DataError, FileError, LabelError

CONTEXT = "Ada was born in London. London is large."


def entry(name, *answers, **members):
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": f"{name}?", "answers": found, **members}


def squad_of(*entries, context=CONTEXT):
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(entries)}]}]}


@pytest.fixture
def write(tmp_path):
    def file(content, name="a.json"):
        path = tmp_path / name
        raw = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return file


def read(path, training=True, key="benchmark.train_file", max_examples=None):
    """Usable questions, and counts of all."""
    source = QuestionSource(DataFile(path, key), labelled=False, max_examples=max_examples, training=training)
    source.check()
    read = source.read()
    return read.items, read.counts


def test_questions_of_several_files_in_order(write):
    first = write(squad_of(entry("a", ("London", 16), ("in London", 13)), entry("b", ("Ada", 0))))
    second = write(squad_of(entry("c", ("伦敦", 4)), context="她出生在伦敦。"), "b.json.gz")
    questions = Questions.joined([QuestionSource(DataFile(path), training=True).read() for path in (first, second)])
    assert questions.items == [
        Question("a", "a?", CONTEXT, (Answer("London", 16), Answer("in London", 13)), True),
        Question("b", "b?", CONTEXT, (Answer("Ada", 0),), True),
        Question("c", "c?", "她出生在伦敦。", (Answer("伦敦", 4),), True),
    ]
    assert questions.counts == QuestionCounts(questions=3)
    assert questions.items[0].references == ("London", "in London")
    assert read(first, max_examples=1)[0] == questions.items[:1]


def test_questions_without_answer(write):
    said = entry("a", is_impossible=True, plausible_answers=[{"text": "London", "answer_start": 16}])
    path = write(squad_of(said, entry("b"), entry("c", ("Ada", 0), is_impossible=False)))
    questions, counts = read(path)
    assert [(own.answerable, own.references) for own in questions] == [(False, ()), (False, ()), (True, ("Ada",))]
    assert counts == QuestionCounts(questions=3, unanswerable=2)


def test_misplaced_answers_are_dropped_in_training_and_references_else(write):
    # A place below 0 counts from nowhere, not from the end.
    entries = [entry("a", ("London", 17), ("Ada", 0)), entry("b", ("London", -1)), entry("c", (" ", 3))]
    path = write(squad_of(*entries, entry("d", ("large.", -6))))
    questions, counts = read(path)
    assert [(own.id, own.references) for own in questions] == [("a", ("Ada",))]
    assert counts == QuestionCounts(questions=4, misplaced=3, blank=1, skipped=3)
    questions, counts = read(path, training=False)
    assert [own.references for own in questions] == [("London", "Ada"), ("London",), ("large.",)]
    assert [own.answers[0].start for own in questions] == [None, None, None]
    assert counts == QuestionCounts(questions=4, misplaced=3, blank=1, skipped=1)


def test_equal_ids_are_counted_and_kept(write):
    path = write(squad_of(entry("a", ("Ada", 0)), entry("a", ("London", 16)), entry("a", ("is", 31))))
    questions, counts = read(path)
    assert [own.references[0] for own in questions] == ["Ada", "London", "is"]
    assert counts.duplicates == 2


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", "E-FILE", ""),
        (b'{"data": ', "E-FORMAT", ""),
        ([], "E-FORMAT", ""),
        ({"rows": []}, "E-FORMAT", ".*'data'"),
        ({"data": {}}, "E-FORMAT", ".*'data'"),
        ({"data": []}, "E-FORMAT", ""),
        ({"data": [{"title": "t"}]}, "E-FORMAT", " article 1: .*'paragraphs'"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "E-FORMAT", " article 1 paragraph 1: .*'context'"),
        (squad_of(entry("a"), 3), "E-FORMAT", " article 1 paragraph 1 question 2: 3"),
        (squad_of({"id": "a", "answers": []}), "E-FORMAT", ".* question 1: .*'question'"),
        (squad_of(entry("a"), {"id": "b", "question": "b"}), "E-FORMAT", " question 'b': .*'answers'"),
        (squad_of({"id": "a", "question": "b"}, entry("b")), "E-FORMAT", " question 'a': .*'answers'"),
        (squad_of(entry("a", (3, 0))), "E-FORMAT", ".* question 1: 'text' is 3"),
        (squad_of(entry("a", ("Ada", "0"))), "E-FORMAT", ".* question 1: 'answer_start' is '0'"),
        (squad_of(entry("a", ("Eve", 0))), "E-FORMAT", ""),
    ],
)
def test_invalid_files(write, content, code, message):
    path = write(content)
    with pytest.raises(DataError, match=f"^benchmark.eval_file: '{path}'{message}") as caught:
        read(path, key="benchmark.eval_file")
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileError, match=r"^benchmark.train_file: '.*none.json'"):
        read(tmp_path / "none.json")


def test_required_answers_are_missing(write):
    """A check of the first questions accepts a later answer."""
    late = DataFile(write(squad_of(*(entry(str(n)) for n in range(100)), entry("a", ("Ada", 0)))))
    QuestionSource(late).check()
    assert QuestionSource(late).read().labelled
    never = DataFile(write(squad_of(entry("a")), "b.json"))
    for wrong in (QuestionSource(never), QuestionSource(late, max_examples=50)):
        for call in (wrong.check, wrong.read):
            with pytest.raises(LabelError, match=r"benchmark\.answer_metric=squad_v2"):
                call()
    assert QuestionSource(never, unanswerable=True).read().labelled


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("qa/squad1.1/dev-v1.1.json.gz", QuestionCounts(10570)),
        ("qa/squad1.1/train_part_nodev.json.gz", QuestionCounts(3939)),
        ("qa/tydiqa_goldp_en/train.json.gz", QuestionCounts(3696, duplicates=3607)),
        ("chinese/cmrc2018/cmrc2018_dev.json.gz", QuestionCounts(3219, misplaced=200)),
        ("chinese/cmrc2018/cmrc2018_trial.json", QuestionCounts(1002, misplaced=5)),
        ("chinese/drcd/DRCD_dev.json.gz", QuestionCounts(3524)),
    ],
)
def test_real_files(data_dir, file, expected):
    questions, counts = read(data_dir / file, training=False)
    assert counts == expected
    assert len(questions) == expected.questions
