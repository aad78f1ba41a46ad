"""The parts of each architecture, and how its embeddings prepare the inputs of its blocks.

An architecture is one entry in `VIEWS` (and its sizes one in `specs.ARCHITECTURES`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, NamedTuple

from torch import Tensor, arange, ones_like
from torch.nn.functional import gelu, relu
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

from potstill.errors import ModelError
from potstill.models import bigru, static
from potstill.models.heads import Head
from potstill.models.specs import unknown_architecture

Step = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Flow:
    """Inputs of the blocks.

    Attributes:
        hidden_BLD: residual stream before the next block, (batch, length, width).
        inputs: keyword arguments of every block, such as its attention mask, in the form that the attention
            implementation takes, and its rotary position embeddings; blocks of one kind of attention share them.
    """

    hidden_BLD: Tensor
    inputs: tuple[Mapping[str, Any], ...]

    def resume(self, hidden_BLD: Tensor) -> Flow:
        """The same sequences, from another hidden state on."""
        return replace(self, hidden_BLD=hidden_BLD)


@dataclass(frozen=True)
class View:
    """Names of the parts of an architecture.

    Attributes:
        embed: (base model, ids, mask, token types) -> flow; token types are None where there are none.
        blocks: name of the list of blocks in the base model.
        norm: name of the final norm in the base model, if it has one.
        head: steps before the vocabulary projection: names in the whole model, or plain functions.
        classifier: steps of the head for sequence classification, in the same form.
        tokens: steps of the head for token classification.
        spans: steps of the head for question answering.
        pools: (last hidden states, mask) -> input of the head for sequence classification, (batch, width); None: the
            last hidden states.
        positions: name of the learnt position embeddings in the base model, if it has them.
        token_types: name of the token-type embeddings in the base model, if it has them.
        vectors: names in a block of the layers of queries, keys and values, for bidirectional attention whose scores
            are their products; empty for others.
        projection: model -> its vocabulary projection, with `weight` and `bias`; None if it has none.
        changes: configuration -> the entries of this view that are others in such a model.
    """

    embed: Callable[[Any, Tensor, Tensor | None, Tensor | None], Flow]
    blocks: str
    norm: str | None = None
    head: tuple[Step, ...] = ()
    classifier: tuple[Step, ...] = ()
    tokens: tuple[Step, ...] = ("dropout", "classifier")
    spans: tuple[Step, ...] = ("qa_outputs",)
    pools: Callable[[Tensor, Tensor | None], Tensor] | None = None
    positions: str | None = None
    token_types: str | None = None
    vectors: tuple[str, ...] = ()
    projection: Callable[[Any], Any] = methodcaller("get_output_embeddings")
    changes: Callable[[Any], Mapping[str, Any]] | None = None

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Names of the steps of the head that are modules."""
        return tuple(step for step in self.head if isinstance(step, str))

    def task_head(self, head: Head) -> tuple[Step, ...]:
        """Steps of a task model's head."""
        return {"sequence": self.classifier, "tokens": self.tokens, "spans": self.spans}[head]

    def task_modules(self, head: Head) -> tuple[str, ...]:
        """Names of the steps of a task model's head that are modules."""
        return tuple(step for step in self.task_head(head) if isinstance(step, str))


def _embed_encoder(
    base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, token_type_ids_BL: Tensor | None
) -> Flow:
    types = {} if token_type_ids_BL is None else {"token_type_ids": token_type_ids_BL}
    hidden = base.embeddings(input_ids=input_ids_BL, **types)
    # ELECTRA's embeddings may be narrower than its blocks.
    if hasattr(base, "embeddings_project"):
        hidden = base.embeddings_project(hidden)
    mask = create_bidirectional_mask(config=base.config, inputs_embeds=hidden, attention_mask=attention_mask_BL)
    return Flow(hidden, ({"attention_mask": mask},) * base.config.num_hidden_layers)


def _embed_modernbert(base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, _: Tensor | None) -> Flow:
    hidden = base.embeddings(input_ids=input_ids_BL)
    return Flow(hidden, _rotary_inputs(base, hidden, attention_mask_BL, _BIDIRECTIONAL, {}, {}))


def _embed_deberta(
    base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, token_type_ids_BL: Tensor | None
) -> Flow:
    mask_BL = ones_like(input_ids_BL) if attention_mask_BL is None else attention_mask_BL
    hidden = base.embeddings(input_ids=input_ids_BL, token_type_ids=token_type_ids_BL, mask=mask_BL)
    encoder = base.encoder
    inputs = {
        "attention_mask": encoder.get_attention_mask(mask_BL),
        "relative_pos": encoder.get_rel_pos(hidden),
        "rel_embeddings": encoder.get_rel_embedding(),
    }
    return Flow(hidden, (inputs,) * base.config.num_hidden_layers)


def _embed_causal(base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, _: Tensor | None) -> Flow:
    hidden = base.get_input_embeddings()(input_ids_BL)
    positions = {"position_ids": _positions(hidden)}
    masked = {"past_key_values": None, **positions}
    inputs = _rotary_inputs(base, hidden, attention_mask_BL, _CAUSAL, masked, positions)
    return Flow(base.emb_dropout(hidden) if hasattr(base, "emb_dropout") else hidden, inputs)


def _embed_gpt2(base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, _: Tensor | None) -> Flow:
    words = base.wte(input_ids_BL)
    position_ids = _positions(words)
    mask = create_causal_mask(
        config=base.config,
        inputs_embeds=words,
        attention_mask=attention_mask_BL,
        past_key_values=None,
        position_ids=position_ids,
    )
    inputs = {"attention_mask": mask, "position_ids": position_ids}
    return Flow(base.drop(words + base.wpe(position_ids)), (inputs,) * base.config.num_hidden_layers)


def _embed_bigru(base: Any, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, _: Tensor | None) -> Flow:
    # Its layers take the mask of the tokens.
    return Flow(base.embed(input_ids_BL), ({"attention_mask": attention_mask_BL},) * base.config.num_hidden_layers)


def _embed_static(base: Any, input_ids_BL: Tensor, _: Tensor | None, __: Tensor | None) -> Flow:
    return Flow(base.embedding(input_ids_BL), ())


_CAUSAL = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
_BIDIRECTIONAL = {
    "full_attention": create_bidirectional_mask,
    "sliding_attention": create_bidirectional_sliding_window_mask,
}


def _rotary_inputs(
    base: Any,
    hidden_BLD: Tensor,
    attention_mask_BL: Tensor | None,
    makers: Mapping[str, Callable[..., Any]],
    masked: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> tuple[Mapping[str, Any], ...]:
    """Arguments of every block with rotary positions: the mask and the rotation of its kind of attention.

    Args:
        base: the base model.
        hidden_BLD: embedded tokens, (batch, length, width).
        attention_mask_BL: 1 for tokens, 0 for padding, (batch, length).
        makers: functions of transformers that make the mask of each kind of attention.
        masked: further arguments of these functions.
        shared: further arguments of every block.
    """
    kinds, made = _attention_kinds(base.config), {}
    for kind in dict.fromkeys(kinds):
        mask = makers[kind](config=base.config, inputs_embeds=hidden_BLD, attention_mask=attention_mask_BL, **masked)
        # Some rotate the blocks of each kind by frequencies of their own.
        own = {"layer_type": kind} if hasattr(base.rotary_emb, "layer_types") else {}
        rotation = base.rotary_emb(hidden_BLD, position_ids=_positions(hidden_BLD), **own)
        made[kind] = {"attention_mask": mask, "position_embeddings": rotation, **shared}
    return tuple(made[kind] for kind in kinds)


def _positions(hidden_BLD: Tensor) -> Tensor:
    return arange(hidden_BLD.shape[1], device=hidden_BLD.device)[None]


def _attention_kinds(config: Any) -> list[str]:
    """Attention of every block: most have it block by block, Mistral for all, others have no window."""
    if getattr(config, "layer_types", None):
        return list(config.layer_types)
    window = getattr(config, "sliding_window", None)
    return ["full_attention" if window is None else "sliding_attention"] * config.num_hidden_layers


def _first_token(hidden_BLD: Tensor, _: Tensor | None) -> Tensor:
    return hidden_BLD[:, 0]


def _mean_of_tokens(hidden_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """Mean of the states of the real tokens of each sequence, (batch, width)."""
    if attention_mask_BL is None:
        return hidden_BLD.mean(1)
    return (hidden_BLD * attention_mask_BL[..., None]).sum(1) / attention_mask_BL.sum(1, keepdim=True)


def _last_token(hidden_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """States of the last real token of each sequence, (batch, width)."""
    if attention_mask_BL is None:
        return hidden_BLD[:, -1]
    places = arange(hidden_BLD.shape[1], device=hidden_BLD.device)
    last = (places * attention_mask_BL.ne(0)).argmax(-1)
    return hidden_BLD[arange(len(last), device=last.device), last]


class _TiedProjection(NamedTuple):
    """A vocabulary projection by the word embeddings, with a bias of its own."""

    weight: Tensor
    bias: Tensor


def _deberta_changes(config: Any) -> dict[str, Any]:
    """Parts that DeBERTa has by its configuration: positions, token types, and one of two heads."""
    changed: dict[str, Any] = {} if config.position_biased_input else {"positions": None}
    if config.type_vocab_size > 0:
        changed["token_types"] = "embeddings.token_type_embeddings"
    if not config.legacy:
        own = "lm_predictions.lm_head"
        changed["head"] = (f"{own}.dense", ACT2FN[config.hidden_act], f"{own}.LayerNorm")
        changed["projection"] = _deberta_projection
    return changed


def _deberta_projection(model: Any) -> _TiedProjection | None:
    if not hasattr(model, "lm_predictions"):
        return None
    return _TiedProjection(model.get_input_embeddings().weight, model.lm_predictions.lm_head.bias)


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
_MODERNBERT_HEAD = ("head", "drop", "classifier")
_LLAMA = View(
    _embed_causal, "layers", norm="norm", classifier=("score",), tokens=("dropout", "score"), pools=_last_token
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
        classifier=("pre_classifier", relu, "dropout", "classifier"),
        pools=_first_token,
        spans=("dropout", "qa_outputs"),
        positions="embeddings.position_embeddings",
        vectors=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    ),
    "electra": View(
        _embed_encoder, "encoder.layer", head=("generator_predictions",), classifier=("classifier",), **_ENCODER
    ),
    "modernbert": View(
        _embed_modernbert,
        "layers",
        norm="final_norm",
        head=("head",),
        classifier=_MODERNBERT_HEAD,
        tokens=_MODERNBERT_HEAD,
        spans=_MODERNBERT_HEAD,
        pools=_first_token,
        changes=lambda config: {"pools": _mean_of_tokens if config.classifier_pooling == "mean" else _first_token},
    ),
    "deberta-v2": View(
        _embed_deberta,
        "encoder.layer",
        head=("cls.predictions.transform",),
        classifier=("pooler", "dropout", "classifier"),
        positions="embeddings.position_embeddings",
        changes=_deberta_changes,
    ),
    "gpt2": View(_embed_gpt2, "h", norm="ln_f", positions="wpe", classifier=("score",), pools=_last_token),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt_neox": View(_embed_causal, "layers", norm="final_layer_norm", classifier=("score",), pools=_last_token),
    bigru.MODEL_TYPE: View(_embed_bigru, "layers", classifier=("dropout", "classifier"), pools=bigru.pooled),
    static.MODEL_TYPE: View(_embed_static, "layers"),
}


def view_of(model: PreTrainedModel) -> View:
    """The view of a model's architecture.

    Raises:
        ModelError: there is none.
    """
    model_type = model.config.model_type
    if model_type not in VIEWS:
        raise ModelError(f"{type(model).__name__}: {unknown_architecture(model_type)}")
    view = VIEWS[model_type]
    return view if view.changes is None else replace(view, **view.changes(model.config))
