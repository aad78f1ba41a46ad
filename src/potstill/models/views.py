"""Where every architecture keeps its parts, and how its embeddings prepare what its blocks need.

An architecture is one entry in `VIEWS` (and its sizes one in `specs.ARCHITECTURES`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from potstill.models import bigru
from potstill.models.head_labels import Head
from potstill.models.specs import unknown_architecture

Step = str | Callable[[Tensor], Tensor]
# In the form the attention implementation takes; None where it needs none.
Mask = Tensor | BlockMask | None


@dataclass(frozen=True)
class Flow:
    """Inputs of the blocks.

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
class View:
    """Where an architecture keeps its parts.

    Attributes:
        embed: (base model, ids, mask, token types) -> flow; token types are None where there are none.
        blocks: name of the list of blocks in the base model.
        norm: name of the final norm in the base model, if it has one.
        head: steps before the vocabulary projection: names in the whole model, or plain functions.
        classifier: steps of the head for sequence classification, in the same form; the first takes the last hidden
            states (batch, length, width), or those of each sequence's last token (batch, width) where `pools_last`.
        tokens: steps of the head for token classification, from the last hidden states.
        spans: steps of the head for question answering, in the same form.
        pools_last: the classification head reads the last token of a sequence, not the first.
        pools: (last hidden states, mask) -> what the classification head reads, where it is neither.
        positions: name of the learnt position embeddings in the base model, if it has them.
        token_types: name of the token-type embeddings in the base model, if it has them.
        vectors: names in a block of what gives queries, keys and values, of bidirectional attention whose scores are
            their products; empty where it is another one.
    """

    embed: Callable[[Any, Tensor, Tensor | None, Tensor | None], Flow]
    blocks: str
    norm: str | None = None
    head: tuple[Step, ...] = ()
    classifier: tuple[Step, ...] = ()
    tokens: tuple[Step, ...] = ("dropout", "classifier")
    spans: tuple[Step, ...] = ("qa_outputs",)
    pools_last: bool = False
    pools: Callable[[Tensor, Tensor | None], Tensor] | None = None
    positions: str | None = None
    token_types: str | None = None
    vectors: tuple[str, ...] = ()

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Names of the steps of the head that have parameters or are modules."""
        return tuple(step for step in self.head if isinstance(step, str))

    def task_head(self, head: Head) -> tuple[Step, ...]:
        """Steps of a task model's head."""
        return {"sequence": self.classifier, "tokens": self.tokens, "spans": self.spans}[head]

    def task_modules(self, head: Head) -> tuple[str, ...]:
        """Names of its steps that have parameters or are modules."""
        return tuple(step for step in self.task_head(head) if isinstance(step, str))


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


def _embed_bigru(base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, _: Tensor | None) -> Flow:
    # Its layers take the mask of the tokens as it is.
    return Flow(base.embed(input_ids_BL), (attention_mask_BL,) * base.config.num_hidden_layers, {})


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
    "vectors": ("attention.self.query", "attention.self.key", "attention.self.value"),
}
_ROBERTA = View(
    _embed_encoder,
    "encoder.layer",
    head=("lm_head.dense", gelu, "lm_head.layer_norm"),
    classifier=("classifier",),
    **_ENCODER,
)
_LLAMA = View(
    _embed_rotary,
    "layers",
    norm="norm",
    classifier=("score",),
    tokens=("dropout", "score"),
    pools_last=True,
)

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
        spans=("dropout", "qa_outputs"),
        positions="embeddings.position_embeddings",
        vectors=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
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
    bigru.MODEL_TYPE: View(_embed_bigru, "layers", classifier=("dropout", "classifier"), pools=bigru.pooled),
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
