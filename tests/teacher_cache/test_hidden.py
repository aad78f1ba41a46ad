"""Hidden states through a store: losses and gradients are those of the live teacher, to the store's precision."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from potstill.errors import ConfigError
from potstill.models.backbone import backbone_of
from potstill.teacher_cache.hidden import HiddenFormat, Projection, StoredHidden
from potstill.teacher_cache.store import OutputStore, build_outputs

UNITS, WIDTH = 40, 6
STATES = torch.randn(UNITS, WIDTH, generator=torch.Generator().manual_seed(0))
LABELLED = torch.arange(UNITS) % 3 == 0


def stored(folder, form, at_once=7):
    def write(writer):
        for start in range(0, UNITS, at_once):
            rows = slice(start, start + at_once)
            writer.append(form.encode(STATES[rows], LABELLED[rows]))

    build_outputs(folder, {"form": form.identity}, form.fields, UNITS, write)
    return OutputStore.open(folder)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_states_come_back_in_the_precision_of_the_store(precision, tmp_path):
    form = HiddenFormat(WIDTH, precision)
    order = np.random.default_rng(0).permutation(UNITS)
    found = form.decode(stored(tmp_path / "s", form).gather(order))
    assert found.dtype == getattr(torch, precision)
    assert torch.equal(found, STATES[order].to(found.dtype))


def test_states_of_labelled_tokens_alone(tmp_path):
    form = HiddenFormat(WIDTH, "float32", labelled=True)
    store = stored(tmp_path / "s", form)
    wanted = LABELLED.nonzero().squeeze(1).flip(0).numpy()
    assert torch.equal(form.decode(store.gather(wanted)), STATES[wanted])
    rows = sum(shard["hidden"].nbytes for shard in store.shards)
    assert rows == 4 * WIDTH * int(LABELLED.sum())
    with pytest.raises(ValueError, match="without a label"):
        form.decode(store.gather([wanted[0], 1]))


@pytest.mark.parametrize(("precision", "size"), [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_bytes_per_item(precision, size):
    (field,) = HiddenFormat(768, precision).fields
    assert np.dtype(field.dtype).itemsize * field.width == 768 * size


def test_a_value_beyond_float16_is_an_error():
    states = torch.full((2, WIDTH), 1e5)
    with pytest.raises(ConfigError, match=r"teacher\.cache\.precision=float16: .* 100000"):
        HiddenFormat(WIDTH).encode(states, LABELLED[:2])
    assert HiddenFormat(WIDTH, "bfloat16").encode(states, LABELLED[:2]).values["hidden"].shape == (2, WIDTH)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_projection_is_that_of_the_model(kind, bert_teacher, gpt2_teacher):
    folder, loader = {"bert": (bert_teacher, AutoModelForMaskedLM), "gpt2": (gpt2_teacher, AutoModelForCausalLM)}[kind]
    model = loader.from_pretrained(folder).eval()
    backbone = backbone_of(model)
    whole, alone = copy.deepcopy(backbone.decoder), Projection(backbone)
    alone.to(torch.device("cpu"))
    states = torch.randn(5, backbone.width)
    with torch.no_grad():
        assert torch.equal(alone.head(states), backbone.head(states))
    for mine, other in zip(alone.decoder, whole, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or torch.equal(mine, other)
        assert mine is None or not mine.requires_grad


def test_states_are_read_in_the_type_of_the_projection(tmp_path, gpt2_teacher):
    form = HiddenFormat(WIDTH, "bfloat16")
    store = stored(tmp_path / "s", form)
    projection = Projection(backbone_of(AutoModelForCausalLM.from_pretrained(gpt2_teacher)), torch.float64)
    found = StoredHidden(store, form, projection)(torch.tensor([3, 1]), torch.device("cpu"))
    assert projection.decoder[0].dtype == torch.float64
    assert torch.equal(found, STATES[[3, 1]].bfloat16().double())
