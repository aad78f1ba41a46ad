"""A model as embeddings -> blocks -> norm -> head, whatever its architecture.

A backbone calls the model's own submodules, so gradient checkpointing, dropout and hooks keep working. Only the loop
over the blocks is its own, so that it can stop, keep or edit a hidden state, and resume. `views` has the names of the
submodules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.errors import ModelError
from potstill.losses.tied import TiedGradient, embed_tied
from potstill.models.heads import Head, head_of
from potstill.models.specs import Kind, ModelSpec, spec_from_settings
from potstill.models.views import Flow, Step, View, view_of


class Backbone:
    """A model as embeddings, blocks, norm and head; holds references only, so nothing is registered twice.

    Submodules are looked up at every call: wrapping or replacing one (sharding, adapters) needs no new backbone.

    Attributes:
        model: the model.
        view: the names of its parts.
        spec: its sizes.
        kind: `masked` or `causal`.
        depth: number of blocks.
        width: dimension of the residual stream.
        heads: number of attention heads.
        head_dim: width of one head's slice of the residual stream (not of its queries).
        vocab_size: rows of the vocabulary projection.
        max_length: the longest sequence, in tokens.

    Example:
        A run over the first two blocks, resumed from there, is the same as a whole run.

        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from potstill.models import backbone_of
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                     intermediate_size=16)
        >>> backbone = backbone_of(BertForMaskedLM(config).eval())
        >>> flow = backbone.embed(torch.tensor([[1, 2, 3]]))
        >>> middle, _ = backbone.blocks(flow, stop=2)
        >>> resumed, _ = backbone.blocks(flow.resume(middle), start=2)
        >>> torch.equal(resumed, backbone.blocks(flow)[0])
        True
    """

    def __init__(self, model: PreTrainedModel, view: View, spec: ModelSpec) -> None:
        self.model, self.view, self.spec = model, view, spec
        self.kind: Kind = spec.kind
        self.depth, self.width, self.heads, self.head_dim = spec.depth, spec.width, spec.heads, spec.head_dim
        self.vocab_size, self.max_length = spec.vocab_size, spec.max_length

    @property
    def token_types(self) -> int:
        """Number of token types of the embeddings; 0 if they have none."""
        if self.view.token_types is None:
            return 0
        table: Any = self.model.base_model.get_submodule(self.view.token_types)
        return int(table.num_embeddings)

    def embed(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, token_type_ids_BL: Tensor | None = None
    ) -> Flow:
        """Embed token ids and prepare the inputs of the blocks.

        Args:
            input_ids_BL: token ids, (batch, length).
            attention_mask_BL: 1 for tokens, 0 for padding, (batch, length); None if nothing is padded.
            token_type_ids_BL: 0 for the first text, 1 for the second, (batch, length); None: all are of the first.

        Raises:
            ModelError: token types are given and the architecture has none.
        """
        if token_type_ids_BL is not None and self.view.token_types is None:
            raise ModelError(f"{self.spec.model_type} has no token types")
        return self.view.embed(self.model.base_model, input_ids_BL, attention_mask_BL, token_type_ids_BL)

    def blocks(
        self, flow: Flow, start: int = 0, stop: int | None = None, keep: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the blocks start, ..., stop - 1 from `flow.hidden_BLD`.

        Running 0 to k+1 and resuming from that state with `start=k+1` is the same computation as running
        through.

        Args:
            flow: hidden state before block `start`, with the inputs of the blocks.
            start: first block.
            stop: one after the last block; default all.
            keep: blocks whose output (residual stream after the block) is wanted.

        Returns:
            The hidden state after the last block (before the final norm), (batch, length, width), and the
            kept ones.

        Raises:
            ValueError: a block to keep is not among those that are run.
        """
        stop = self.depth if stop is None else stop
        if outside := [index for index in keep if not start <= index < stop]:
            raise ValueError(f"blocks {outside} are not among those run, {start} to {stop - 1}")
        hidden_BLD, kept = flow.hidden_BLD, {}
        blocks: Any = self.model.base_model.get_submodule(self.view.blocks)
        for index in range(start, stop):
            # The hidden state is a positional argument: reentrant checkpointing ignores others.
            output = blocks[index](hidden_BLD, **flow.inputs[index])
            # Blocks of earlier releases of transformers 5 wrap their output in a tuple.
            hidden_BLD = output[0] if isinstance(output, tuple) else output
            if index in keep:
                kept[index] = hidden_BLD
        return hidden_BLD, kept

    def finish(self, hidden_BLD: Tensor) -> Tensor:
        """Final norm, (batch, length, width) to the same; the identity if the blocks end in a norm themselves."""
        norm = self.view.norm
        return self.model.base_model.get_submodule(norm)(hidden_BLD) if norm else hidden_BLD

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Transform before the vocabulary projection.

        Args:
            hidden_ND: last hidden states, (..., width).

        Returns:
            (..., D'), with D' the width of the decoder's weight.

        Raises:
            ModelError: the model has no language-model head.
        """
        self._projection()
        return self._run(self.view.head, hidden_ND)

    @property
    def decoder(self) -> tuple[Tensor, Tensor | None]:
        """Live weight (vocab, D') and bias (vocab,), if any, of the vocabulary projection.

        Raises:
            ModelError: the model has no language-model head.
        """
        projection = self._projection()
        return projection.weight, projection.bias

    @contextmanager
    def tying(self) -> Iterator[TiedGradient | None]:
        """Within the context, embeddings tied to the vocabulary projection receive its gradient; None if not tied.

        Pass the yielded object to `losses.vocabulary.vocabulary_losses`; its backward pass adds up both gradients.
        """
        table: Any = self.model.get_input_embeddings()
        projection = self.view.projection(self.model)
        plain = type(table) is nn.Embedding and not (table.sparse or table.max_norm or table.scale_grad_by_freq)
        if projection is None or not plain or table.weight is not projection.weight:
            yield None
            return
        tied = TiedGradient()
        table.forward = lambda ids: embed_tied(table.weight, ids, table.padding_idx, tied)
        try:
            yield tied
        finally:
            del table.forward  # that of the instance, which hides that of the class

    def classify(self, last_hidden_BLD: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """The model's own head for its task.

        Args:
            last_hidden_BLD: after the final norm, (batch, length, width).
            attention_mask_BL: 1 for tokens, 0 for padding, (batch, length); None if nothing is padded. A causal model
                finds the end of a sequence by it.

        Returns:
            Logits of a sequence's labels, or its score, (batch, labels); of each token's labels, (batch, length,
            labels); or of each token as the first and the last of an answer, (batch, length, 2).

        Raises:
            ModelError: the model has no head for a task.
        """
        head = task_head(self.model)
        if head is None:
            raise ModelError(f"{type(self.model).__name__} has no head for a task")
        pool = self.view.pools if head == "sequence" else None
        hidden = last_hidden_BLD if pool is None else pool(last_hidden_BLD, attention_mask_BL)
        return self._run(self.view.task_head(head), hidden)

    def _run(self, steps: Sequence[Step], hidden: Tensor) -> Tensor:
        functions = (self.model.get_submodule(step) if isinstance(step, str) else step for step in steps)
        return reduce(lambda state, function: function(state), functions, hidden)

    def _projection(self) -> Any:
        projection = self.view.projection(self.model)
        if projection is None:
            raise ModelError(f"{type(self.model).__name__} has no language-model head")
        return projection


def task_head(model: PreTrainedModel) -> Head | None:
    """The head of a task model; None for a language model or a bare encoder."""
    return head_of(type(model).__name__)


def backbone_of(model: PreTrainedModel) -> Backbone:
    """The backbone view of a transformers model: embeddings, blocks, norm and head.

    Args:
        model: A model of a supported architecture. `head` and `decoder` need a language model, `classify` a task model.

    Raises:
        ModelError: The architecture, or this configuration of it, has no view.

    Example:
        Logits from the parts of a model are those of the model.

        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from potstill.models import backbone_of
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                     intermediate_size=16)
        >>> model = BertForMaskedLM(config).eval()
        >>> backbone, ids = backbone_of(model), torch.tensor([[1, 2, 3]])
        >>> hidden, kept = backbone.blocks(backbone.embed(ids), keep=[1])
        >>> weight, bias = backbone.decoder
        >>> logits = torch.nn.functional.linear(backbone.head(backbone.finish(hidden)), weight, bias)
        >>> torch.allclose(logits, model(ids).logits, atol=1e-5), kept[1].shape
        (True, torch.Size([1, 3, 16]))
    """
    view = view_of(model)
    return Backbone(model, view, spec_from_settings(model.config.to_dict(), type(model).__name__))
