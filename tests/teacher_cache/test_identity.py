"""Two identities that differ in anything have other keys, and the difference is told by name."""

import json

import pytest

from potstill.teacher_cache.formats import TopForm
from potstill.teacher_cache.identity import differences, identity_key, store_identity


def identity(**changes):
    parts = {
        "teacher": {"weights": "1" * 64, "config": "2" * 64},
        "tokenizer": "3" * 64,
        "data": "4" * 64,
        "form": TopForm(8, 100, (1.0, 2.0)).identity,
        "masks": {"seed": 1, "world": 1},
    }
    return store_identity(**parts | changes)


def test_nothing_differs_after_a_trip_through_json():
    assert differences(json.loads(json.dumps(identity())), identity()) == []
    assert identity_key(json.loads(json.dumps(identity()))) == identity_key(identity())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher": {"weights": "9" * 64, "config": "2" * 64}},
            "teacher.weights is 111111111111... in the store and 999999999999... here",
        ),
        ({"tokenizer": "9" * 64}, "tokenizer is 333333333333... in the store and 999999999999... here"),
        ({"data": "9" * 64}, "data is 444444444444... in the store and 999999999999... here"),
        ({"form": TopForm(16, 100, (1.0, 2.0)).identity}, "form.k is 8 in the store and 16 here"),
        (
            {"form": TopForm(8, 100, (1.0, 4.0)).identity},
            "form.temperatures is [1.0, 2.0] in the store and [1.0, 4.0] here",
        ),
        (
            {"masks": {"seed": 2, "world": 1}},
            "masks.seed is 1 in the store and 2 here",
        ),
        (
            {"teacher": {"weights": "1" * 64}},
            "teacher.config is 222222222222... in the store and absent here",
        ),
    ],
)
def test_a_difference_is_named(change, message):
    assert differences(identity(), identity(**change)) == [message]
    assert identity_key(identity()) != identity_key(identity(**change))


def test_masks_or_none():
    found = differences(identity(masks=None), identity())
    assert found[0] == "masks is null in the store and absent here"
    assert "masks.seed is absent in the store and 1 here" in found
