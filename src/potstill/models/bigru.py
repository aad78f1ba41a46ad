"""A recurrent student: embeddings, bidirectional GRU layers, and a head on the final states of both directions.

Each layer is a block, so that a backbone runs, matches and exports it like any other model. transformers writes and
reads its folder, but only if this module, which registers the classes, is imported.

Source: Cho et al. 2014 (arXiv:1406.1078) for the unit; Tang et al. 2019 (arXiv:1903.12136), section 3, for
bidirectional recurrent students of BERT.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, arange, cat, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput, TokenClassifierOutput

MODEL_TYPE = "bigru"


@strict
class BiGruConfig(PreTrainedConfig):
    """Sizes of a BiGRU.

    Attributes:
        vocab_size: rows of the embeddings.
        embedding_size: their width.
        hidden_size: width of a layer's output, both directions together; even.
        num_hidden_layers: layers.
        max_position_embeddings: the longest sequence, in tokens; there are no position embeddings.
        dropout: after the embeddings, between layers, and before the head.
        initializer_range: standard deviation of new embeddings and of a new head.
        pad_token_id: row of the embeddings that stays 0.
    """

    model_type = MODEL_TYPE

    vocab_size: int = 30522
    embedding_size: int = 256
    hidden_size: int = 512
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    max_position_embeddings: int = 512
    dropout: float | int = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0


class BiGruLayer(nn.Module):
    """A bidirectional GRU over the real tokens of each sequence.

    Args:
        width: of its input.
        hidden: width of its output, half for each direction.
        dropout: of its output.
    """

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.gru = nn.GRU(width, hidden // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BLD: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(batch, length, width) to (batch, length, hidden); 0 at padding, which does not influence other states.

        Args:
            hidden_BLD: input.
            attention_mask: (batch, length), 1 for tokens, which come first in each row; None if nothing is padded.
        """
        if attention_mask is None:
            return self.dropout(self.gru(hidden_BLD)[0])
        lengths_B = attention_mask.sum(dim=1).clamp_min(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(hidden_BLD, lengths_B, batch_first=True, enforce_sorted=False)
        states_BLD, _ = nn.utils.rnn.pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=hidden_BLD.shape[1]
        )
        return self.dropout(states_BLD)


class BiGruPreTrainedModel(PreTrainedModel):
    """Initial weights, loading and saving."""

    config_class = BiGruConfig
    base_model_prefix = "bigru"
    _supports_sdpa = True  # there is no attention, but transformers checks the choice

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.GRU):
            module.reset_parameters()


class BiGruModel(BiGruPreTrainedModel):
    """Embeddings and layers."""

    def __init__(self, config: BiGruConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        # The residual stream of a backbone has one width: that of the layers.
        self.project = nn.Linear(config.embedding_size, config.hidden_size)
        self.layers = nn.ModuleList(
            BiGruLayer(config.hidden_size, config.hidden_size, config.dropout) for _ in range(config.num_hidden_layers)
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def embed(self, input_ids_BL: Tensor) -> Tensor:
        """(batch, length) ids to (batch, length, hidden)."""
        return self.dropout(self.project(self.embeddings(input_ids_BL)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """The last hidden states, (batch, length, hidden)."""
        hidden_BLD = self.embed(input_ids)
        for layer in self.layers:
            hidden_BLD = layer(hidden_BLD, attention_mask)
        return BaseModelOutput(last_hidden_state=hidden_BLD)

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings."""
        return self.embeddings


class _BiGruHead(BiGruPreTrainedModel):
    """A linear layer on the states of a BiGRU."""

    def __init__(self, config: BiGruConfig):
        super().__init__(config)
        self.bigru = BiGruModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 1))
        self.post_init()  # type: ignore[no-untyped-call]

    def _head(self, states: Tensor) -> Tensor:
        return self.classifier(self.dropout(states))


class BiGruForSequenceClassification(_BiGruHead):
    """A label of a sequence, or a score."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """Logits, (batch, labels)."""
        last_BLD = self.bigru(input_ids, attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self._head(pooled(last_BLD, attention_mask)))


class BiGruForTokenClassification(_BiGruHead):
    """A label of each token."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> TokenClassifierOutput:
        """Logits, (batch, length, labels)."""
        return TokenClassifierOutput(logits=self._head(self.bigru(input_ids, attention_mask).last_hidden_state))


def pooled(last_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """Final states of both directions, (batch, width): forward at the last token, backward at the first."""
    half = last_BLD.shape[-1] // 2
    rows = arange(len(last_BLD), device=last_BLD.device)
    ends = last_BLD.shape[1] - 1 if attention_mask_BL is None else attention_mask_BL.sum(1).clamp_min(1) - 1
    return cat([last_BLD[rows, ends, :half], last_BLD[:, 0, half:]], dim=-1)


AutoConfig.register(MODEL_TYPE, BiGruConfig)
AutoModel.register(BiGruConfig, BiGruModel)
AutoModelForSequenceClassification.register(BiGruConfig, BiGruForSequenceClassification)
AutoModelForTokenClassification.register(BiGruConfig, BiGruForTokenClassification)
