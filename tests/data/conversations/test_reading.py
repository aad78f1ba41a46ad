"""Conversations as files have them."""

import gzip
import json

import pytest

from potstill.config.data import ConversationsDataConfig, RowSourceConfig
from potstill.data.conversations.reading import RowFormat, held_out, read_conversations, read_datasets
from potstill.data.corpus.splits import row_sources
from potstill.errors import ConfigError, DataError, FileError, FormatError

ROWS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    {"prompt": "1 + 1 =", "completion": " 2"},
    {
        "prompt": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "why"}],
        "completion": [{"role": "assistant", "content": "so"}],
    },
]


def write(path, rows):
    if path.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        text = "\n".join(map(json.dumps, rows)) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_every_form_of_a_row(name, tmp_path):
    chat, plain, lists = read_conversations([write(tmp_path / name, ROWS)], "data.train_files")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert (chat.learned, chat.texts, chat.prompt) == ({1}, None, [{"role": "user", "content": "hi"}])
    assert (plain.messages, plain.texts, plain.prompt) == ((), ("1 + 1 =", " 2"), "1 + 1 =")
    assert ([message["content"] for message in lists.messages], lists.learned) == (["be kind", "why", "so"], {2})


def test_answers_and_references(tmp_path):
    rows = [ROWS[0] | {"answer": "so"}, ROWS[1] | {"answer": 2, "reference": "two"}, ROWS[1] | {"answer": None}]
    read = read_conversations([write(tmp_path / "a.jsonl", rows)], "data.train_files")
    assert [(row.answer, row.reference) for row in read] == [("so", None), ("2", "two"), (None, None)]
    with pytest.raises(FormatError, match=r"line 1: 'answer' is \['a'\]"):
        read_conversations([write(tmp_path / "b.jsonl", [ROWS[1] | {"answer": ["a"]}])], "data.train_files")


def test_parquet_and_several_files(tmp_path):
    plain = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(5)]
    files = [write(tmp_path / "a.parquet", plain), write(tmp_path / "b.jsonl", ROWS)]
    rows = read_conversations(files, "data.train_files", 2)
    assert [row.texts for row in rows] == [("p0", "c0"), ("p1", "c1"), None, ("1 + 1 =", " 2")]
    chats = read_conversations([write(tmp_path / "c.parquet", ROWS[:1] * 2)], "data.train_files")
    assert [row.messages[1]["content"] for row in chats] == ["hello", "hello"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "role assistant"),
        ({"messages": [{"role": "human", "content": "hi"}]}, "'human'"),
        ({"messages": [{"role": "user"}]}, "'content' is missing"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "hi"}, "'messages' is 'hi'"),
        ({"prompt": "a"}, "'completion' is missing"),
        ({"prompt": "a", "completion": " "}, "'completion' is empty"),
        ({"text": "a"}, "'prompt' is missing"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "b"}]}, "user"),
    ],
)
def test_rows_that_are_no_conversation(row, said, tmp_path):
    path = write(tmp_path / "a.jsonl", [ROWS[0], row])
    with pytest.raises(FormatError, match=rf"^data\.train_files: '{path}' line 2: .*{said}"):
        read_conversations([path], "data.train_files")


def test_columns_that_are_called_otherwise(tmp_path):
    """As those of GSM8K, whose answers are the completions, too."""
    rows = [{"question": "1 + 1 =", "answer": "it is\n#### 2", "messages": []}]
    columns = {"prompt": "question", "completion": "answer", "answer": "answer"}
    (read,) = read_conversations([write(tmp_path / "a.jsonl", rows)], "data.train_files", form=RowFormat(columns))
    assert (read.texts, read.answer) == (("1 + 1 =", "it is\n#### 2"), "it is\n#### 2")
    (chat,) = read_conversations([f"{tmp_path}/a.jsonl"], "data.train_files", form=RowFormat(columns, True))
    assert [*chat.messages] == [
        {"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "it is\n#### 2"},
    ]  # fmt: skip
    assert (chat.texts, chat.learned, chat.answer) == (None, {1}, read.answer)
    with pytest.raises(FormatError, match=r"line 1: 'query' of data\.columns is missing \(found question, "):
        read_conversations([f"{tmp_path}/a.jsonl"], "data.train_files", form=RowFormat({"prompt": "query"}))


def test_data_sets(tmp_path):
    import datasets

    plain = [{"prompt": f"p{n}", "completion": f"c{n}", "answer": None if n else "c"} for n in range(5)]
    datasets.Dataset.from_list(plain).save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "train.parquet", ROWS[:1] * 3)
    data = ConversationsDataConfig(
        train=[RowSourceConfig(folder=f"{tmp_path}/saved"), RowSourceConfig(hub=f"{tmp_path}/files")],
        eval=[RowSourceConfig(folder=f"{tmp_path}/saved", hub="x")],
    )
    read = read_datasets(row_sources(data, "train"), 4)
    assert [row.texts for row in read] == [*((f"p{n}", f"c{n}") for n in range(4)), None, None, None]
    assert [row.answer for row in read[:2]] == ["c", None]
    assert read[4].messages[1]["content"] == "hello"
    assert read[0].place.startswith(f"data.train.0: '{tmp_path}/saved")
    with pytest.raises(ConfigError, match=r"data\.eval\.0: has hub and folder"):
        row_sources(data, "eval")
    with pytest.raises(FormatError, match=r"data\.train\.0: .* row 1: 'query'"):
        read_datasets(row_sources(data, "train"), form=RowFormat({"prompt": "query"}))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(FormatError, match=r"a\.parquet' is not a Parquet file"):
        read_conversations([str(tmp_path / "a.parquet")], "data.train_files")
    with pytest.raises(FileError, match=r"b\.parquet' is not a file"):
        read_conversations([str(tmp_path / "b.parquet")], "data.train_files")
    with pytest.raises(DataError, match="no rows"):
        read_conversations([write(tmp_path / "c.json", [])], "data.train_files")


def test_prompts_are_held_out_by_content(tmp_path):
    rows = [{"prompt": f"p{n % 200}", "completion": f"c{n}"} for n in range(400)]
    read = read_conversations([write(tmp_path / "a.jsonl", rows)], "data.train_files")
    train, evaluation = held_out(read, 0.2)
    assert len(train) + len(evaluation) == 400
    assert 40 < len(evaluation) < 120
    assert not {row.prompt for row in train} & {row.prompt for row in evaluation}
    again = held_out(read[::-1], 0.2)[1]
    assert {row.texts for row in again} == {row.texts for row in evaluation}
    with pytest.raises(DataError, match=r"data\.eval_share=0\.2"):
        held_out(read[:1], 0.2)
    assert held_out(read[:3], 0.0) == (read[:3], [])
