"""Parts of the sets and their outputs: small files in the published layout, and the published ones if available."""

import gzip
import json
import random

import pytest

from potstill.data.rationales.files import records_of
from potstill.data.rationales.published import svamp_part
from potstill.data.rationales.readers import read_own, read_split, stored_rows
from potstill.data.rationales.sets import SETS, allowed_labels
from potstill.errors import ConfigError, DataError, FileError, FormatError, LabelError


def write(path, content, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(entry) for entry in content) + "\n" if lines else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def question(number):
    return {"id": str(number), "question": f"Where is {number}?", "choices": ["pond", "sea", "sea"], "answer": "sea"}


def answer(text="sea", letter="b"):
    return f"It is wet. So the answer is ({letter}) {text}.\n\nQ: Why?"


@pytest.fixture
def cqa(tmp_path):
    """A test part of three rows with outputs in two chunks, the second one compressed."""
    write(tmp_path / "cqa/cqa_test.json", [question(n) for n in range(3)], lines=True)
    write(tmp_path / "cqa/llm/test_CoT_0.json", [answer(), answer("pond", "a")])
    write(tmp_path / "cqa/llm/test_CoT_1.json.gz", [answer()])
    return tmp_path


def test_cqa(cqa):
    rows = read_split(cqa, "cqa", "test")
    assert rows.inputs[0] == "Where is 0?\nAnswer Choices:\n(a) pond\n(b) sea\n(c) sea"
    assert (rows.labels, rows.llm_labels) == (["sea"] * 3, ["sea", "pond", "sea"])
    assert rows.rationales == ["It is wet."] * 3
    assert rows.places == ["line 1", "line 2", "line 3"]
    assert (rows.name, rows.key) == ("cqa_test.json", "data.folder")
    assert rows.counts == {"read": 3, "answered": 3, "unparsed": 0, "unanswered": 0, "off_label": 0, "left_out": 0}
    assert allowed_labels(rows.choices[0]) == ["pond", "sea"]


def test_without_outputs(cqa):
    rows = read_split(cqa, "cqa", "test", rationales=None)
    assert rows.rationales == rows.llm_labels == [None] * 3
    assert not any(rows.unparsed)
    assert rows.counts["answered"] == 0


def test_chunks_are_joined_by_number(cqa):
    for number in range(12):
        write(cqa / f"cqa/llm/train_CoT_{number}.json", [answer(str(number))])
    write(cqa / "cqa/cqa_train.json", [question(n) for n in range(12)])
    train, valid = (read_split(cqa, "cqa", part) for part in ("train", "valid"))
    answers = {row: label for part in (train, valid) for row, label in zip(part.places, part.llm_labels, strict=True)}
    assert answers == {f"row {n + 1}": str(n) for n in range(12)}
    assert train.counts["off_label"] == 12


def test_a_missing_chunk_is_rejected(cqa):
    (cqa / "cqa/llm/test_CoT_0.json").unlink()
    with pytest.raises(FileError, match=r"test_CoT_1\.json\.gz but no test_CoT_0\.json"):
        read_split(cqa, "cqa", "test")


def test_more_rows_than_outputs(cqa):
    (cqa / "cqa/llm/test_CoT_1.json.gz").unlink()
    with pytest.raises(FormatError, match=r"cqa_test\.json' .*3 .*test_CoT_0\.json' 2 "):
        read_split(cqa, "cqa", "test")
    rows = read_split(cqa, "cqa", "test", allow_partial=True)
    assert rows.places == ["line 1", "line 2"]
    assert (rows.counts["read"], rows.counts["unanswered"]) == (3, 1)


def test_more_outputs_than_rows(cqa):
    write(cqa / "cqa/llm/test_CoT_1.json.gz", [answer(), answer("x")])
    with pytest.raises(FormatError, match=r"3 rows.* 4 outputs"):
        read_split(cqa, "cqa", "test")
    assert read_split(cqa, "cqa", "test", allow_partial=True).llm_labels == ["sea", "pond", "sea"]


def test_unparsed_outputs_are_marked_up_to_a_share(cqa):
    write(cqa / "cqa/llm/test_CoT_1.json.gz", ["It is wet."])
    with pytest.raises(FormatError, match=r"1 of 3 .*line 3.*data\.max_unparsed=0.05"):
        read_split(cqa, "cqa", "test")
    rows = read_split(cqa, "cqa", "test", max_unparsed=0.5)
    assert rows.unparsed == [False, False, True]
    assert (rows.rationales[2], rows.llm_labels[2]) == (None, None)
    assert rows.counts["unparsed"] == 1


def test_gpt(cqa):
    with pytest.raises(FileError, match=r"^data\.rationales: 'gpt' .*cqa/test: .*gpt-neox/cqa/test\.json'"):
        read_split(cqa, "cqa", "test", rationales="gpt")
    write(cqa / "gpt-neox/cqa/test.json", [f"\n {answer()}"] * 3)
    assert read_split(cqa, "cqa", "test", rationales="gpt").rationales == ["It is wet."] * 3


@pytest.mark.parametrize(
    ("files", "given"),
    [
        ({"mine/test_CoT_0.json": 2, "mine/test_CoT_1.json": 1}, "mine"),
        ({"mine/test.json": 3}, "mine"),
        ({"mine-test.json": 3}, "mine-{split}.json"),
    ],
)
def test_outputs_of_ones_own(cqa, files, given):
    for file, count in files.items():
        write(cqa / file, [{"rationale": "Why not.", "label": "sea"}] * count)
    rows = read_split(cqa, "cqa", "test", rationales=str(cqa / given))
    assert (rows.rationales, rows.llm_labels) == (["Why not."] * 3, ["sea"] * 3)


def test_rationales_without_labels_count_as_parsed(cqa):
    write(cqa / "mine.jsonl", [{"rationale": text} for text in ("A.", " ", "C.")], lines=True)
    rows = read_split(cqa, "cqa", "test", rationales=str(cqa / "mine.jsonl"), max_unparsed=0.5)
    assert rows.rationales == ["A.", None, "C."]
    assert rows.unparsed == [False, True, False]


@pytest.mark.parametrize("entry", [7, None, {"label": "sea"}, {"rationale": "A.", "label": 2}])
def test_invalid_outputs(cqa, entry):
    write(cqa / "mine.json", ["A.", entry])
    with pytest.raises(FormatError, match=r"^data\.rationales: '.*mine\.json' row 2: "):
        read_split(cqa, "cqa", "test", rationales=str(cqa / "mine.json"))


@pytest.mark.parametrize("label", [1, "neutral"])
def test_nli(tmp_path, label):
    record = {"uid": "x", "premise": "A dog.", "hypothesis": "A cat.", "label": label, "reason": ""}
    write(tmp_path / "anli1/anli1_valid.json", [record], lines=True)
    write(tmp_path / "anli1/llm/valid_CoT_0.json", ["A dog is no cat. So the answer is contradiction."])
    rows = read_split(tmp_path, "anli1", "valid", separator="<eos>")
    assert (rows.inputs, rows.labels) == (["A dog.<eos>A cat."], ["neutral"])
    assert rows.llm_labels == ["contradiction"]
    assert allowed_labels(rows.choices[0]) == ["entailment", "neutral", "contradiction"]


def test_columns_of_a_csv_are_the_outputs(tmp_path):
    (tmp_path / "esnli").mkdir()
    (tmp_path / "esnli/esnli_train_part.csv").write_text(
        ",premise,hypothesis,label,llm_label,rationale,input\n"
        '0,"A dog, barking",A cat,contradiction,"neutral\n\nPre",Not a cat.,x\n'
        "1,A dog,An animal,entailment, ,Dogs are animals.,x\n"
    )
    rows = read_split(tmp_path, "esnli", "train", max_unparsed=0.5)
    assert rows.inputs[0] == "A dog, barking</s>A cat"
    assert rows.llm_labels == ["neutral", None]
    assert rows.unparsed == [False, True]


def test_own_rows(tmp_path):
    rows = [
        {"input": "a?", "label": "b", "rationale": "Because.", "llm_label": "c", "choices": ["b", "c"]},
        {"input": "d?", "label": "e", "rationale": "So."},
    ]
    read = read_own(write(tmp_path / "own.jsonl", rows[1:], lines=True))
    assert (read.inputs, read.labels, read.rationales) == (["d?"], ["e"], ["So."])
    assert (read.llm_labels, read.unparsed, read.choices) == ([None], [False], [None])
    read = read_own(write(tmp_path / "own.json.gz", rows[:1]))
    assert (read.llm_labels, read.choices) == (["c"], [("b", "c")])
    bare = read_own(write(tmp_path / "bare.jsonl", [{"input": "a?", "label": "b"}], lines=True))
    assert (bare.rationales, bare.unparsed) == ([None], [False])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"input": "a?", "rationale": "A."}], "line 1: 'label' is missing"),
        ([{"input": 3, "label": "b", "rationale": "A."}], "line 1: 'input' is 3"),
        ([{"input": "a", "label": "b", "rationale": "A."}, {"input": "a", "label": "b"}], "line 2: 'rationale'"),
        ([{"input": "a", "label": "b", "rationale": "A.", "choices": []}], "line 1: 'choices'"),
        ([{"input": "a", "label": "b", "rationale": "A.", "choices": ["c"]}], "line 1: 'label' is 'b'"),
        ([{"input": "a", "label": " ", "rationale": "A."}], "line 1: the label is blank"),
        ([{"input": "a", "label": "b", "rationale": "A.", "llm_label": 1}], "line 1: 'llm_label' is 1"),
        ([["a", "b"]], "row 1: 'a'"),
        ([], ""),
    ],
)
def test_invalid_own_rows(tmp_path, rows, message):
    with pytest.raises(DataError, match=rf"data\.train_files: .*({message})"):
        read_own(write(tmp_path / "own.jsonl", rows, lines=True))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "[1, 2", "invalid JSON"),
        ("x.jsonl", '{"a": 1}\n{"a"', "line 2: invalid JSON"),
        ("x.csv", "a,b\n1,2\n3\n", "line 3: 1 columns"),
        ("x.xml", "<a><b></a>", "is not XML"),
        ("x.json", "[" * 200_000, "invalid JSON"),
    ],
)
def test_invalid_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"data.folder: .*{message}"):
        records_of(tmp_path / name, "data.folder")


def test_unknown_sets_and_missing_files(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.set=gsm: must be one of cqa"):
        read_split(tmp_path, "gsm", "train")
    with pytest.raises(ConfigError, match="'test'"):
        read_split(tmp_path, "asdiv", "test")
    with pytest.raises(FileError, match=r"esnli/esnli_train\.json"):
        read_split(tmp_path, "esnli", "train")


@pytest.mark.parametrize(
    ("record", "message"),
    [({"premise": "A", "hypothesis": "B", "label": 3}, "'label' is 3"), ({"premise": "A", "label": 0}, "hypo")],
)
def test_invalid_records(tmp_path, record, message):
    write(tmp_path / "anli1/anli1_test.json", [record], lines=True)
    with pytest.raises(FormatError, match=rf"anli1_test\.json' line 1: .*{message}"):
        read_split(tmp_path, "anli1", "test", rationales=None)


def test_asdiv_keeps_answers_that_are_numbers(tmp_path):
    problems = "".join(
        f"<Problem ID='p{n}'><Body>Body.</Body><Question>How many?</Question><Answer>{text}</Answer></Problem>"
        for n, text in enumerate(("9 (apples)", "Mrs. Hilt", "1/3", "3:30 p.m."))
    )
    (tmp_path / "asdiv").mkdir()
    (tmp_path / "asdiv/ASDiv.xml").write_text(f"<A><ProblemSet>{problems}</ProblemSet></A>")
    rows = read_split(tmp_path, "asdiv", "train", rationales=None)
    assert (rows.inputs[0], rows.labels) == ("Body.\nHow many?", ["9", "1/3"])
    assert rows.places == ["problem p0", "problem p2"]
    assert rows.counts["left_out"] == 2


REAL = {  # rows, unparsed outputs of the part as it is stored
    ("cqa", "train"): (8766, 3),
    ("cqa", "valid"): (975, 3),
    ("cqa", "test"): (1221, 0),
    ("svamp", "train"): (720, 13),
    ("svamp", "valid"): (80, 13),
    ("svamp", "test"): (200, 2),
    ("esnli", "train"): (10000, 183),
    ("esnli", "valid"): (9842, 4),
    ("esnli", "test"): (9824, 0),
    ("anli1", "valid"): (1000, 9),
    ("anli1", "test"): (1000, 10),
}


@pytest.mark.parametrize(("name", "split"), REAL)
def test_real_parts(data_dir, name, split):
    rows = read_split(data_dir / "stepbystep", name, split)
    assert (len(rows), rows.counts["unparsed"]) == REAL[name, split]
    assert all((text is None) <= failed for text, failed in zip(rows.rationales, rows.unparsed, strict=True))
    if SETS[name].compared == "text":
        assert all(label in own for label, own in zip(rows.labels, rows.choices, strict=True))


def test_real_asdiv(data_dir):
    rows = read_split(data_dir / "stepbystep", "asdiv", "train", rationales=None)
    assert (len(rows), rows.counts["left_out"]) == (2167, 138)


@pytest.mark.parametrize("split", ["train", "test"])
def test_svamps_original_file_gives_the_published_parts(data_dir, split):
    folder = data_dir / "stepbystep/svamp"
    part = svamp_part(records_of(folder / "SVAMP.json", "k"), split)
    examples = [SETS["svamp"].example(record, "") for _, record in part]
    published = [SETS["svamp"].example(r, "") for _, r in records_of(folder / f"svamp_{split}.json", "k")]
    assert examples == published


def test_svamp_is_read_from_its_original_file(data_dir, tmp_path):
    real = data_dir / "stepbystep"
    (tmp_path / "svamp").mkdir()
    (tmp_path / "svamp/SVAMP.json").symlink_to(real / "svamp/SVAMP.json")
    (tmp_path / "svamp/llm").symlink_to(real / "svamp/llm")
    ours, published = (read_split(folder, "svamp", "train") for folder in (tmp_path, real))
    assert (ours.inputs, ours.labels, ours.rationales) == (published.inputs, published.labels, published.rationales)


def test_the_published_csv_agrees_with_the_raw_outputs(data_dir):
    folder = data_dir / "stepbystep"
    cut = read_split(folder, "esnli", "train")
    with pytest.raises(FormatError, match=r"10,000 rows.* 11,000 outputs"):
        read_split(folder, "esnli", "train", rationales=str(folder / "esnli/llm"))
    raw = read_split(folder, "esnli", "train", rationales=str(folder / "esnli/llm"), allow_partial=True)
    assert (raw.inputs, raw.rationales, raw.llm_labels) == (cut.inputs, cut.rationales, cut.llm_labels)


CHOICES = ("pond", "sea", "hill")


def nested(number):
    choices = [{"label": letter, "text": f"{text} {number}"} for letter, text in zip("ABC", CHOICES, strict=True)]
    return {"answerKey": "B", "id": "x", "question": {"choices": choices, "stem": f"Where is {number}?"}}


def flat(number):
    columns = {"label": list("ABC"), "text": [f"{text} {number}" for text in CHOICES]}
    return {"answerKey": "B", "id": "x", "question": f"Where is {number}?", "choices": columns}


@pytest.mark.parametrize(("form", "file"), [(nested, "dev_rand_split.jsonl"), (flat, "cqa_test.json")])
def test_cqa_of_its_authors(tmp_path, form, file):
    write(tmp_path / "cqa" / file, [form(n) for n in range(3)], lines=True)
    write(tmp_path / "cqa/train_rand_split.jsonl.gz", [nested(n) for n in range(20)], lines=True)
    write(tmp_path / "cqa/llm/test_CoT_0.json", [answer(f"sea {n}") for n in range(3)])
    rows = read_split(tmp_path, "cqa", "test")
    assert rows.inputs[1] == "Where is 1?\nAnswer Choices:\n(a) pond 1\n(b) sea 1\n(c) hill 1"
    assert rows.labels == rows.llm_labels == ["sea 0", "sea 1", "sea 2"]
    parts = [read_split(tmp_path, "cqa", part, rationales=None) for part in ("train", "valid")]
    assert list(map(len, parts)) == [18, 2]
    assert stored_rows(tmp_path, "cqa", "test")[2]["choices"] == ["pond 2", "sea 2", "hill 2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": ""}, "'answerKey' is '', not one of A, B, C"),
        ({"question": {"stem": "?"}}, "'choices' is missing"),
        ({"question": "?", "choices": {"label": ["A"], "text": []}}, "'choices' has 1 labels and 0 texts"),
        ({"question": {"stem": "?", "choices": ["pond"]}}, "'pond' is not a JSON object"),
    ],
)
def test_invalid_records_of_cqas_authors(tmp_path, change, message):
    write(tmp_path / "cqa/dev_rand_split.jsonl", [{**nested(0), **change}], lines=True)
    with pytest.raises(FormatError, match=rf"dev_rand_split\.jsonl' line 1: {message}"):
        read_split(tmp_path, "cqa", "test", rationales=None)


def test_outputs_of_other_rows_are_rejected(tmp_path):
    write(tmp_path / "cqa/dev_rand_split.jsonl", [nested(n) for n in range(9)], lines=True)
    for shift, wrong in ((0, 4), (1, 9)):
        texts = [f"SEA {n + shift}" if n >= wrong - 9 * shift else "neither" for n in range(9)]
        write(tmp_path / "cqa/llm/test_CoT_0.json", list(map(answer, texts)))
        if not shift:
            assert len(read_split(tmp_path, "cqa", "test")) == 9
    with pytest.raises(LabelError, match=r"9 of 9 .*test_CoT_0.json'") as error:
        read_split(tmp_path, "cqa", "test")
    assert "\n" not in str(error.value)


def snli(*rows):
    lines = [f'x{n},{label},"A man, {n}.",He is {n}.,Why.' for n, label in rows]
    return "pairID,gold_label,Sentence1,Sentence2,Explanation_1\n" + "\n".join(lines) + "\n"


def test_esnli_of_its_authors(tmp_path):
    home = tmp_path / "esnli"
    home.mkdir()
    (home / "esnli_train_1.csv").write_text(snli((0, "neutral"), (1, "-")))
    (home / "esnli_train_2.csv").write_text(snli((2, "entailment")))
    (home / "esnli_dev.csv").write_text(snli((3, "contradiction")))
    (home / "esnli_test.csv").write_text(snli((4, "neutral")))
    outputs = [f"As {n}.\nAnswer: neutral\n\nPremise" for n in range(3)]
    write(home / "llm/train_CoT_0.json", outputs)
    rows = read_split(tmp_path, "esnli", "train")
    assert rows.inputs == ["A man, 0.</s>He is 0.", "A man, 2.</s>He is 2."]
    assert (rows.labels, rows.counts["left_out"]) == (["neutral", "entailment"], 1)
    assert [text.strip() for text in rows.rationales] == ["As 0.", "As 2."]
    assert rows.places[1] == "esnli_train_2.csv line 2"
    for split, label in (("valid", "contradiction"), ("test", "neutral")):
        assert read_split(tmp_path, "esnli", split, rationales=None).labels == [label]
    (home / "esnli_train_3.csv").write_text(snli((5, "neutral")))
    (home / "esnli_train_2.csv").unlink()
    with pytest.raises(FileError, match=r"esnli_train_3\.csv but no esnli_train_2\.csv"):
        read_split(tmp_path, "esnli", "train")
    (home / "esnli_train_3.csv").rename(home / "esnli_train_head.csv")
    with pytest.raises(FileError, match=r"\(esnli_train_1\.csv, esnli_train_head\.csv\)"):
        read_split(tmp_path, "esnli", "train")


@pytest.mark.parametrize("folder", ["anli1/R1", "anli1"])
def test_anli_of_its_authors(tmp_path, folder):
    for file, label in (("train", "e"), ("dev", "n"), ("test", "c")):
        record = {"uid": "x", "context": "A dog.", "hypothesis": "A cat.", "label": label}
        write(tmp_path / folder / f"{file}.jsonl", [record], lines=True)
    parts = [read_split(tmp_path, "anli1", part, rationales=None) for part in ("train", "valid", "test")]
    assert [rows.labels for rows in parts] == [["entailment"], ["neutral"], ["contradiction"]]
    assert parts[0].inputs == ["A dog.</s>A cat."]


def test_asdiv_is_read_from_gzip(tmp_path):
    (tmp_path / "asdiv").mkdir()
    problem = "<Problem><Body>B.</Body><Question>Q?</Question><Answer>9 (pens)</Answer></Problem>"
    (tmp_path / "asdiv/ASDiv.xml.gz").write_bytes(gzip.compress(f"<A>{problem}</A>".encode()))
    assert read_split(tmp_path, "asdiv", "train", rationales=None).labels == ["9"]


def test_svamps_original_file_must_be_complete(tmp_path):
    records = [{"Body": "B.", "Question": f"Q {n}?", "Equation": "( 1 )"} for n in range(800)]
    write(tmp_path / "svamp/SVAMP.json", records)
    assert len(read_split(tmp_path, "svamp", "train", rationales=None)) == 720
    with pytest.raises(FormatError, match="800"):
        read_split(tmp_path, "svamp", "test", rationales=None)


@pytest.mark.parametrize(("lines", "place"), [(True, "line 2"), (False, "row 2")])
def test_half_of_a_surrogate_pair(tmp_path, lines, place):
    whole = {"input": "a \U0001f600", "label": "b", "rationale": "c"}  # an escaped pair is a character
    assert read_own(write(tmp_path / "own.json", [whole], lines)).inputs == ["a \U0001f600"]
    write(tmp_path / "own.json", [whole, {**whole, "input": "\ud83d"}], lines)
    with pytest.raises(FormatError, match=rf"data\.train_files: '.*own\.json' {place}: .* surrogate") as error:
        read_own(tmp_path / "own.json")
    assert "\n" not in str(error.value)


def test_a_path_of_outputs_may_begin_with_home(cqa, monkeypatch):
    monkeypatch.setenv("HOME", str(cqa))
    write(cqa / "mine/test.json", [{"rationale": "Why not.", "label": "sea"}] * 3)
    assert read_split(cqa, "cqa", "test", rationales="~/mine").rationales == ["Why not."] * 3


def test_thoughts_are_removed_from_recorded_outputs(cqa):
    thought = "<think>So the answer is (a) pond.</think>\n"
    write(cqa / "raw.json", [thought + answer(), f"Hm.</think>{answer()}", "<think>So the answer is (b) sea."])
    entry = {"rationale": f"{thought}It is wet.", "label": "<THINK>pond</THINK> sea"}
    cut_off = {**entry, "finish_reason": "length"}
    write(cqa / "cut.json", [entry, {**entry, "rationale": "<think>It is wet."}, cut_off])
    for name, parsed in (("raw", 2), ("cut", 1)):
        rows = read_split(cqa, "cqa", "test", rationales=str(cqa / f"{name}.json"), max_unparsed=1)
        assert rows.unparsed == [number >= parsed for number in range(3)]
        assert rows.rationales[:parsed] == ["It is wet."] * parsed
        assert rows.llm_labels[0] == "sea"
    own = {"input": "a?", "label": "b", "rationale": f"{thought}Because.", "llm_label": f"{thought}b"}
    read = read_own(write(cqa / "own.jsonl", [own, {**own, "rationale": None}], lines=True), max_unparsed=1)
    assert (read.rationales, read.llm_labels, read.unparsed) == (["Because.", None], ["b", "b"], [False, True])


@pytest.mark.parametrize("field", ["id", "question"])
def test_an_output_that_repeats_another_row_is_rejected(cqa, field):
    entries = [{"rationale": "Wet.", "label": "sea", field: question(n)[field]} for n in range(3)]
    write(cqa / "mine.json", entries)
    assert len(read_split(cqa, "cqa", "test", rationales=str(cqa / "mine.json"))) == 3
    write(cqa / "mine.json", entries[::-1])
    with pytest.raises(FormatError, match=rf"data\.rationales: .*mine\.json.* {field}=.* line 1"):
        read_split(cqa, "cqa", "test", rationales=str(cqa / "mine.json"))


@pytest.mark.parametrize("field", ["id", "uid", "pairID"])
def test_two_outputs_of_one_id_are_rejected(cqa, field):
    entries = [{"rationale": "Wet.", "label": "sea", field: n} for n in (7, 8, 7)]
    path = write(cqa / "mine.jsonl", entries, lines=True)
    with pytest.raises(
        FormatError, match=rf"data\.rationales: .*mine\.jsonl' line 3: .*{field} 7.*mine\.jsonl' line 1"
    ):
        read_split(cqa, "cqa", "test", rationales=str(path))


def test_a_warning_for_rationales_in_another_order(tmp_path, caplog):
    draw, own = random.Random(0), []
    for _ in range(160):
        who, what = (draw.choice(["ann", "bob", "eve", "tim", "sue"]), draw.choice(["pens", "cups", "hats", "nuts"]))
        own.append({"input": f"{who} has {what}", "label": "x", "rationale": f"{who} has some {what} left"})
    read_own(write(tmp_path / "own.jsonl", own, lines=True))
    assert "other rows" not in caplog.text
    moved = [row["rationale"] for row in own[120:]]
    draw.shuffle(moved)
    late = own[:120] + [row | {"rationale": text} for row, text in zip(own[120:], moved, strict=True)]
    read_own(write(tmp_path / "late.jsonl", late, lines=True))
    assert "line 121 to line 160" in caplog.text
