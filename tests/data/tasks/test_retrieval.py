import gzip

import pytest

from potstill.data.tasks.retrieval import read_collection
from potstill.errors import PotstillError

CORPUS = """{"_id": "d1", "title": "Fish", "text": "swim"}
{"_id": 2, "text": "birds fly"}
{"_id": "d3", "text": "", "title": "Stones"}
"""
QUERIES = '{"_id": "q1", "text": "who swims?"}\n{"_id": "q2", "text": "what flies?"}\n{"_id": "q3", "text": "and?"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq2\t2\t2\nq2\td1\t1\nq1\td1\t1\nq3\td3\t0\n"


@pytest.fixture
def write(tmp_path):
    def make(corpus=CORPUS, queries=QUERIES, qrels=QRELS):
        (tmp_path / "qrels").mkdir()
        (tmp_path / "corpus.jsonl").write_text(corpus)
        (tmp_path / "queries.jsonl").write_text(queries)
        (tmp_path / "qrels" / "test.tsv").write_text(qrels)
        return str(tmp_path)

    return make


@pytest.mark.parametrize("qrels", [QRELS, "q2 0 2 2\nq2 0 d1 1\nq1 0 d1 1\nq3 0 d3 0\n", QRELS.partition("\n")[2]])
def test_layouts(write, tmp_path, qrels):
    found = read_collection(write(qrels=qrels), "test")
    assert found.documents == ["Fish swim", "birds fly", "Stones"]
    assert found.document_ids == ["d1", "2", "d3"]
    assert (found.query_ids, found.queries) == (["q2", "q1"], ["what flies?", "who swims?"])
    assert found.relevant == [{1: 2, 0: 1}, {0: 1}]
    assert found.left_out == 1
    assert read_collection(str(tmp_path), "test", 1).query_ids == ["q2"]


def test_gzip(write, tmp_path):
    folder = write()
    for path in (tmp_path / "corpus.jsonl", tmp_path / "qrels" / "test.tsv"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert len(read_collection(folder, "test").documents) == 3


@pytest.mark.parametrize(
    ("files", "key", "code"),
    [
        ({"qrels": QRELS + "q9\td1\t1\n"}, "1 ids that 'queries.jsonl' does not have, the first 'q9'", "E-FORMAT"),
        ({"qrels": QRELS + "q1\td8\t1\nq1\td9\t1\n"}, "2 ids that 'corpus.jsonl' does not have, the first 'd8'",
         "E-FORMAT"),
        ({"qrels": "q1\td1\t0\n"}, "no grade above 0", "E-FORMAT"),
        ({"qrels": QRELS + "q1\td1\tgood\n"}, "line 6: the grade is 'good'", "E-FORMAT"),
        ({"qrels": QRELS + "q1\td1\t0.5\n"}, "line 6: the grade is '0.5'", "E-FORMAT"),
        ({"qrels": "q1\td1\n"}, "line 1: 2 columns", "E-FORMAT"),
        ({"corpus": CORPUS + '{"_id": "d1", "text": "again"}\n'}, "line 4: '_id' 'd1' occurs twice", "E-FORMAT"),
        ({"corpus": '{"_id": "d1"}\n'}, "line 1: 'text' is missing", "E-FORMAT"),
        ({"queries": '{"_id": "q1", "text": " "}\n'}, "line 1: 'text' is blank", "E-FORMAT"),
        ({"queries": ""}, "queries.jsonl' is empty", "E-FILE"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(write, files, key, code):
    with pytest.raises(PotstillError, match=r"benchmark\.folder") as raised:
        read_collection(write(**files), "test")
    assert key in str(raised.value)
    assert raised.value.code == code


def test_missing_files(write, tmp_path):
    with pytest.raises(PotstillError, match=r"benchmark\.folder=null"):
        read_collection(None, "test")
    with pytest.raises(PotstillError, match=r"benchmark\.folder: '.*corpus.jsonl'"):
        read_collection(str(tmp_path), "test")
    with pytest.raises(PotstillError, match=r"benchmark\.part=dev: .* has test"):
        read_collection(write(), "dev")
