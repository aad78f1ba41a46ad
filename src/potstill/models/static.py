"""A static student: a vector per token, without context; a text's vector is the mean of them.

It is a backbone without blocks, so that it is trained, measured and exported like any other model.
`sentence_transformers` opens its folder (its module `StaticEmbedding`); transformers reads and writes it only if this
module, which registers the classes, is imported.

Source: Arora et al. 2017 ("A Simple but Tough-to-Beat Baseline for Sentence Embeddings"), section 3, for the weights of
tokens and the common component that is removed.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

MODEL_TYPE = "static"
INITIAL = 0.02  # standard deviation of vectors without a teacher


@strict
class StaticConfig(PreTrainedConfig):
    """Sizes of a static model.

    Attributes:
        vocab_size: number of vectors.
        hidden_size: their width.
        smoothing: a token of relative frequency p in the training texts has the initial weight
            smoothing / (smoothing + p), which is part of its vector; None: all have the same.
        pad_token_id: row that begins as 0.
    """

    model_type = MODEL_TYPE

    vocab_size: int = 30522
    hidden_size: int = 256
    smoothing: float | int | None = 1e-3
    pad_token_id: int | None = 0

    def validate_smoothing(self) -> None:
        """Called by the decorator."""
        if self.smoothing is not None and not (isinstance(self.smoothing, float | int) and self.smoothing > 0):
            raise ValueError(f"smoothing={self.smoothing}: a number above 0, or null")


class StaticModel(PreTrainedModel):
    """A table of vectors."""

    config_class = StaticConfig
    base_model_prefix = "static"
    _supports_sdpa = True  # there is no attention, but transformers checks the choice

    def __init__(self, config: StaticConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList()
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL)
            if self.config.pad_token_id is not None:
                nn.init.zeros_(module.weight[self.config.pad_token_id])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """The vectors of the tokens, (batch, length, width)."""
        return BaseModelOutput(last_hidden_state=self.embedding(input_ids))

    def get_input_embeddings(self) -> nn.Module:
        """The table."""
        return self.embedding


def static_vectors(
    tokens_VD: Tensor, counts_V: Tensor, smoothing: float | None, components_KD: Tensor | None = None
) -> Tensor:
    """Vectors of tokens whose mean is near to a teacher's vector of a text, (vocabulary, width) float32.

    A frequent token says little, so it weighs smoothing / (smoothing + p). The weighted mean over all texts, which all
    vectors share, is subtracted first.

    Args:
        tokens_VD: the teacher's vectors of single tokens, (vocabulary, teacher's width).
        counts_V: occurrences of the tokens in the training texts, (vocabulary,).
        smoothing: see `StaticConfig`.
        components_KD: what the teacher's vectors are multiplied with, (width, teacher's width); None: nothing.

    Source: Arora et al. 2017, section 3 (smooth inverse frequency).
    """
    vectors = tokens_VD.double()
    if components_KD is not None:
        vectors = vectors @ components_KD.double().T
    shares_V = counts_V.double() / counts_V.sum().clamp_min(1)
    weights_V = torch.ones_like(shares_V) if smoothing is None else smoothing / (smoothing + shares_V)
    common_V = shares_V * weights_V
    if (total := common_V.sum()) > 0:
        vectors = vectors - (common_V @ vectors) / total
    return (vectors * weights_V[:, None]).float()


AutoConfig.register(MODEL_TYPE, StaticConfig)
AutoModel.register(StaticConfig, StaticModel)
