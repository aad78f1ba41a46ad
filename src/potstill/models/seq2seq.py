"""Encoder-decoders: loading, construction, their parts as the losses need them, and generation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, linear
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from potstill.losses.tied import TiedGradient, embed_tied
from potstill.losses.vocabulary import vocabulary_losses
from potstill.models.load import load_from
from potstill.models.specs import check_seq2seq, read_settings
from potstill.models.students import model_from_config, set_attention


class Seq2Seq:
    """An encoder-decoder as embeddings, encoder, decoder and projection; holds a reference only.

    Args:
        model: of an architecture of `specs.SEQ2SEQ`.
    """

    def __init__(self, model: PreTrainedModel):
        self.model: Any = model

    @property
    def projection(self) -> Tensor:
        """Live weight (vocab, width) of the vocabulary projection, which has no bias."""
        return self.model.get_output_embeddings().weight

    def tied(self) -> TiedGradient | None:
        """Passes the projection's gradient to the embeddings (`embed`); None if they do not share a weight."""
        table = self.model.get_input_embeddings()
        return TiedGradient() if table.weight is self.projection else None

    def embed(self, ids: list[Tensor], tied: TiedGradient | None = None) -> list[Tensor]:
        """Embeddings of several tensors of ids, in one lookup, so that the weight has one gradient.

        Args:
            ids: each (batch, length).
            tied: also passed to `vocabulary_losses` for the same backward pass.

        Returns:
            For each (batch, length, width).
        """
        weight_VD = self.model.get_input_embeddings().weight
        flat_N = torch.cat([part.flatten() for part in ids])
        found_ND = embedding(flat_N, weight_VD) if tied is None else embed_tied(weight_VD, flat_N, None, tied)
        parts = found_ND.split([part.numel() for part in ids])
        return [part_ND.view(*own.shape, -1) for part_ND, own in zip(parts, ids, strict=True)]

    def encode(self, embedded_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Last hidden states of the encoder, (batch, length, width)."""
        return self.model.get_encoder()(inputs_embeds=embedded_BLD, attention_mask=mask_BL).last_hidden_state

    def decode(self, embedded_BTD: Tensor, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Input of the vocabulary projection, (batch, target length, width), scaled as the model scales it.

        Args:
            embedded_BTD: of the decoder's input, the shifted target (`shifted`).
            states_BLD: of the encoder.
            mask_BL: of its input, 0 at padding.
        """
        with _without(self.model.get_output_embeddings()):
            return self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states_BLD),
                attention_mask=mask_BL,
                decoder_inputs_embeds=embedded_BTD,
                use_cache=False,
            ).logits

    def shifted(self, labels_BT: Tensor) -> Tensor:
        """The decoder's input for targets: the start token, then all but the last token of the target."""
        return self.model.prepare_decoder_input_ids_from_labels(labels_BT)

    @torch.no_grad()
    def write(self, states_BLD: Tensor, mask_BL: Tensor, max_tokens: int) -> Tensor:
        """Greedy generation until every row has ended, without the model's own generation settings.

        Args:
            states_BLD: of the encoder.
            mask_BL: of its input, 0 at padding.
            max_tokens: maximum tokens of a row, including the end token.

        Returns:
            (batch, at most max_tokens), padded after each row's end token.
        """
        config = self.model.config
        settings = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )
        with _plain_generation(self.model):
            return self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states_BLD),
                attention_mask=mask_BL,
                generation_config=settings,
                # That of transformers has as many layers as the encoder; this one has those of the decoder.
                past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            )[:, 1:]

    def scores(self, embedded_CTD: Tensor, labels_CT: Tensor, states_CLD: Tensor, mask_CL: Tensor) -> Tensor:
        """Log-probability (nats) of whole targets including the end token, with a gradient, (candidates,).

        Args:
            embedded_CTD: of the decoder's input.
            labels_CT: -100 at padding.
            states_CLD: of the encoder, one row per candidate.
            mask_CL: of its input.
        """
        real_CT = labels_CT.ge(0)
        hidden_ND = self.decode(embedded_CTD, states_CLD, mask_CL)[real_CT]
        nll_N = cross_entropy(linear(hidden_ND, self.projection).float(), labels_CT[real_CT], reduction="none")
        return _minus_sums(nll_N, real_CT)

    @torch.no_grad()
    def score(self, labels_CT: Tensor, states_CLD: Tensor, mask_CL: Tensor) -> Tensor:
        """As `scores` of the shifted labels, without a gradient and without (tokens, vocab) logits."""
        (embedded,) = self.embed([self.shifted(labels_CT)])
        real_CT = labels_CT.ge(0)
        hidden_ND, one = self.decode(embedded, states_CLD, mask_CL)[real_CT], {"nll": 1.0}
        losses = vocabulary_losses(
            hidden_ND, self.projection, None, labels_N=labels_CT[real_CT], weights=one, denominators=one
        )
        return _minus_sums(losses.rows["nll"], real_CT)


def _minus_sums(nll_N: Tensor, real_CT: Tensor) -> Tensor:
    """Negative sums by candidate of values by real token, (candidates,)."""
    return -nll_N.new_zeros(len(real_CT)).index_add(0, real_CT.nonzero()[:, 0], nll_N)


def load_seq2seq(key: str, value: str, *, attention: str = "sdpa") -> PreTrainedModel:
    """Load an encoder-decoder with its head, in evaluation mode as transformers returns it.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        attention: attention implementation of transformers; `sdpa` if the architecture has it.

    Raises:
        ModelError: no such model.
        WeightsError: another architecture, or a damaged or incomplete checkpoint.
    """
    check_seq2seq(read_settings(key, value), f"{key}={value}")
    # Early releases of transformers 5 have no sdpa for T5; they choose their own.
    settings = {} if attention == "sdpa" else {"attn_implementation": attention}
    return load_from(key, value, AutoModelForSeq2SeqLM, **settings)


def seq2seq_from_config(
    settings: Mapping[str, Any],
    *,
    vocab_size: int,
    pad_token_id: int,
    eos_token_id: int | None,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """Make an encoder-decoder from scratch, initialised from torch's generator.

    Args:
        settings: `model_type` and any argument of that architecture's transformers configuration; they override the
            following arguments.
        vocab_size: of the tokenizer.
        pad_token_id: of the tokenizer; the decoder starts with it, as that of T5.
        eos_token_id: of the tokenizer.
        attention: as in `load_seq2seq`.

    Raises:
        WeightsError: another architecture.
        KeyNameError: an unknown argument.
        ConfigError: a value that transformers rejects, or an attention that the student does not have.
    """
    check_seq2seq(settings, "student.config")
    tokens = {
        "vocab_size": vocab_size,
        "pad_token_id": pad_token_id,
        "eos_token_id": eos_token_id,
        "decoder_start_token_id": pad_token_id,
    }
    student = model_from_config(settings, tokens, AutoModelForSeq2SeqLM)
    if attention != "sdpa":
        set_attention(student, attention)
    return student


def remember_prefixes(model: PreTrainedModel, prefixes: Mapping[str, str]) -> None:
    """Write the prefix of each task into a student's configuration, in the entry that T5 uses."""
    model.config.task_specific_params = {task: {"prefix": prefix} for task, prefix in prefixes.items()}


def prefixes_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The prefixes by task in the content of a config.json; empty if it has none."""
    tasks = settings.get("task_specific_params") or {}
    return {task: own["prefix"] for task, own in tasks.items() if isinstance(own.get("prefix"), str)}


@contextmanager
def _without(projection: nn.Module) -> Iterator[None]:
    """Within the context, a projection is the identity."""
    projection.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del projection.forward  # that of the instance, which hides that of the class


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Within the context, a model has no generation settings, from which `generate` completes its arguments."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
