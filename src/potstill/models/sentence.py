"""Sentence encoders: a backbone, a pooling of its last states, and a linear layer and a norm where they have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, linear, normalize
from transformers import PreTrainedModel

from potstill.errors import WeightsError
from potstill.models.backbone import Backbone, backbone_of
from potstill.models.load import load_base_model
from potstill.models.pretrained import one_line
from potstill.models.sentence_folders import ACTIVATIONS, SentenceSettings, write_sentence_settings
from potstill.models.students import student_from_layers
from potstill.runtime.json_text import json_text

DENSE = "sentence_dense"  # name of the linear layer among the modules of a model
BAGS = 4096  # texts that a static model reads at a time
_WEIGHTS = "model.safetensors"


def pool(last_BLD: Tensor, mask_BL: Tensor, way: str) -> Tensor:
    """One vector per text, float32 at least, (batch, width).

    Args:
        last_BLD: last hidden states, (batch, length, width).
        mask_BL: 1 at tokens, 0 at padding behind them, (batch, length).
        way: one of `sentence_folders.POOLINGS`. `weighted` weighs a token by its place, from 1 (Muennighoff 2022,
            arXiv:2202.08904, section 3.1.1); `mean_sqrt_len` divides the sum by the root of the number of tokens.

    Source: Reimers & Gurevych 2019 (arXiv:1908.10084), section 3.
    """
    states_BLD = last_BLD if last_BLD.dtype == torch.float64 else last_BLD.float()
    if way == "cls":
        return states_BLD[:, 0]
    if way == "last":
        rows = torch.arange(len(states_BLD), device=states_BLD.device)
        return states_BLD[rows, mask_BL.sum(1) - 1]
    if way == "max":
        return states_BLD.masked_fill(mask_BL[..., None] == 0, -torch.inf).amax(1)
    weights_BL = mask_BL.to(states_BLD.dtype)
    if way == "weighted":
        weights_BL = weights_BL * torch.arange(1, mask_BL.shape[1] + 1, device=mask_BL.device)
    sum_BD = (states_BLD * weights_BL[..., None]).sum(1)
    total_B1 = weights_BL.sum(1, keepdim=True).clamp_min(1e-9)
    return sum_BD / (total_B1.sqrt() if way == "mean_sqrt_len" else total_B1)


class SentenceEncoder:
    """A model as a function from tokens to vectors; holds references only, so nothing is registered twice.

    Attributes:
        backbone: of the model.
        settings: its pooling, and whether vectors are normalised.
        width: of the vectors.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from potstill.models.sentence import SentenceEncoder
        >>> from potstill.models.sentence_folders import SentenceSettings
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        ...                     intermediate_size=16)
        >>> encoder = SentenceEncoder(BertModel(config).eval(), SentenceSettings("mean", normalize=True))
        >>> ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> vectors = encoder(ids, mask)
        >>> vectors.shape, torch.allclose(vectors[1], encoder(ids[1:, :2], mask[1:, :2])[0], atol=1e-6)
        (torch.Size([2, 16]), True)
    """

    def __init__(self, model: PreTrainedModel, settings: SentenceSettings):
        self.backbone: Backbone = backbone_of(model)
        self.settings = settings

    @property
    def width(self) -> int:
        """Width of the vectors."""
        dense = self.dense
        return self.backbone.width if dense is None else dense.out_features

    @property
    def dense(self) -> nn.Linear | None:
        """The linear layer after the pooling."""
        found: Any = getattr(self.backbone.model, DENSE, None)
        return found

    def __call__(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """The vectors of texts, (batch, width), float32 at least.

        Args:
            input_ids_BL: token ids with special tokens, (batch, length).
            attention_mask_BL: 1 at tokens, 0 at padding behind them, (batch, length).
        """
        if self.settings.static and not torch.compiler.is_exporting():
            return self.of_bags(input_ids_BL[attention_mask_BL.bool()], attention_mask_BL.sum(1))
        return self.vectors(self.states(input_ids_BL, attention_mask_BL), attention_mask_BL)

    def states(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """The last hidden states, (batch, length, width); see `__call__`."""
        flow = self.backbone.embed(input_ids_BL, attention_mask_BL)
        return self.backbone.finish(self.backbone.blocks(flow)[0])

    def vectors(self, last_BLD: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """As `__call__`, from the last hidden states."""
        return self._finished(pool(last_BLD, attention_mask_BL, self.settings.pooling))

    def of_bags(self, input_ids_N: Tensor, lengths_B: Tensor) -> Tensor:
        """The vectors of texts of a static model, without padding, (batch, width); 0 for a text without tokens.

        Args:
            input_ids_N: token ids of the texts end to end, (tokens,).
            lengths_B: tokens of each text, (batch,).
        """
        weight: Any = self.backbone.model.get_input_embeddings().weight
        mean = embedding_bag(input_ids_N, weight, lengths_B.cumsum(0) - lengths_B, mode="mean")
        return self._finished(mean if mean.dtype == torch.float64 else mean.float())

    def _finished(self, pooled: Tensor) -> Tensor:
        """What follows the pooling."""
        if (dense := self.dense) is not None:
            # Of few rows: always in full precision.
            with torch.autocast(pooled.device.type, enabled=False):
                pooled = linear(pooled, dense.weight.to(pooled), None if dense.bias is None else dense.bias.to(pooled))
            pooled = pooled.tanh() if self.settings.activation == "Tanh" else pooled
        return normalize(pooled, dim=-1) if self.settings.normalize else pooled

    @torch.no_grad()
    def encode(self, ids: Sequence[NDArray[np.integer]], pad_id: int, batch_size: int = 64) -> Tensor:
        """The vectors of many texts, (texts, width), float32 on the CPU, in evaluation mode, without gradient.

        Batches hold texts of similar lengths.

        Args:
            ids: tokens of each text, with special tokens.
            pad_id: padding id.
            batch_size: texts at a time.
        """
        if self.settings.static:
            return self._encode_bags(ids)
        order = np.argsort([-len(own) for own in ids], kind="stable")
        model = self.backbone.model
        vectors, device, training = torch.empty(len(ids), self.width), model.device, model.training
        model.eval()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = len(ids[rows[0]])
            padded = np.full((len(rows), length), pad_id, np.int64)
            mask = np.zeros((len(rows), length), np.int64)
            for number, row in enumerate(rows):
                padded[number, : len(ids[row])] = ids[row]
                mask[number, : len(ids[row])] = 1
            made = self(torch.from_numpy(padded).to(device), torch.from_numpy(mask).to(device))
            vectors[torch.from_numpy(rows)] = made.float().cpu()
        model.train(training)
        return vectors

    def _encode_bags(self, ids: Sequence[NDArray[np.integer]]) -> Tensor:
        vectors, device = torch.empty(len(ids), self.width), self.backbone.model.device
        for start in range(0, len(ids), BAGS):
            own = ids[start : start + BAGS]
            flat = torch.from_numpy(np.concatenate(own).astype(np.int64)).to(device)
            lengths = torch.tensor([len(one) for one in own], device=device)
            vectors[start : start + len(own)] = self.of_bags(flat, lengths).float().cpu()
        return vectors


class EncoderModule(nn.Module):
    """A sentence encoder as a module, whose output is the vectors, as exports and measurements need it.

    Attributes:
        model: of the encoder, with its linear layer.
        encoder: the model as a function.
        config: of the model.
    """

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder, self.model = encoder, encoder.backbone.model
        self.config: Any = self.model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """See `SentenceEncoder`; without a mask nothing is padded."""
        return self.encoder(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask)


def load_sentence_model(
    key: str, value: str, folder: Path, settings: SentenceSettings, attention: str = "sdpa"
) -> PreTrainedModel:
    """The transformer of a sentence encoder, with its Dense as the module `sentence_dense`, in evaluation mode.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        folder: where its files are.
        settings: from `sentence_settings`.
        attention: attention implementation of transformers.

    Raises:
        ModelError: no such model.
        WeightsError: damaged or missing weights.
    """
    model = load_base_model(key, value, attention=attention)
    if settings.dense is not None:
        try:
            state = load_file(str(folder / settings.dense / _WEIGHTS))
            weight, bias = state["linear.weight"], state.get("linear.bias")
            dense = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            dense.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in state.items()})
        except Exception as error:  # of many kinds, depending on the content of the file
            raise WeightsError(f"{key}={value}: its Dense cannot be read ({one_line(error)})") from error
        model.add_module(DENSE, dense)
    return model


def sentence_student(
    teacher: PreTrainedModel, layers: Sequence[int], *, architecture: str | None = None, attention: str | None = None
) -> PreTrainedModel:
    """A shallower encoder of a teacher's blocks, with a copy of its Dense; see `student_from_layers`."""
    dense = getattr(teacher, DENSE, None)
    if dense is None:
        return student_from_layers(teacher, layers, architecture=architecture, attention=attention)
    del teacher._modules[DENSE]
    try:
        student = student_from_layers(teacher, layers, architecture=architecture, attention=attention)
    finally:
        teacher.add_module(DENSE, dense)
    add_dense(student, dense.weight, dense.bias)
    return student


def add_dense(model: PreTrainedModel, weight_OD: Tensor, bias_O: Tensor | None = None) -> None:
    """Give a model a linear layer after the pooling, of a copy of these weights."""
    dense = nn.Linear(weight_OD.shape[1], weight_OD.shape[0], bias=bias_O is not None)
    with torch.no_grad():
        dense.weight.copy_(weight_OD)
        if bias_O is not None:
            dense.bias.copy_(bias_O)
    model.add_module(DENSE, dense)


def write_sentence_model(
    model: PreTrainedModel, dense: nn.Linear | None, settings: SentenceSettings, folder: Path
) -> None:
    """Write what makes a folder of transformers a sentence encoder, its Dense included."""
    write_sentence_settings(settings, folder, backbone_of(model).width)
    if settings.dense is None or dense is None:
        return
    state = {f"linear.{name}": tensor.detach().cpu().contiguous() for name, tensor in dense.state_dict().items()}
    place = folder / settings.dense
    place.mkdir()
    save_file(state, str(place / _WEIGHTS))
    config = {
        "in_features": dense.in_features,
        "out_features": dense.out_features,
        "bias": dense.bias is not None,
        "activation_function": ACTIVATIONS[settings.activation],
    }
    (place / "config.json").write_text(json_text(config, indent=2), encoding="utf-8")
