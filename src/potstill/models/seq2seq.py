"""Encoder-decoders: loading, construction, their parts as the losses need them, and generation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import (
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import BaseModelOutput

from potstill.losses.tied import TiedGradient, embed_tied
from potstill.losses.vocabulary import vocabulary_losses
from potstill.models.load import load_from
from potstill.models.students import model_from_config, set_attention

Rows = slice | Tensor  # of a batch
Part = tuple[Rows, Tensor]  # rows with their targets, (rows, target length), -100 at padding


class Seq2Seq:
    """An encoder-decoder as embeddings, encoder, decoder and projection; holds a reference only.

    Args:
        model: of an architecture of `specs.SEQ2SEQ`.
    """

    def __init__(self, model: PreTrainedModel):
        self.model: Any = model

    @property
    def projection(self) -> tuple[Tensor, None]:
        """Live weight (vocab, width) of the vocabulary projection, which has no bias."""
        return self.model.get_output_embeddings().weight, None

    def tied(self) -> TiedGradient | None:
        """Passes the projection's gradient to the embeddings (`embed`); None if they do not share a weight."""
        table = self.model.get_input_embeddings()
        return TiedGradient() if table.weight is self.projection[0] else None

    def read(self, ids_BL: Tensor, mask_BL: Tensor, parts: Sequence[Part]) -> tuple[list[Tensor], TiedGradient | None]:
        """Inputs of the projection at the tokens of targets, with a gradient; one pass of the encoder for all.

        The decoder runs each part by itself, so that short targets are not padded to the length of long ones.

        Args:
            ids_BL: inputs, padded on the right.
            mask_BL: 0 at padding.
            parts: rows of the inputs with their targets.

        Returns:
            For each part (tokens, width), row by row without padding; and what passes the gradient of the projection to
            the embeddings, for `vocabulary_losses`.
        """
        tied = self.tied() if torch.is_grad_enabled() else None
        inputs, *starts = self.embed([ids_BL, *(self.shifted(target) for _, target in parts)], tied)
        states_BLD = self.encode(inputs, mask_BL)
        return [
            self.decode(start, states_BLD[rows], mask_BL[rows])[target.ge(0)]
            for start, (rows, target) in zip(starts, parts, strict=True)
        ], tied

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
    def context(self, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Run the encoder once, for `score` and `write`.

        Returns:
            Its states (batch, length, width), and the mask of its input.
        """
        (embedded,) = self.embed([ids_BL])
        return self.encode(embedded, mask_BL), mask_BL

    @torch.no_grad()
    def write(self, context: tuple[Tensor, Tensor], rows: Rows, max_tokens: int, stop: Sequence[int] = ()) -> Tensor:
        """Greedy generation until every row has ended, without the model's own generation settings.

        Args:
            context: of the inputs.
            rows: some of them.
            max_tokens: maximum tokens of a row, including the end token.
            stop: tokens that end a text too.

        Returns:
            (batch, at most max_tokens), padded after each row's end.
        """
        states_BLD, mask_BL = context
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
                encoder_outputs=BaseModelOutput(last_hidden_state=states_BLD[rows]),
                attention_mask=mask_BL[rows],
                generation_config=settings,
                # That of transformers has as many layers as the encoder; this one has those of the decoder.
                past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
                stopping_criteria=StoppingCriteriaList([_Stop(stop)] if stop else []),
            )[:, 1:]

    @torch.no_grad()
    def score(self, context: tuple[Tensor, Tensor], rows: Rows, labels_CT: Tensor) -> Tensor:
        """Log-probability (nats) of whole targets with the end token, (candidates,); without (tokens, vocab) logits.

        Args:
            context: of the inputs.
            rows: the input of each candidate.
            labels_CT: -100 at padding.
        """
        states_BLD, mask_BL = context
        (embedded,) = self.embed([self.shifted(labels_CT)])
        hidden_ND = self.decode(embedded, states_BLD[rows], mask_BL[rows])[labels_CT.ge(0)]
        return log_likelihoods(hidden_ND, self.projection, labels_CT)


def log_likelihoods(hidden_ND: Tensor, projection: tuple[Tensor, Tensor | None], labels_CT: Tensor) -> Tensor:
    """Log-probability (nats) of whole targets, (candidates,), without a gradient.

    Args:
        hidden_ND: inputs of the projection at the targets' tokens, row by row without padding.
        projection: weight, and bias or None.
        labels_CT: the targets, -100 at padding.
    """
    real_CT, one = labels_CT.ge(0), {"nll": 1.0}
    losses = vocabulary_losses(hidden_ND, *projection, labels_N=labels_CT[real_CT], weights=one, denominators=one)
    return minus_sums(losses.rows["nll"], real_CT)


def minus_sums(nll_N: Tensor, real_CT: Tensor) -> Tensor:
    """Negative sums by candidate of values by real token, (candidates,)."""
    return -nll_N.new_zeros(len(real_CT)).index_add(0, real_CT.nonzero()[:, 0], nll_N)


class _Stop(StoppingCriteria):
    """Rows end with some tokens."""

    def __init__(self, tokens: Sequence[int]):
        self._tokens = list(tokens)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        tail = input_ids[:, 1:][:, -len(self._tokens) :]  # the first one begins every text
        if tail.shape[1] < len(self._tokens):
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return tail.eq(torch.tensor(self._tokens, device=tail.device)).all(1)


def load_seq2seq(key: str, value: str, *, attention: str = "sdpa") -> PreTrainedModel:
    """Load an encoder-decoder with its head, in evaluation mode as transformers returns it.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        attention: attention implementation of transformers; `sdpa` if the architecture has it.

    Raises:
        ModelError: no such model.
        WeightsError: a damaged or incomplete checkpoint.
    """
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
        KeyNameError: an unknown argument.
        ConfigError: a value that transformers rejects, or an attention that the student does not have.
    """
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
