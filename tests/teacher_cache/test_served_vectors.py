"""Requests for vectors, and what is read of their replies; whole runs are in tests/integration."""

import base64
import json

import numpy as np
import pytest
import torch

from potstill.rationale_generation.answers import Tally
from potstill.rationale_generation.client import ReplyError
from potstill.rationale_generation.settings import EndpointSettings
from potstill.teacher_cache.served_vectors import TextBatch, TextBatches, VectorRequests

VECTORS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
BATCH = TextBatch(7, ("a", "b", "c"))


def client(**extra):
    return VectorRequests(EndpointSettings("http://localhost:1/v1", "tiny", extra_body=extra))


def reply(rows, **more):
    return json.dumps({"data": [{"index": n, "embedding": row} for n, row in rows], **more}).encode()


def test_the_body_has_the_texts_and_further_fields():
    path, body = client(dimensions=4, encoding_format=None).compose(BATCH)
    assert (path, body) == ("/embeddings", {"model": "tiny", "input": ["a", "b", "c"], "dimensions": 4})


def test_vectors_are_read_in_the_order_of_the_texts():
    own = client()
    rows = [(2, VECTORS[2].tolist()), (0, VECTORS[0].tolist()), (1, VECTORS[1].tolist())]
    made = own.read(BATCH, reply(rows, usage={"prompt_tokens": 9, "total_tokens": 9}))
    torch.testing.assert_close(made.vectors, torch.from_numpy(VECTORS), rtol=1e-6, atol=0)
    assert own.width == 4
    tally = Tally()
    assert own.count(made, tally)
    assert (tally.answered, tally.input_tokens) == (1, 9)
    packed = [(n, base64.b64encode(row.tobytes()).decode()) for n, row in enumerate(VECTORS)]
    assert torch.equal(own.read(BATCH, reply(packed)).vectors, torch.from_numpy(VECTORS))


@pytest.mark.parametrize("rows", [[(0, [1.0]), (1, [1.0]), (1, [1.0])], [(0, [1.0])], [(0, [[1.0]])] * 3])
def test_other_replies_are_refused(rows):
    with pytest.raises(ReplyError):
        client().read(BATCH, reply(rows))


def test_requests_begin_behind_what_is_stored():
    found = TextBatches((str(number) for number in range(11)), 11, 4, 3)
    assert len(found) == 3
    assert [(batch.first, batch.texts) for batch in found] == [
        (4, ("4", "5", "6")), (7, ("7", "8", "9")), (10, ("10",)),
    ]  # fmt: skip
