"""Rationale rows: validation split, shares, preparation for training."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.rationales.rows import Draw, RationaleRows, for_training, join, split_validation, subsample
from potstill.errors import ConfigError, DataError, LabelError


def rows_of(count, name="a.json", unparsed=(), llm_labels=None):
    return RationaleRows(
        inputs=[f"in {n}" for n in range(count)],
        labels=[f"gold {n}" for n in range(count)],
        llm_labels=llm_labels or [None if n in unparsed else f"llm {n}" for n in range(count)],
        rationales=[None if n in unparsed else f"why {n}" for n in range(count)],
        choices=[(f"gold {n}", f"llm {n}") for n in range(count)],
        unparsed=[n in unparsed for n in range(count)],
        places=[f"row {n + 1}" for n in range(count)],
        name=name,
        key="data.folder",
        counts={"read": count, "unparsed": len(unparsed)},
    )


@pytest.mark.parametrize("count", [2, 10, 101, 800])
def test_the_validation_part_is_that_of_the_published_runs(count):
    from datasets import Dataset

    published = Dataset.from_dict({"row": np.arange(count)}).train_test_split(test_size=0.1, seed=0)
    train, valid = split_validation(rows_of(count))
    assert train.inputs == [f"in {n}" for n in sorted(published["train"]["row"])]
    assert valid.inputs == [f"in {n}" for n in sorted(published["test"]["row"])]


@pytest.mark.parametrize("count", [20, 101, 800])
@pytest.mark.parametrize(("share", "seed"), [(0.25, 0), (0.5, 3), (0.9, 1)])
def test_a_share_is_that_of_the_published_runs(count, share, seed):
    """Of rows with a validation part of their own, and drawn before a tenth is held out."""
    from datasets import Dataset

    part = Dataset.from_dict({"row": np.arange(count)}).train_test_split(test_size=1.0 - share, seed=seed)["train"]
    assert subsample(rows_of(count), share, seed).inputs == [f"in {n}" for n in sorted(part["row"])]
    published = part.train_test_split(test_size=0.1, seed=0)
    train, valid = split_validation(rows_of(count), drawn=Draw(share, seed))
    assert train.inputs == [f"in {n}" for n in sorted(published["train"]["row"])]
    assert valid.inputs == [f"in {n}" for n in sorted(published["test"]["row"])]


def test_a_single_row_cannot_be_split():
    with pytest.raises(DataError, match=r"1 rows of 'a\.json' .*data\.eval_files"):
        split_validation(rows_of(1))


@given(count=st.integers(1, 60), shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), seed=st.integers(0, 9))
def test_a_smaller_share_is_part_of_a_larger_one(count, shares, seed):
    small, large = (subsample(rows_of(count), share, seed) for share in sorted(shares))
    assert set(small.inputs) <= set(large.inputs)
    assert len(small) == max(count - math.ceil((1.0 - min(shares)) * count), 1)
    assert large.inputs == sorted(large.inputs, key=lambda text: int(text[3:]))


def test_shares_depend_on_the_seed():
    rows = rows_of(100)
    assert subsample(rows, 1, 0) == rows
    assert subsample(rows, 0.5, 1) == subsample(rows, 0.5, 1)
    assert subsample(rows, 0.5, 1).inputs != subsample(rows, 0.5, 2).inputs


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_a_share_out_of_range(share):
    with pytest.raises(ConfigError, match=r"data\.share=.*above 0 and at most 1"):
        subsample(rows_of(4), share, 0)


def test_rows_for_training():
    rows = rows_of(4, unparsed=(1,))
    gold, llm = for_training(rows, "gt"), for_training(rows, "llm")
    assert gold.inputs == llm.inputs == ["in 0", "in 2", "in 3"]
    assert gold.rationales == llm.rationales == ["why 0", "why 2", "why 3"]
    assert gold.labels == ["gold 0", "gold 2", "gold 3"]
    assert llm.labels == ["llm 0", "llm 2", "llm 3"]
    assert gold.counts["unparsed"] == 1


def test_rows_that_cannot_be_trained_on():
    with pytest.raises(ConfigError, match=r"data\.labels=gold: must be one of gt, llm"):
        for_training(rows_of(1), "gold")
    with pytest.raises(DataError, match=r"data\.rationales"):
        for_training(rows_of(2, unparsed=(0, 1)), "gt")
    with pytest.raises(LabelError, match=r"^data\.labels=llm: 'a\.json' row 2 "):
        for_training(rows_of(2, llm_labels=["x", None]), "llm")


def test_rows_of_two_sets_are_joined():
    both = join(rows_of(2), rows_of(1, name="b.xml", unparsed=(0,)))
    assert both.inputs == ["in 0", "in 1", "in 0"]
    assert both.places == ["a.json row 1", "a.json row 2", "b.xml row 1"]
    assert (both.name, both.counts) == ("a.json and b.xml", {"read": 3, "unparsed": 1})
    assert both.unparsed == [False, False, True]
