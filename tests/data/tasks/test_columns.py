"""Tagged sentences of column files and data sets: what is read, and where each fault is said to be."""

import gzip
import json

import datasets
import pytest

from potstill.data.tasks.columns import ColumnFile, ListFile, dataset_sentences
from potstill.data.tasks.entities import BIO, BIOES, entities_of, scheme_of, tag_labels, unknown_tags
from potstill.errors import DataError

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


def read(path, **options):
    source = ColumnFile(path, **options)
    source.check()
    return source.read()


def fault(path, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"benchmark.train_file: '{path}' ")
    return message


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
    source = ListFile(path)
    source.check()
    read = source.read()
    assert (read.words, read.tags) == ([["the", "man"], ["they"]], [["O", "B-X"], ["O"]])
    assert read.place(0, 1) == "row 1 word 2"
    path = tmp_path / "a.json"
    numbered = [row | {"tags": [1 if tag != "O" else 0 for tag in row["tags"]]} for row in rows]
    path.write_text(json.dumps(numbered))
    assert ListFile(path, labels=("O", "B-X")).read().tags == read.tags
    with pytest.raises(DataError, match="tags are numbers without names"):
        ListFile(path).read()
    path.write_text(json.dumps([{"tokens": ["the", "man"], "tags": ["O"]}]))
    with pytest.raises(DataError, match="row 1: 2 words and 1 tags"):
        ListFile(path).check()
    path.write_text(json.dumps([{"words": ["the"]}]))
    with pytest.raises(DataError, match=r"'tokens'.*words.*benchmark\.token_column"):
        ListFile(path).check()


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
    assert "data.skip" in fault(path, token_column=1, tag_column=2)


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
    source = ListFile(path, tag_columns=("nope",), labelled=labelled)
    with pytest.raises(DataError, match=r"'nope'.*benchmark\.tag_column"):
        source.check()
    assert ListFile(path, tag_columns=(), labelled=False).read().tags is None
    bare = write("bare", "EU\nrejects\n")
    assert "benchmark.tag_column" in fault(bare, tag_column=3, labelled=labelled)


def test_files_without_tags_where_the_caller_says_so(write):
    bare = write("bare", "EU\nrejects\n\nPeter\n")
    assert "line 1: 1 column, but benchmark.tag_column" in fault(bare)
    assert read(bare, labelled=False).tags is None
    assert read(bare, tag_column=None).words == [["EU", "rejects"], ["Peter"]]
    tagged = write("tagged", "EU NNP\nrejects VBZ\n")
    assert read(tagged, labelled=False).tags == [["NNP", "VBZ"]]
    assert read(tagged, tag_column=None).tags is None
    assert read(write("conll", CONLL), labelled=False).tags == TAGS


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("EU O\nrejects\n", {}, "line 2: 1 column, line 1 has 2"),
        ("\nEU O\n\n-DOCSTART-\n\na b O\n", {}, "line 6: 3 columns, line 2 has 2"),
        ("EU B-ORG\nrejects B\n", {}, "line 2: invalid tag 'B'"),
        ("EU B-ORG\n\nrejects X-PER\n", {}, "line 3: invalid tag 'X-PER'"),
        ("EU O\nrejects B-\nPeter I-PER\n", {}, "line 2: invalid tag 'B-'"),
        ("EU NNP\nrejects B-X\n", {}, "line 1: invalid tag 'NNP'"),
        (
            "# a comment\nEU O\n",
            {},
            "line 1: a comment has other columns",
        ),
        ("EU O\n# a comment\n", {}, "line 2: a comment has other columns"),
        ("1 EU B-X\n2 is O\n\n1 so O\n", {}, "benchmark.token_column"),
        ("EU O\n", {"token_column": 2}, "line 1: 2 columns, but benchmark.token_column=2"),
        ("EU O\n", {"tag_column": 3}, "line 1: 2 columns, but benchmark.tag_column=3"),
        ("EU O\n", {"tag_column": 0}, "line 1: 2 columns, but benchmark.tag_column=0"),
        ("", {}, "is empty"),
        ("\n\n-DOCSTART- O\n\n", {}, "has no sentences"),
        ("EU\0 O\n", {}, "is a binary file"),
    ],
)
def test_faults_say_where_and_what_is_right(write, content, options, said):
    assert said in fault(write("a.txt", content), **options)


def test_a_missing_file(tmp_path):
    assert "does not exist" in fault(tmp_path / "none.txt")


def test_only_so_many_sentences_are_read(write):
    path = write("a", CONLL + "\nbroken\n")
    assert read(path, max_examples=2).words == WORDS
    fault(path)


FEATURES = {
    "names": datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.Value("string")),
        }
    ),
    "classes": datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-ORG", "B-MISC", "B-PER", "I-PER"])),
        }
    ),
    "numbers": datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.Value("int64")),
        }
    ),
}
CODES = [[1, 0, 2], [], [3, 4]]
NAMES = ["O", "B-ORG", "B-MISC", "B-PER", "I-PER"]


def dataset(kind, tags, words=None):
    columns = {"tokens": words or [WORDS[0], [], WORDS[1]], "ner_tags": tags}
    return datasets.Dataset.from_dict(columns, features=FEATURES[kind])


@pytest.mark.parametrize(
    ("kind", "tags", "labels"),
    [("names", [TAGS[0], [], TAGS[1]], None), ("classes", CODES, None), ("numbers", CODES, NAMES)],
)
def test_a_data_set_gives_the_same_sentences(kind, tags, labels):
    sentences = dataset_sentences(dataset(kind, tags), labels=labels)
    assert (sentences.words, sentences.tags, sentences.starts) == (WORDS, TAGS, [1, 3])
    assert sentences.place(1, 1) == "row 3 word 2"
    assert len(dataset_sentences(dataset(kind, tags), labels=labels, max_examples=2)) == 1


def test_a_data_set_without_tags():
    missing = dataset("numbers", [[-1] * 3, [], [-1] * 2])
    bare = missing.remove_columns("ner_tags")
    for part in (missing, bare):
        assert dataset_sentences(part, labelled=False).tags is None
        assert dataset_sentences(part, tags=None, labelled=False).words == WORDS
        with pytest.raises(DataError, match=r"has no (tags|column 'ner_tags')"):
            dataset_sentences(part)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (dataset("numbers", CODES), "benchmark.labels="),
        (dataset("classes", [[1, 0, -1], [], [3, 4]]), "row 1: unknown tag -1"),
        (dataset("classes", [[1, 0], [], [3, 4]]), "row 1: 3 words and 2 tags"),
        (dataset("classes", [[1, 0, 2], [], None]), "row 3: 2 words and no list of tags"),
        (dataset("names", [TAGS[0], [], ["B-PER", "PER"]]), "row 3 word 2: invalid tag 'PER'"),
        (dataset("names", [[], []], [[], []]), "has no"),
        (dataset("names", TAGS, WORDS).select([]), "has no rows"),
        (
            dataset("names", TAGS, WORDS).rename_column("tokens", "words"),
            "has no column 'tokens'",
        ),
    ],
)
def test_faults_of_a_data_set_say_which_row(rows, said):
    with pytest.raises(DataError) as caught:
        dataset_sentences(rows, name="conll", key="benchmark.hub")
    assert str(caught.value).startswith("benchmark.hub: 'conll' ")
    assert said in str(caught.value)


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
    for tags in sentences.tags:  # the gold tags are whole
        spelled = [tag.replace("M-", "I-") for tag in tags]
        assert entities_of(tags) == entities_of(spelled, strict=BIOES)
    if file.startswith("test"):  # 6,181 in all
        assert entity_counts(sentences) == {"NR": 1973, "NS": 2877, "NT": 1331}
