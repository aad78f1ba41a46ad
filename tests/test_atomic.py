import pytest

from potstill.atomic import replacing, write_whole


def test_a_file_is_replaced_whole_and_nothing_torn_stays(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    (tmp_path / ".a.json.1.tmp").write_text("of a killed process")
    with pytest.raises(TypeError), replacing(path) as fresh:
        fresh.write_text("half") + "of it"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"
    write_whole(path, "né")
    assert path.read_bytes() == "né".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
