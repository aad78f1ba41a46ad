"""Tagged sentences of column files, JSON files and data sets, and the places in error messages."""

import gzip
import json
import re
from types import SimpleNamespace

import datasets
import pytest

from potstill.data.tasks.columns import ColumnSource, ListSource
from potstill.data.tasks.entities import BIO, BIOES, converted, entities_of, scheme_of, tag_labels, unknown_tags
from potstill.data.tasks.sources import DataFile, HubSplit
from potstill.errors import DataError, FormatError, LabelError

WORDS = [["EU", "rejects", "German"], ["Peter", "Blackburn"]]
TAGS = [["B-ORG", "O", "B-MISC"], ["B-PER", "I-PER"]]
CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


@pytest.fixture
def write(tmp_path):
    def file(name, content):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
        return path

    return file


def read(path, skip=None, **options):
    source = ColumnSource(DataFile(path, skip=skip), **options)
    source.check()
    return source.read()


def error(path, code="E-FORMAT", **options):
    """The message behind the key and the path."""
    with pytest.raises(DataError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert caught.value.code == code
    assert "\n" not in message
    prefix = f"benchmark.train_file: '{path}' "
    assert message.startswith(prefix)
    return message.removeprefix(prefix)


@pytest.mark.parametrize(
    ("name", "content", "starts"),
    [
        ("conll.txt", CONLL, [3, 7]),
        ("conll.txt.gz", CONLL, [3, 7]),
        ("tabs.tsv", CONLL.replace(" ", "\t"), [3, 7]),
        ("mixed", CONLL.replace(" ", " \t "), [3, 7]),
        ("windows", "\ufeff" + CONLL.replace("\n", " \r\n"), [3, 7]),
        ("blank", "\n\n \t\n" + CONLL.replace("\n\n", "\n \n\n"), [7, 12]),
        ("end", CONLL.rstrip(), [3, 7]),
        ("document", CONLL.replace("\n\nPeter", "\n-DOCSTART- O\nPeter"), [3, 7]),
    ],
)
def test_sentences_of_any_spelling(write, name, content, starts):
    sentences = read(write(name, content))
    assert (sentences.words, sentences.tags, sentences.starts) == (WORDS, TAGS, starts)
    assert len(sentences) == 2
    assert sentences.place(1, 1) == f"line {starts[1] + 1}"


def test_lists_in_json_lines_are_sentences(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"tokens": ["the", "man"], "tags": ["O", "B-X"]}, {"tokens": ["they"], "tags": ["O"]}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    source = ListSource(DataFile(path))
    source.check()
    read = source.read()
    assert (read.words, read.tags) == ([["the", "man"], ["they"]], [["O", "B-X"], ["O"]])
    assert read.place(0, 1) == "row 1 word 2"
    path = tmp_path / "a.json"
    numbered = [row | {"tags": [1 if tag != "O" else 0 for tag in row["tags"]]} for row in rows]
    path.write_text(json.dumps(numbered))
    assert ListSource(DataFile(path), names=("O", "B-X")).read().tags == read.tags
    with pytest.raises(LabelError, match=r"row 1: .*benchmark\.labels"):
        ListSource(DataFile(path)).read()
    path.write_text(json.dumps([{"tokens": ["the", "man"], "tags": ["O"]}]))
    with pytest.raises(FormatError, match="row 1: 2 words and 1 tags"):
        ListSource(DataFile(path)).check()
    path.write_text(json.dumps([{"words": ["the"]}]))
    with pytest.raises(FormatError, match=r"'tokens'.*words.*benchmark\.token_column"):
        ListSource(DataFile(path)).check()


def test_columns_are_chosen_and_count_from_either_end(write):
    path = write("a", "B-PER x Peter NNP\nO y sleeps VBZ\n")
    for token, tag in ((2, 0), (-2, -4)):
        sentences = read(path, token_column=token, tag_column=tag)
        assert sentences.words == [["Peter", "sleeps"]]
        assert sentences.tags == [["B-PER", "O"]]


def test_tokens_may_be_blanks_of_other_kinds(write):
    sentences = read(write("zh", "海 O\n\u3000 O\n\xa0 O\n\u2028 B-NS\n"))
    assert sentences.words == [["海", "\u3000", "\xa0", "\u2028"]]


GERMEVAL = """#\thttp://example.org/0 [2010-01-01]
1\tNew York\tB-LOC\tO
2\t#\tO\tO

#\thttp://example.org/1 [2010-01-01]
1\tOtto\tB-PER\tO
# within a sentence
2\tsings\tO\tO


"""


def test_lines_to_skip_and_tokens_with_blanks_between_tabs(write):
    path = write("germeval.tsv", GERMEVAL.replace("\n", "\r\n"))
    sentences = read(path, token_column=1, tag_column=2, skip=r"^#")
    assert sentences.words == [["New York", "#"], ["Otto", "sings"]]
    assert sentences.tags == [["B-LOC", "O"], ["B-PER", "O"]]
    assert sentences.starts == [2, 6]
    assert "data.skip" in error(path, token_column=1, tag_column=2)


def test_blanks_beside_tabs_separate_columns_outside_of_tokens(write):
    assert read(write("a", "EU NNP\tB-NP B-ORG\nis VBZ\tB-VP O\n")).tags == [["B-ORG", "O"]]


def test_lines_may_have_tabs_or_spaces(write):
    assert read(write("a", "New York\tB-LOC\nis O\nso \t O\n")).words == [["New York", "is", "so"]]


def test_plain_tags_are_tags(write):
    sentences = read(write("pos", "it PRP\nrains VBZ\n. .\n"))
    assert sentences.tags == [["PRP", "VBZ", "."]]
    assert tag_labels(sentences.tags, BIO) == (".", "PRP", "VBZ")


@pytest.mark.parametrize("labelled", [True, False])
def test_a_configured_column_of_tags_must_be_there(labelled, tmp_path, write):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"tokens": ["EU"], "tags": ["B-X"]}) + "\n")
    source = ListSource(DataFile(path), labelled, tag_columns=("nope",))
    with pytest.raises(FormatError, match=r"'nope'.*benchmark\.tag_column"):
        source.check()
    assert ListSource(DataFile(path), False, tag_columns=()).read().tags is None
    bare = write("bare", "EU\nrejects\n")
    assert "benchmark.tag_column" in error(bare, tag_column=3, labelled=labelled)


def test_files_without_tags(write):
    bare = write("bare", "EU\nrejects\n\nPeter\n")
    assert re.match(r"line 1: 1 column.*benchmark\.tag_column", error(bare))
    assert read(bare, labelled=False).tags is None
    assert read(bare, tag_column=None).words == [["EU", "rejects"], ["Peter"]]
    tagged = write("tagged", "EU NNP\nrejects VBZ\n")
    assert read(tagged, labelled=False).tags == [["NNP", "VBZ"]]
    assert read(tagged, tag_column=None).tags is None
    assert read(write("conll", CONLL), labelled=False).tags == TAGS


@pytest.mark.parametrize(
    ("content", "options", "code", "message"),
    [
        ("EU O\nrejects\n", {}, "E-FORMAT", "line 2: 1 column.*line 1 has 2"),
        ("\nEU O\n\n-DOCSTART-\n\na b O\n", {}, "E-FORMAT", "line 6: 3 column.*line 2 has 2"),
        ("EU B-ORG\nrejects B\n", {}, "E-LABEL", "line 2: invalid tag 'B'"),
        ("EU B-ORG\n\nrejects X-PER\n", {}, "E-LABEL", "line 3: invalid tag 'X-PER'"),
        ("EU O\nrejects B-\nPeter I-PER\n", {}, "E-LABEL", "line 2: invalid tag 'B-'"),
        ("EU NNP\nrejects B-X\n", {}, "E-LABEL", "line 1: invalid tag 'NNP'"),
        ("# a comment\nEU O\n", {}, "E-FORMAT", r"line 1: .*data\.skip='\^#'"),
        ("EU O\n# a comment\n", {}, "E-FORMAT", r"line 2: .*data\.skip='\^#'"),
        ("1 EU B-X\n2 is O\n\n1 so O\n", {}, "E-FORMAT", r".*benchmark\.token_column"),
        ("EU O\n", {"token_column": 2}, "E-FORMAT", r"line 1: 2 column.*benchmark\.token_column=2"),
        ("EU O\n", {"tag_column": 3}, "E-FORMAT", r"line 1: 2 column.*benchmark\.tag_column=3"),
        ("EU O\n", {"tag_column": 0}, "E-FORMAT", r"line 1: 2 column.*benchmark\.tag_column=0"),
        ("", {}, "E-FILE", ""),
        ("\n\n-DOCSTART- O\n\n", {}, "E-FORMAT", ""),
        ("EU\0 O\n", {}, "E-FILE", ""),
    ],
)
def test_invalid_files(write, content, options, code, message):
    assert re.match(message, error(write("a.txt", content), code, **options))


def test_a_missing_file(tmp_path):
    error(tmp_path / "none.txt", "E-FILE")


def test_max_examples_limits_the_sentences(write):
    path = write("a", CONLL + "\nbroken\n")
    assert read(path, max_examples=2).words == WORDS
    error(path)


FEATURES = {
    "names": datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.Value("string"))}
    ),
    "classes": datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-ORG", "B-MISC", "B-PER", "I-PER"])),
        }
    ),
    "numbers": datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.Value("int64"))}
    ),
}
CODES = [[1, 0, 2], [], [3, 4]]
NAMES = ["O", "B-ORG", "B-MISC", "B-PER", "I-PER"]


def dataset(kind, tags, words=None):
    columns = {"tokens": words or [WORDS[0], [], WORDS[1]], "ner_tags": tags}
    return datasets.Dataset.from_dict(columns, features=FEATURES[kind])


@pytest.fixture
def sentences_of(monkeypatch):
    def read(rows, labelled=True, max_examples=None, **columns):
        monkeypatch.setattr(HubSplit, "_load", lambda _: rows)
        source = HubSplit("conll", column="tokens", key="benchmark.hub")
        return ListSource(source, labelled, max_examples, **columns).read()

    return read


@pytest.mark.parametrize(
    ("kind", "tags", "names"),
    [("names", [TAGS[0], [], TAGS[1]], None), ("classes", CODES, None), ("numbers", CODES, NAMES)],
)
def test_a_data_set_gives_the_same_sentences(kind, tags, names, sentences_of):
    sentences = sentences_of(dataset(kind, tags), names=names)
    assert (sentences.words, sentences.tags, sentences.starts) == (WORDS, TAGS, [1, 3])
    assert sentences.place(1, 1) == "row 3 word 2"
    assert len(sentences_of(dataset(kind, tags), names=names, max_examples=2)) == 1


def test_a_data_set_without_tags(sentences_of):
    missing = dataset("numbers", [[-1] * 3, [], [-1] * 2])
    bare = missing.remove_columns("ner_tags")
    for part in (missing, bare):
        assert sentences_of(part, labelled=False).tags is None
        assert sentences_of(part, labelled=False, tag_columns=()).words == WORDS
        with pytest.raises(DataError, match=r"^benchmark\.hub: 'conll .*benchmark\.tag_column"):
            sentences_of(part)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (dataset("numbers", CODES), "row 1: .*benchmark.labels="),
        (dataset("classes", [[1, 0, -1], [], [3, 4]]), "row 1: .*-1"),
        (dataset("classes", [[1, 0], [], [3, 4]]), "row 1: 3 words and 2 tags"),
        (dataset("classes", [[1, 0, 2], [], None]), "row 3: 2 words"),
        (dataset("names", [TAGS[0], [], ["B-PER", "PER"]]), "row 3 word 2: .*'PER'"),
        (dataset("names", [[], []], [[], []]), ""),
        (dataset("names", TAGS, WORDS).select([]), ""),
        (dataset("names", TAGS, WORDS).rename_column("tokens", "words"), ".*'tokens', but words, ner_tags"),
    ],
)
def test_invalid_data_sets(rows, message, sentences_of):
    with pytest.raises(DataError, match=rf"^benchmark.hub: 'conll \(default, train\)' {message}") as error:
        sentences_of(rows)
    assert error.value.code in ("E-FORMAT", "E-LABEL")


def test_the_description_of_a_data_set_is_checked(monkeypatch, tmp_path):
    builder = SimpleNamespace(info=SimpleNamespace(features=FEATURES["classes"]))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)
    ListSource(HubSplit(str(tmp_path), column="tokens")).check()
    with pytest.raises(FormatError, match="'words', but tokens, ner_tags"):
        ListSource(HubSplit(str(tmp_path), column="words")).check()


def entity_counts(sentences):
    counts = {}
    for tags in sentences.tags:
        for entity in entities_of(tags):
            counts[entity.type] = counts.get(entity.type, 0) + 1
    return counts


@pytest.mark.parametrize(
    ("file", "size", "entities"),
    [
        # Tjong Kim Sang and De Meulder 2003, tables 1 and 2
        ("train.txt.gz", (14041, 203621), {"LOC": 7140, "MISC": 3438, "ORG": 6321, "PER": 6600}),
        ("dev.txt", (3250, 51362), {"LOC": 1837, "MISC": 922, "ORG": 1341, "PER": 1842}),
        ("test.txt", (3453, 46435), {"LOC": 1668, "MISC": 702, "ORG": 1661, "PER": 1617}),
    ],
)
def test_conll_2003_has_the_published_counts(file, size, entities, data_dir):
    sentences = read(data_dir / "ner" / "conll2003" / file)
    assert (len(sentences), sum(map(len, sentences.words))) == size
    assert entity_counts(sentences) == entities
    assert scheme_of(sentences.tags) == BIO
    assert len(tag_labels(sentences.tags)) == 9


@pytest.mark.parametrize(("file", "size"), [("dev.ner.gz", (4636, 214052)), ("test.ner.gz", (4365, 172601))])
def test_msra_is_read_by_characters(file, size, data_dir):
    sentences = read(data_dir / "chinese" / "msra_ner" / file)
    assert (len(sentences), sum(map(len, sentences.words))) == size
    assert scheme_of(sentences.tags) == BIOES
    labels = tag_labels(sentences.tags, BIOES)
    assert len(labels) == 13
    assert all(tag.startswith("M-") for tag in unknown_tags(sentences.tags, labels))
    for tags in sentences.tags:  # the gold tags are valid
        assert converted(tags, BIOES) == [tag.replace("M-", "I-") for tag in tags]
    if file.startswith("test"):  # 6,181 in all
        assert entity_counts(sentences) == {"NR": 1973, "NS": 2877, "NT": 1331}
