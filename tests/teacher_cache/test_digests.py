"""Whatever changes a teacher's outputs changes a digest, and nothing else does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from potstill.data.common.steps import BatchSettings
from potstill.data.corpus.store import Corpus, StoreWriter, TokenStore
from potstill.errors import ModelError
from potstill.interchange.plans import PlanSettings
from potstill.teacher_cache.digests import (
    arrays_digest,
    config_digest,
    corpus_digest,
    mask_settings,
    teacher_of_folder,
    teacher_of_model,
)

CONFIG = {"model_type": "bert", "hidden_size": 8, "transformers_version": "5.0", "_name_or_path": "x"}
SETTINGS = BatchSettings(seed=1, batch_size=8, accumulate=2)


def state(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "b": torch.randn(3, generator=g).bfloat16(),
        "a": torch.randn(4, 2, generator=g),
        "n": torch.tensor(3),
    }


def save(folder, files, config=CONFIG):
    folder.mkdir()
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_weights_are_the_same_in_one_file_in_shards_and_in_memory(tmp_path):
    tensors = state()
    one = teacher_of_folder(save(tmp_path / "one", {"model.safetensors": tensors}))
    split = {
        "model-1.safetensors": {"n": tensors["n"], "b": tensors["b"]},
        "model-2.safetensors": {"a": tensors["a"]},
    }
    assert teacher_of_folder(save(tmp_path / "two", split)) == one
    assert teacher_of_model(dict(reversed(tensors.items())), CONFIG) == one


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["a"].view(-1)[3].add_(1e-6),
        lambda s: s.update(a=s["a"].view(2, 4)),
        lambda s: s.update(b=s["b"].float()),
        lambda s: s.update(c=s.pop("b")),
    ],
)
def test_other_weights(change):
    changed = state()
    change(changed)
    assert teacher_of_model(changed, CONFIG)["weights"] != teacher_of_model(state(), CONFIG)["weights"]


def test_configs_differ_by_what_is_computed():
    assert config_digest(CONFIG | {"transformers_version": "5.1", "_name_or_path": "y"}) == config_digest(
        CONFIG
    )
    assert config_digest(CONFIG | {"hidden_size": 9}) != config_digest(CONFIG)


def test_folders_without_weights(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"teacher.model: '.*empty' has no \*.safetensors"):
        teacher_of_folder(tmp_path / "empty")
    folder = save(tmp_path / "broken", {"model.safetensors": state()})
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match=r"broken' cannot be read"):
        teacher_of_folder(folder)


def test_mask_settings_see_the_global_batch_and_not_how_it_is_cut():
    def of(world=1, **changes):
        return mask_settings(replace(SETTINGS, **changes), steps=9, world=world, device="cpu")

    assert (
        of()
        == of(batch_size=4, accumulate=4)
        == of(batch_size=16, accumulate=1, eval_batch_size=7, num_workers=2)
    )
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
