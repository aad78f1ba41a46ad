"""Variable mappings: the published syntax and layouts, their analogues, and all errors."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import ConfigError
from potstill.interchange.mappings import (
    LAYOUTS,
    InterchangeMapping,
    Site,
    Variable,
    mapping_names,
    parse_variable,
    read_mappings,
)
from potstill.models.specs import ModelSpec

PARITY = os.environ.get("POTSTILL_PARITY_DIR")
BASE = ModelSpec("bert", "masked", depth=12, width=768, heads=12, vocab_size=30522, max_length=512)
PUBLISHED = {
    "single_middle_layer_3": ("single_middle", 3),
    "single_middle_layer_6": ("single_middle", 6),
    "single_middle_layer_9": ("single_middle", 9),
    "multiple_single_middle_late_layer_3": ("middle_late", 3),
    "multiple_single_middle_late_layer_6": ("middle_late", 6),
    "multiple_single_multilayer_layer_3": ("multilayer", 3),
    "multiple_single_multilayer_layer_6": ("multilayer", 6),
    "multiple_single_multilayer_layer_9": ("multilayer", 9),
}


def blocks(mappings):
    return [tuple(tuple(site.block for site in side) for side in (m.teacher, m.student)) for m in mappings]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("$L:6$H:[0:12]$[0:64]", Variable((6, 7), (0, 12), (0, 64))),
        ("$L:[2:4]$H:3$[8:16]", Variable((2, 4), (3, 4), (8, 16))),
        ("$L:0$H:0$5", Variable((0, 1), (0, 1), (5, 6))),
        ({"layers": 6}, Variable((6, 7))),
        ({"layers": [2, 4], "heads": [0, 6], "dims": "[0:32]"}, Variable((2, 4), (0, 6), (0, 32))),
    ],
)
def test_variables(written, read):
    assert parse_variable(written) == read


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=3, max_size=3))
def test_a_written_variable_is_read_back(ranges):
    layers, heads, dims = ((start, start + size) for start, size in ranges)
    written = "$L:[{}:{}]$H:[{}:{}]$[{}:{}]".format(*layers, *heads, *dims)
    assert parse_variable(written) == Variable(layers, heads, dims)


def test_heads_and_dimensions_are_columns():
    narrow = replace(BASE, width=12, heads=3)
    variables = {"teacher": "$L:1$H:[0:2]$[1:3]", "student": "$L:0$H:[1:3]$[0:2]"}
    (mapping,) = read_mappings([variables], narrow, narrow)
    assert mapping == InterchangeMapping((Site(1, ((1, 3), (5, 7))),), (Site(0, ((4, 6), (8, 10))),))


def test_touching_ranges_are_one():
    (mapping,) = read_mappings([{"teacher": "$L:6$H:[0:12]$[0:64]", "student": {"layers": 3}}], BASE, BASE)
    assert mapping == InterchangeMapping((Site(6, ((0, 768),)),), (Site(3, ((0, 768),)),))


def test_several_variables_of_a_block_are_set_together():
    names = ["$L:2$H:0$[0:8]", "$L:2$H:0$[4:16]", "$L:1$H:0$[0:16]"]
    (mapping,) = read_mappings([{"teacher": names, "student": ["$L:2$H:1$[0:16]"]}], BASE, BASE)
    assert mapping.teacher == (Site(1, ((0, 16),)), Site(2, ((0, 16),)))


def test_a_file_of_the_first_release_is_one_mapping(tmp_path):
    """`training_configs/neuron_mapping.json` of Causal-Distill: a variable per side at a time."""
    names = {
        f"{side}_variable_names": [f"$L:{layer}$H:{head}$[0:64]" for head in (1, 2, 3)]
        for side, layer in (("teacher", 6), ("student", 1))
    }
    file = tmp_path / "neuron_mapping.json"
    file.write_text(json.dumps(names))
    expected = InterchangeMapping((Site(6, ((64, 256),)),), (Site(1, ((64, 256),)),))
    assert read_mappings(str(file), BASE, BASE) == (expected,)
    assert read_mappings(names, BASE, BASE) == (expected,)


@pytest.mark.skipif(not PARITY, reason="POTSTILL_PARITY_DIR is not set")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts(name, tmp_path):
    published = json.loads((Path(PARITY) / "mappings.json").read_text())[name]
    layout, depth = PUBLISHED[name]
    student = replace(BASE, depth=depth)
    ours = read_mappings(layout, BASE, student)
    assert ours == read_mappings(published, BASE, student)
    names = [{f"{side}_variable_names": entry[side] for side in entry} for entry in published]
    assert ours == read_mappings(name, BASE, student) == read_mappings(f"{name}.nm", BASE, student)
    with pytest.raises(ConfigError, match=rf"={name}: .* of {depth} blocks; this one has {depth + 1}"):
        read_mappings(name, BASE, replace(BASE, depth=depth + 1))
    file = tmp_path / f"{name}.nm"
    file.write_text(json.dumps({"interchange_variable_mappings": names}))
    assert ours == read_mappings(str(file), BASE, student)


@pytest.mark.parametrize(
    ("layout", "teacher", "student", "expected"),
    [
        ("single_middle", 6, 2, [((3,), (1,))]),
        ("single_middle", 4, 1, [((2,), (0,))]),
        ("middle_late", 6, 3, [((3,), (0,)), ((4,), (1,))]),
        ("middle_late", 6, 2, [((4,), (0,))]),
        ("multilayer", 6, 4, [((0, 1), (0,)), ((2, 3), (1,)), ((4,), (2,)), ((5,), (3,))]),
        ("multilayer", 3, 3, [((0,), (0,)), ((1,), (1,)), ((2,), (2,))]),
        ("grid", 2, 2, [((0,), (0,)), ((0,), (1,)), ((1,), (0,)), ((1,), (1,))]),
    ],
)
def test_layouts_at_other_depths(layout, teacher, student, expected):
    found = read_mappings(layout, replace(BASE, depth=teacher), replace(BASE, depth=student))
    assert blocks(found) == expected


@given(
    st.sampled_from(LAYOUTS),
    st.tuples(st.integers(3, 24), st.integers(1, 12), st.sampled_from([8, 26, 64])),
    st.tuples(st.integers(3, 24), st.integers(1, 12), st.sampled_from([8, 26, 64])),
)
def test_layouts_fit_any_sizes(layout, teacher, student):
    one, two = (
        ModelSpec("bert", "masked", depth, heads * dim, heads, 100, 64) for depth, heads, dim in (teacher, student)
    )
    if layout == "multilayer" and one.depth < two.depth:
        with pytest.raises(ConfigError, match=f"{one.depth} blocks .* {two.depth};"):
            read_mappings(layout, one, two)
        return
    for mapping in read_mappings(layout, one, two):
        for side, sizes in ((mapping.teacher, one), (mapping.student, two)):
            assert all(site.block < sizes.depth for site in side)
            assert {site.size for site in side} == {min(one.width, two.width)}


def test_names():
    shown = read_mappings("multilayer", BASE, replace(BASE, depth=6))
    assert mapping_names(shown)[:2] == ["0,1-0", "2,3-1"]
    halves = [{"teacher": f"$L:1$H:[{a}:{a + 6}]$[0:64]", "student": f"$L:0$H:[{a}:{a + 6}]$[0:64]"} for a in (0, 6)]
    assert mapping_names(read_mappings(halves, BASE, BASE)) == ["1-0#1", "1-0#2"]


WHOLE = "$L:0$H:[0:12]$[0:64]"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([], "teacher: ["),
        (None, "teacher: ["),
        ("middle", "single_middle, middle_late, multilayer, grid"),
        ([{"teacher": [], "student": [WHOLE]}], "of the teacher"),
        ([{"teacher": [WHOLE]}], "of the student"),
        (["$L:0"], "of the teacher"),
        ([{"teacher": "$L:0$H:0", "student": WHOLE}], "'$L:0$H:0'"),
        ([{"teacher": {"heads": 1}, "student": WHOLE}], "{'heads': 1}"),
        ([{"teacher": {"layers": 1, "blocks": 1}, "student": WHOLE}], "{'layers': 1, 'blocks': 1}"),
        ([{"teacher": "$L:[3:3]$H:0$[0:1]", "student": WHOLE}], "'[3:3]'"),
        ([{"teacher": {"layers": [1, 2, 3]}, "student": WHOLE}], "[1, 2, 3]"),
        ([{"teacher": {"layers": "all"}, "student": WHOLE}], "'all'"),
        ([{"teacher": "$L:12$H:[0:12]$[0:64]", "student": WHOLE}], "the teacher has no block 12: blocks 0 to 11"),
        ([{"teacher": WHOLE, "student": "$L:[2:7]$H:0$[0:64]"}], "the student has no block 6: blocks 0 to 5"),
        ([{"teacher": "$L:0$H:[0:13]$[0:64]", "student": WHOLE}], "the teacher has no head 12: heads 0 to 11"),
        ([{"teacher": WHOLE, "student": "$L:0$H:0$[0:65]"}], "the student has no dimension 64: dimensions 0 to 63"),
        ([{"teacher": WHOLE, "student": "$L:0$H:[0:6]$[0:64]"}], "[768] of the teacher and [384] of the student"),
    ],
)
def test_invalid_mappings(value, named):
    with pytest.raises(ConfigError, match=r"^objective\.interchange\.mapping=[^\n]*$") as caught:
        read_mappings(value, BASE, replace(BASE, depth=6))
    assert named in str(caught.value)


@pytest.mark.parametrize("content", ["not json", '{"mappings": []}'])
def test_an_invalid_file(tmp_path, content):
    path = tmp_path / "wrong.nm"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"^objective\.interchange\.mapping=.*wrong\.nm: "):
        read_mappings(str(path), BASE, BASE)


def test_a_file_above_the_limit_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("potstill.runtime.small_files.SMALL_BYTES", 1000)
    path = tmp_path / "long.nm"
    path.write_text('{"interchange_variable_mappings": []}' + " " * 1000)
    with pytest.raises(ConfigError, match=r"objective\.interchange\.mapping=.*1,000 bytes"):
        read_mappings(str(path), BASE, BASE)
