import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from potstill.data.corpus.sources import SavedDataset
from potstill.data.corpus.text_rows import (
    Columns,
    Prompts,
    RowDataset,
    RowFile,
    TextRow,
    collect_rows,
    held_out_rows,
    read_rows,
)
from potstill.errors import DataError, FormatError

ROWS = [
    {"anchor": "one", "positive": "first", "negative": "second"},
    {"anchor": "two", "positive": "second", "negative": "first"},
]


def written(path, rows):
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    cells = [[*rows[0]], *([*row.values()] for row in rows)]
    if suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    separator = {"tsv": "\t", "csv": ","}.get(suffix)
    lines = [separator.join(map(str, row)) for row in cells] if separator else [json.dumps(row) for row in rows]
    text = json.dumps(rows) if suffix == "json" else "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path, columns=None, most=None):
    return list(read_rows(RowFile(path, "data.train_files"), columns or Columns(), most))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv.gz", "a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_rows_of_every_kind_of_file(name, tmp_path):
    path = written(tmp_path / name, ROWS)
    assert read(path) == [TextRow("one", "first", ("second",)), TextRow("two", "second", ("first",))]
    assert len(read(path, most=1)) == 1


def test_rows_of_a_saved_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([*ROWS, {"anchor": "three", "positive": "third"}]).save_to_disk(tmp_path / "saved")
    source = RowDataset(SavedDataset(str(tmp_path / "saved"), key="data.train.0"))
    assert [row.negatives for row in read_rows(source, Columns())] == [("second",), ("first",), ()]
    source.check(Columns())
    with pytest.raises(FormatError, match=r"data\.train\.0: .* no column 'text'"):
        source.check(Columns(query="text"))


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"question": "q", "answer": "a", "id": 3}, {}, ("q", "a", ())),
        ({"sentence1": "q", "sentence2": "a"}, {}, ("q", "a", ())),
        ({"sentence1": "q", "sentence2": "a", "label": 0}, {"query": "sentence1", "positive": "sentence2"},
         ("q", "a", ())),
        ({"query": "q", "positive": "a", "negative_2": "c", "negative_1": "b", "negatives": ["d", "e"]}, {},
         ("q", "a", ("c", "b", "d", "e"))),
        ({"query": "q", "positive": "a", "negative": " "}, {}, ("q", "a", ())),
        ({"text": "q", "positive": "a", "bad": "b", "negative": "no"}, {"query": "text", "negatives": ["bad"]},
         ("q", "a", ("b",))),
        ({"query": "q", "positive": "a", "negative": "b", "s": 3, "t": "1.5"}, {"scores": ["s", "t"]},
         ("q", "a", ("b",), (1.5,))),
        ({"query": "q", "positive": "a", "negatives": ["b", "", "c"], "s": [2.0, 9, -1]}, {"scores": ["s"]},
         ("q", "a", ("b", "c"), (2.0, -1.0))),
    ],
)  # fmt: skip
def test_columns_of_a_row(row, columns, expected, tmp_path):
    assert read(written(tmp_path / "a.jsonl", [row]), Columns(**columns)) == [TextRow(*expected)]


@pytest.mark.parametrize(
    ("row", "columns", "problem"),
    [
        ({"anchor": "q", "positive": " "}, {}, r"line 2: 'positive' has no text"),
        ({"anchor": "", "positive": "a"}, {}, r"line 2: 'anchor' has no text"),
        ({"anchor": "q", "positive": None}, {}, r"line 2: 'positive' is None"),
        ({"anchor": "q", "positive": "a", "negative": 7}, {}, r"line 2: 'negative' is 7"),
        ({"anchor": "q", "b": "a"}, {}, r"line 2: .*anchor, b.*data\.columns\.query"),
        ({"anchor": "q", "positive": "a"}, {"query": "text"}, r"line 1: no column 'text'"),
        ({"sentence1": "q", "sentence2": "a", "label": 0}, {}, r"line 2: the column 'label'.*columns\.query=sentence1"),
        ({"anchor": "q", "positive": "a"}, {"negatives": ["bad"]}, r"no column 'bad'"),
        ({"anchor": "q", "positive": "a"}, {"scores": ["s"]}, r"no column 's'"),
        ({"anchor": "q", "positive": "a", "s": "high"}, {"scores": ["s"]}, r"'s'"),
    ],
)
def test_rows_that_cannot_be_used(row, columns, problem, tmp_path):
    path = written(tmp_path / "a.jsonl", [{"anchor": "q", "positive": "a"}, row])
    with pytest.raises(FormatError, match=problem):
        read(path, Columns(**columns))


def test_scores_and_negatives_of_other_numbers(tmp_path):
    row = {"query": "q", "positive": "a", "negatives": ["b", "c"], "scores": [1.0]}
    with pytest.raises(FormatError, match=r"line 1: 1 scores and 2 negatives"):
        read(written(tmp_path / "a.jsonl", [row]), Columns(scores=["scores"]))


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "a.tsv").write_text("anchor\tpositive\nq\ta\nq\n")
    with pytest.raises(FormatError, match=r"line 3: 1 columns"):
        read(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").write_text("anchor\tpositive\n")
    with pytest.raises(FormatError, match="no rows"):
        read(tmp_path / "b.tsv")
    with pytest.raises(FormatError, match="unknown suffix"):
        read(tmp_path / "b.xml")
    with pytest.raises(DataError, match="not a file"):
        read(tmp_path / "none.parquet")


def test_texts_and_rows_occur_once():
    rows = [
        TextRow("A", "b", ("c",)), TextRow("A", "b", ("c",)), TextRow("b", "A"), TextRow("A", "b", ("c", "d"), (1, 2)),
    ]  # fmt: skip
    found = collect_rows(rows, "x", Prompts("q: ", "", lower=True))
    assert found.texts == ["q: a", "b", "c", "q: b", "a", "d"]
    assert found.numbers.tolist() == [[0, 1, 2, -1], [3, 4, -1, -1], [0, 1, 2, 5]]
    assert found.duplicates == 1
    np.testing.assert_array_equal(found.margins, [[np.nan] * 2, [np.nan] * 2, [1, 2]])
    assert collect_rows(rows[:3], "x", Prompts()).margins is None
    assert [text for batch in found.batches(4) for text in batch] == found.texts
    assert found.fingerprint() != collect_rows(rows, "x", Prompts("q: ")).fingerprint()


def test_held_out_rows_share_no_query_and_no_positive():
    draw = np.random.default_rng(0)
    rows = [TextRow(f"q{a}", f"p{b}") for a, b in draw.integers(0, [600, 2000], (1000, 2))]
    found = collect_rows(rows, "x", Prompts())
    held = held_out_rows(found.keys, 0.3)
    assert 0.2 < held.mean() < 0.4
    texts = [{*found.numbers[part].ravel().tolist()} for part in (held, ~held)]
    assert not texts[0] & texts[1]
    order = draw.permutation(len(held))
    again = collect_rows([rows[n] for n in order], "x", Prompts("say "))
    chosen = {(row.query, row.positive) for row, own in zip(dict.fromkeys(rows), held, strict=True) if own}
    kept = dict.fromkeys(rows[n] for n in order)
    other = held_out_rows(again.keys, 0.3)
    assert {(row.query, row.positive) for row, own in zip(kept, other, strict=True) if own} == chosen
