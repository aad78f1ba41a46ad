"""One view of every architecture: embeddings -> blocks -> norm -> head.

A trunk calls the model's own submodules, so gradient checkpointing, dropout and hooks go on working; it only
takes over the loop over the blocks, which is what makes it possible to stop, to keep a hidden state, to edit
it and to resume. An architecture is one entry in `VIEWS` (and its sizes one in `specs.ARCHITECTURES`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from torch import Tensor, arange
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import gelu, relu
from transformers import PreTrainedModel
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

from potstill.errors import ModelError
from potstill.models.specs import (
    CLASSIFIER_SUFFIX,
    Kind,
    ModelSpec,
    spec_from_settings,
    unknown_architecture,
)

Step = str | Callable[[Tensor], Tensor]
# In the form the attention implementation takes; None where it needs none.
Mask = Tensor | BlockMask | None


@dataclass(frozen=True)
class Flow:
    """What goes through the blocks.

    Attributes:
        hidden_BLD: residual stream before the next block, (batch, length, width).
        masks: attention mask of every block; the blocks of most architectures share one tensor.
        context: further keyword arguments of every block, such as rotary position embeddings.
    """

    hidden_BLD: Tensor
    masks: tuple[Mask, ...]
    context: Mapping[str, Any]

    def resume(self, hidden_BLD: Tensor) -> Flow:
        """The same sequences, going on from another hidden state."""
        return replace(self, hidden_BLD=hidden_BLD)


@dataclass(frozen=True)
class TrunkOutput:
    """What `Trunk.encode` gives.

    Attributes:
        last_hidden_BLD: after the final norm, (batch, length, width), as `last_hidden_state` of transformers.
        hidden: residual stream after each block that was asked for, (batch, length, width), before the final
            norm.
    """

    last_hidden_BLD: Tensor
    hidden: dict[int, Tensor]


@dataclass(frozen=True)
class View:
    """Where an architecture keeps its parts.

    Attributes:
        embed: (base model, ids, mask, token types) -> flow; token types are None where there are none.
        blocks: name of the list of blocks in the base model.
        norm: name of the final norm in the base model, if it has one.
        head: steps before the vocabulary projection: names in the whole model, or plain functions.
        classifier: steps of the head for sequence classification, likewise; the first takes the last hidden states
            (batch, length, width), or those of each sequence's last token (batch, width) where `pools_last`.
        pools_last: the classification head reads the last token of a sequence, not the first.
        positions: name of the learnt position embeddings in the base model, if it has them.
        token_types: name of the token-type embeddings in the base model, if it has them.
    """

    embed: Callable[[Any, Tensor, Tensor | None, Tensor | None], Flow]
    blocks: str
    norm: str | None = None
    head: tuple[Step, ...] = ()
    classifier: tuple[Step, ...] = ()
    pools_last: bool = False
    positions: str | None = None
    token_types: str | None = None

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Names of the steps of the head that have parameters or are modules."""
        return tuple(step for step in self.head if isinstance(step, str))

    @property
    def classifier_modules(self) -> tuple[str, ...]:
        """Names of the steps of the classification head that have parameters or are modules."""
        return tuple(step for step in self.classifier if isinstance(step, str))


def _embed_encoder(
    base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, token_type_ids_BL: Tensor | None
) -> Flow:
    types = {} if token_type_ids_BL is None else {"token_type_ids": token_type_ids_BL}
    hidden = base.embeddings(input_ids=input_ids_BL, **types)
    # ELECTRA's embeddings may be narrower than its blocks.
    if hasattr(base, "embeddings_project"):
        hidden = base.embeddings_project(hidden)
    mask = create_bidirectional_mask(
        config=base.config, inputs_embeds=hidden, attention_mask=attention_mask_BL
    )
    return Flow(hidden, (mask,) * base.config.num_hidden_layers, {})


def _embed_gpt2(base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, _: Tensor | None) -> Flow:
    inputs = base.wte(input_ids_BL)
    position_ids = arange(inputs.shape[1], device=inputs.device)[None]
    mask = create_causal_mask(
        config=base.config,
        inputs_embeds=inputs,
        attention_mask=attention_mask_BL,
        past_key_values=None,
        position_ids=position_ids,
    )
    hidden = base.drop(inputs + base.wpe(position_ids))
    return Flow(hidden, (mask,) * base.config.num_hidden_layers, {"position_ids": position_ids})


def _embed_rotary(
    base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, _: Tensor | None
) -> Flow:
    config = base.config
    hidden = base.embed_tokens(input_ids_BL)
    position_ids = arange(hidden.shape[1], device=hidden.device)[None]
    arguments = {
        "config": config,
        "inputs_embeds": hidden,
        "attention_mask": attention_mask_BL,
        "past_key_values": None,
        "position_ids": position_ids,
    }
    makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    kinds = _attention_kinds(config)
    masks = {kind: makers[kind](**arguments) for kind in set(kinds)}
    context = {
        "position_ids": position_ids,
        "position_embeddings": base.rotary_emb(hidden, position_ids=position_ids),
    }
    return Flow(hidden, tuple(masks[kind] for kind in kinds), context)


def _attention_kinds(config: Any) -> list[str]:
    """Attention of every block: Qwen2 says so block by block, Mistral for all, Llama has no window."""
    if getattr(config, "layer_types", None):
        return list(config.layer_types)
    window = getattr(config, "sliding_window", None)
    return ["full_attention" if window is None else "sliding_attention"] * config.num_hidden_layers


def _first_token(hidden_BLD: Tensor) -> Tensor:
    return hidden_BLD[:, 0]


_ENCODER: dict[str, Any] = {
    "positions": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
}
_ROBERTA = View(
    _embed_encoder,
    "encoder.layer",
    head=("lm_head.dense", gelu, "lm_head.layer_norm"),
    classifier=("classifier",),
    **_ENCODER,
)
_LLAMA = View(_embed_rotary, "layers", norm="norm", classifier=("score",), pools_last=True)

VIEWS: dict[str, View] = {
    "bert": View(
        _embed_encoder,
        "encoder.layer",
        head=("cls.predictions.transform",),
        classifier=("bert.pooler", "dropout", "classifier"),
        **_ENCODER,
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": View(
        _embed_encoder,
        "transformer.layer",
        head=("vocab_transform", "activation", "vocab_layer_norm"),
        classifier=(_first_token, "pre_classifier", relu, "dropout", "classifier"),
        positions="embeddings.position_embeddings",
    ),
    "electra": View(
        _embed_encoder,
        "encoder.layer",
        head=("generator_predictions",),
        classifier=("classifier",),
        **_ENCODER,
    ),
    "gpt2": View(_embed_gpt2, "h", norm="ln_f", positions="wpe", classifier=("score",), pools_last=True),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


def view_of(model: PreTrainedModel) -> View:
    """The view of a model's architecture.

    Raises:
        ModelError: there is none.
    """
    model_type = model.config.model_type
    if model_type not in VIEWS:
        raise ModelError(f"{type(model).__name__}: {unknown_architecture(model_type)}")
    return VIEWS[model_type]


class Trunk:
    """A model as embeddings, blocks, norm and head; holds references only, so nothing is registered twice.

    Submodules are looked up at every call: wrapping or replacing one (sharding, adapters) needs no new trunk.
    """

    def __init__(self, model: PreTrainedModel, view: View, spec: ModelSpec) -> None:
        self.model = model
        self.view = view
        self.spec = spec

    @property
    def kind(self) -> Kind:
        """`masked` or `causal`."""
        return self.spec.kind

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.spec.depth

    @property
    def width(self) -> int:
        """Dimension of the residual stream."""
        return self.spec.width

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.spec.heads

    @property
    def head_dim(self) -> int:
        """Width of one head's slice of the residual stream (not of its queries)."""
        return self.spec.head_dim

    @property
    def vocab_size(self) -> int:
        """Rows of the vocabulary projection."""
        return self.spec.vocab_size

    @property
    def max_length(self) -> int:
        """The longest sequence, in tokens."""
        return self.spec.max_length

    @property
    def token_types(self) -> int:
        """How many types of tokens the embeddings tell apart; 0 where they know none."""
        if self.view.token_types is None:
            return 0
        table: Any = self.model.base_model.get_submodule(self.view.token_types)
        return int(table.num_embeddings)

    def embed(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        token_type_ids_BL: Tensor | None = None,
    ) -> Flow:
        """Embed token ids and prepare what the blocks need.

        Args:
            input_ids_BL: token ids, (batch, length).
            attention_mask_BL: 1 for tokens, 0 for padding, (batch, length); None if nothing is padded.
            token_type_ids_BL: 0 for the first text, 1 for the second, (batch, length); None: all are of the first.

        Raises:
            ModelError: token types are given and the architecture has none.
        """
        if token_type_ids_BL is not None and self.view.token_types is None:
            raise ModelError(f"{self.spec.model_type} has no token types; give none")
        return self.view.embed(self.model.base_model, input_ids_BL, attention_mask_BL, token_type_ids_BL)

    def blocks(
        self, flow: Flow, start: int = 0, stop: int | None = None, keep: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the blocks start, ..., stop - 1 from `flow.hidden_BLD`.

        Running 0 to k+1 and resuming from that state with `start=k+1` is the same computation as running
        through.

        Args:
            flow: hidden state before block `start`, with masks and context.
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
            # The hidden state goes in as a positional argument: reentrant checkpointing sees no others.
            output = blocks[index](hidden_BLD, attention_mask=flow.masks[index], **flow.context)
            # Blocks of earlier releases of transformers 5 wrap their output in a tuple.
            hidden_BLD = output[0] if isinstance(output, tuple) else output
            if index in keep:
                kept[index] = hidden_BLD
        return hidden_BLD, kept

    def finish(self, hidden_BLD: Tensor) -> Tensor:
        """Final norm, (batch, length, width) to the same; none where the blocks end in a norm themselves."""
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
        steps = [self.model.get_submodule(s) if isinstance(s, str) else s for s in self.view.head]
        return reduce(lambda hidden, step: step(hidden), steps, hidden_ND)

    @property
    def decoder(self) -> tuple[Tensor, Tensor | None]:
        """Live weight (vocab, D') and bias (vocab,), if any, of the vocabulary projection.

        Raises:
            ModelError: the model has no language-model head.
        """
        projection = self._projection()
        return projection.weight, projection.bias

    def classify(self, last_hidden_BLD: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """The model's own head for sequence classification.

        Args:
            last_hidden_BLD: after the final norm, (batch, length, width).
            attention_mask_BL: 1 for tokens, 0 for padding, (batch, length); None if nothing is padded. Tells a causal
                model where a sequence ends.

        Returns:
            Logits of the labels, or a score, (batch, labels).

        Raises:
            ModelError: the model has no head for sequence classification.
        """
        if not is_classifier(self.model):
            raise ModelError(f"{type(self.model).__name__} has no head for sequence classification")
        hidden = _last_token(last_hidden_BLD, attention_mask_BL) if self.view.pools_last else last_hidden_BLD
        steps = [self.model.get_submodule(s) if isinstance(s, str) else s for s in self.view.classifier]
        return reduce(lambda state, step: step(state), steps, hidden)

    def encode(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        keep: Collection[int] = (),
        token_type_ids_BL: Tensor | None = None,
    ) -> TrunkOutput:
        """Embed, run all blocks, finish.

        Args:
            input_ids_BL: token ids, (batch, length).
            attention_mask_BL: 1 for tokens, 0 for padding, (batch, length); None if nothing is padded.
            keep: blocks whose output is wanted.
            token_type_ids_BL: as for `embed`.
        """
        flow = self.embed(input_ids_BL, attention_mask_BL, token_type_ids_BL)
        hidden_BLD, kept = self.blocks(flow, keep=keep)
        return TrunkOutput(self.finish(hidden_BLD), kept)

    def _projection(self) -> Any:
        projection = self.model.get_output_embeddings()
        if projection is None:
            raise ModelError(f"{type(self.model).__name__} has no language-model head")
        return projection


def _last_token(hidden_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """States of the last real token of each sequence, (batch, width)."""
    if attention_mask_BL is None:
        return hidden_BLD[:, -1]
    places = arange(hidden_BLD.shape[1], device=hidden_BLD.device)
    last = (places * attention_mask_BL.ne(0)).argmax(-1)
    return hidden_BLD[arange(len(last), device=last.device), last]


def is_classifier(model: PreTrainedModel) -> bool:
    """Whether a model has a head for sequence classification."""
    return type(model).__name__.endswith(CLASSIFIER_SUFFIX)


def trunk_of(model: PreTrainedModel) -> Trunk:
    """Look at a transformers model as a trunk.

    Args:
        model: a model of a known architecture; head and decoder need it to be a language model.

    Raises:
        ModelError: the architecture has no view, or the configuration is one it cannot show.
    """
    view = view_of(model)
    return Trunk(model, view, spec_from_settings(model.config.to_dict(), type(model).__name__))
