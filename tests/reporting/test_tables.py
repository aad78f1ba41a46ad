import csv

import pytest

from potstill.reporting.tables import write_table


def test_cells_are_read_back_unchanged(tmp_path):
    cells = ['a, "b"\nc', "", "0.1234567890123456"]
    write_table(tmp_path / "t.csv", ["one", "two", "three"], [cells])
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["one", "two", "three"], cells]


def test_none_is_empty_and_numbers_keep_all_digits(tmp_path):
    write_table(tmp_path / "t.tsv", ["a", "b"], [[None, 0.1 + 0.2]], delimiter="\t")
    assert (tmp_path / "t.tsv").read_text() == "a\tb\n\t0.30000000000000004\n"


def test_a_table_is_written_atomically(tmp_path):
    path = tmp_path / "t.csv"
    write_table(path, ["a"], [[1]])
    with pytest.raises(UnicodeEncodeError):
        write_table(path, ["a"], [["\ud800"]])
    assert path.read_text() == "a\n1\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv"]
