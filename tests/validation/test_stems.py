"""Names of evaluated models as names of their files."""

import pytest

from potstill.validation.names import stem_of


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../../x", "/etc/passwd", "a\\b", ".hidden", "x" * 400, "é" * 200, "a\nb"]
)
def test_a_stem_stays_in_its_folder_and_fits(name, tmp_path):
    stem = stem_of(name)
    assert (tmp_path / f"submission_{stem}.int8").resolve().parent == tmp_path.resolve()
    assert (tmp_path / stem).resolve().parent == tmp_path.resolve()
    assert not stem.startswith(".")
    (tmp_path / f"predictions_{stem}_mismatched.jsonl").write_text("")


def test_names_that_are_files_already_are_kept_and_long_ones_differ():
    assert stem_of("bert-base_v1.5") == "bert-base_v1.5"
    assert stem_of("x" * 300 + "a") != stem_of("x" * 300 + "b")
