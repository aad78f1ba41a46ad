"""Whatever changes a teacher's outputs changes a digest, and nothing else does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from potstill.data.common.steps import BatchSettings
from potstill.data.corpus.store import Corpus, StoreWriter, TokenStore
from potstill.interchange.plans import PlanSettings
from potstill.teacher_cache.digests import arrays_digest, corpus_digest, mask_settings, teacher_digests

CONFIG = {"model_type": "bert", "hidden_size": 8, "transformers_version": "5.0", "_name_or_path": "x"}
SETTINGS = BatchSettings(seed=1, batch_size=8, accumulate=2)


def state(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"b": torch.randn(3, generator=g).bfloat16(), "a": torch.randn(4, 2, generator=g), "n": torch.tensor(3)}


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["a"].view(-1)[3].add_(1e-6),
        lambda s: s.update(a=s["a"].view(2, 4)),
        lambda s: s.update(b=s["b"].float()),
        lambda s: s.update(c=s.pop("b")),
    ],
)
def test_all_changes_of_weights_change_the_digest(change):
    changed = state()
    change(changed)
    assert teacher_digests(changed, CONFIG)["weights"] != teacher_digests(state(), CONFIG)["weights"]


def test_only_keys_that_change_outputs_change_the_digest_of_a_config():
    digests = teacher_digests(state(), CONFIG)
    assert teacher_digests(state(), CONFIG | {"transformers_version": "5.1", "_name_or_path": "y"}) == digests
    assert teacher_digests(dict(reversed(state().items())), CONFIG) == digests
    assert teacher_digests(state(), CONFIG | {"hidden_size": 9})["config"] != digests["config"]


def test_mask_settings_depend_on_the_global_batch():
    def of(world=1, **changes):
        return mask_settings(replace(SETTINGS, **changes), steps=9, world=world, device="cpu")

    assert of() == of(batch_size=4, accumulate=4) == of(batch_size=16, accumulate=1, eval_batch_size=7, num_workers=2)
    changes = {
        "seed": 2,
        "batch_size": 9,
        "max_tokens": 100,
        "group_size": 5,
        "length_bin": 8,
        "mlm_share": 0.2,
        "mlm_smoothing": 0.0,
        "mlm_replace": (1.0, 0.0, 0.0),
        "interchange": PlanSettings(),
    }
    for name, value in changes.items():
        assert of(**{name: value}) != of(), name
    assert mask_settings(SETTINGS, steps=9, world=1, device="cuda") != of()
    assert mask_settings(SETTINGS, steps=8, world=1, device="cpu") != of()


def corpus(folder, ids):
    folder.mkdir()
    writer = StoreWriter(folder, 100)
    writer.add(np.array(ids), np.array([len(ids)], dtype=np.int32))
    writer.close({"kind": "test"}, "tokenizer", {}, {})
    return TokenStore.open(folder)


def test_corpora_differ_by_content_and_order(tmp_path):
    a, b, same = (corpus(tmp_path / n, ids) for n, ids in (("a", [1, 2]), ("b", [1, 3]), ("c", [1, 2])))
    assert corpus_digest(Corpus([a])) == corpus_digest(Corpus([same]))
    assert len({corpus_digest(Corpus(stores)) for stores in ([a], [b], [a, b], [b, a])}) == 4


def test_arrays_differ_by_values_names_shapes_and_types():
    ids = np.arange(6, dtype=np.int32)
    others = [{"ids": ids[::-1]}, {"types": ids}, {"ids": ids.reshape(2, 3)}, {"ids": ids.astype(np.int64)}]
    digests = {arrays_digest(arrays) for arrays in [{"ids": ids}, {"ids": ids.copy()}, *others]}
    assert len(digests) == 5
