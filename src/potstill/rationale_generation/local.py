"""Answers from a model of transformers in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from potstill.data.rationales.thoughts import cut, ended, final_answer, is_mark, opened_thought
from potstill.errors import ConfigError, ModelError
from potstill.models.generation import quantile_token
from potstill.models.load import load_from
from potstill.models.pretrained import load_local_first, one_line, read_pretrained
from potstill.models.specs import read_settings
from potstill.rationale_generation.answers import Answer, Prompt, Request, Tally
from potstill.rationale_generation.settings import LocalSettings, Sampling

TOP = 20  # tokens with log-probabilities, as from endpoints


class LocalModel:
    """A causal or sequence-to-sequence language model that answers prompts.

    Args:
        settings: The model and its device.
        sampling: Sampling of answers.
        stop: Strings that end an answer.

    Raises:
        ModelError: The model does not exist, is damaged, or does not generate.
        ConfigError: The device does not exist.
    """

    def __init__(self, settings: LocalSettings, sampling: Sampling, stop: tuple[str, ...] = ()) -> None:
        self._settings = settings
        self._sampling = sampling
        self._stop = stop
        self._tokenizer, self._model = _load(settings)
        self._seq2seq = bool(self._model.config.is_encoder_decoder)
        special = self._tokenizer.all_special_ids
        names = map(str, self._tokenizer.convert_ids_to_tokens(special))
        # Marks of thoughts stay in the text, also as special tokens, so that thoughts can be removed.
        self._hidden = {one for one, name in zip(special, names, strict=True) if not is_mark(name)}

    def answer(self, requests: Sequence[Request], record: Callable[[Request, Answer], None]) -> Tally:
        """Answer requests in batches of similar length, the longest first.

        Each row has its own seed, so its answer does not depend on the batch, except for rounding differences between
        batch sizes.

        Args:
            requests: Requests to answer.
            record: Called with the answers of each batch.

        Raises:
            ModelError: A prompt and its answer exceed the model's positions, or the tokenizer has no chat template.
        """
        tally = Tally()
        encoded = [self._encode(request.prompt) for request in requests]
        prompts, opened = [ids for ids, _ in encoded], [mark for _, mark in encoded]
        order = sorted(range(len(requests)), key=lambda row: (-len(prompts[row]), row))
        if order:
            self._check_length(len(prompts[order[0]]))
        for start in range(0, len(order), self._settings.batch_size):
            rows = order[start : start + self._settings.batch_size]
            tally.asked += len(rows)
            seeds = [requests[row].seed for row in rows]
            answers = self._generate([prompts[row] for row in rows], seeds, [opened[row] for row in rows])
            for row, answer in zip(rows, answers, strict=True):
                record(requests[row], answer)
                tally.count(answer)
        return tally

    def _encode(self, prompt: Prompt) -> tuple[list[int], str]:
        """Token ids, and the beginning of a thought at the end of the prompt."""
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt, truncation=False)["input_ids"]), ""
        if not getattr(self._tokenizer, "chat_template", None):
            raise ModelError(
                f"generation.model={self._settings.model}: its tokenizer has no chat template; "
                "use generation.form=completion"
            )
        text = self._tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = list(self._tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])
        return ids, opened_thought(str(text))

    def _check_length(self, longest: int) -> None:
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is None:  # relative positions (T5)
            return
        needed = max(longest, self._sampling.max_tokens) if self._seq2seq else longest + self._sampling.max_tokens
        if needed > limit:
            raise ModelError(
                f"generation.model={self._settings.model}: has {limit} positions, but the longest prompt with its "
                f"answer needs {needed}; reduce generation.shots or generation.max_tokens"
            )

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], seeds: list[int], opened: list[str]) -> list[Answer]:
        width = max(map(len, prompts))
        pad = self._model.generation_config.pad_token_id
        ids_BL = torch.full((len(prompts), width), pad, dtype=torch.long)
        mask_BL = torch.zeros_like(ids_BL)
        for row, prompt in enumerate(prompts):
            # A causal model continues from the last column, so padding is on the left.
            columns = slice(0, len(prompt)) if self._seq2seq else slice(width - len(prompt), width)
            ids_BL[row, columns] = torch.tensor(prompt)
            mask_BL[row, columns] = 1
        chooser = _Chooser(self._sampling, seeds)
        ends = _StopStrings(self._decode, self._stop, start=1 if self._seq2seq else width, opened=opened)
        device = self._model.device
        output_BL = self._model.generate(
            input_ids=ids_BL.to(device),
            attention_mask=mask_BL.to(device),
            # The encoder-decoder cache that transformers makes has the encoder's number of layers.
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()) if self._seq2seq else None,
            max_new_tokens=self._sampling.max_tokens,
            logits_processor=LogitsProcessorList([chooser]),
            stopping_criteria=StoppingCriteriaList([ends]),
        ).cpu()
        logprobs, top = chooser.logprobs(), chooser.top()
        return [
            self._read(
                output_BL[row, ends.start :].tolist(),
                len(prompt),
                ends.lengths[row],
                logprobs[row],
                top[row],
                opened[row],
            )
            for row, prompt in enumerate(prompts)
        ]

    def _read(
        self,
        tokens: list[int],
        input_tokens: int,
        stopped: int | None,
        logprobs: list[float],
        top: list[list[tuple[int, float]]],
        opened: str,
    ) -> Answer:
        """The answer in the columns after a prompt, without padding."""
        eos = self._model.generation_config.eos_token_id
        end = next((at + 1 for at, token in enumerate(tokens) if token in eos), None)
        length = min(one for one in (end, stopped, len(tokens)) if one is not None)
        tokens = tokens[:length]
        text = opened + self._decode(tokens)
        text = cut(text, self._stop) if final_answer(text) == text else text
        pairs = likely = None
        if self._sampling.logprobs:
            pairs = list(zip(self._names(tokens), logprobs[:length], strict=True))
            likely = [
                list(zip(self._names([token for token, _ in own]), [value for _, value in own], strict=True))
                for own in top[:length]
            ]
        finish = "length" if end is None and stopped is None else "stop"
        return Answer(text, finish, input_tokens, length, pairs, likely)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode([token for token in tokens if token not in self._hidden]))

    def _names(self, tokens: list[int]) -> list[str]:
        return [str(name) for name in self._tokenizer.convert_ids_to_tokens(tokens)]


class _Chooser(LogitsProcessor):
    """Chooses each row's next token, greedily or with the row's own generator, and masks all others.

    A row draws one number per step and takes the token at that quantile of its distribution, so its draws do not depend
    on other rows.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self._sampling = sampling
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._chosen: list[Tensor] = []
        self._likeliest: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (batch, vocab) that are -inf except at the chosen token."""
        scores = scores.float()
        if self._sampling.temperature == 0:
            token_B1 = scores.argmax(-1, keepdim=True)
        else:
            drawn = [torch.rand(1, generator=generator, dtype=torch.float64) for generator in self._generators]
            token_B1 = quantile_token(
                scores / self._sampling.temperature, torch.stack(drawn).to(scores.device), self._sampling.top_p
            )
        if self._sampling.logprobs:
            found_BV = scores.log_softmax(-1)
            self._chosen.append(found_BV.gather(-1, token_B1).squeeze(-1).cpu())
            top = found_BV.topk(min(TOP, found_BV.shape[-1]))
            self._likeliest.append((top.indices.cpu(), top.values.cpu()))
        return torch.full_like(scores, -torch.inf).scatter(-1, token_B1, 0.0)

    def logprobs(self) -> list[list[float]]:
        """Log-probability (nats, at temperature 1) of each row's token of each step."""
        if not self._chosen:
            return [[] for _ in self._generators]
        return torch.stack(self._chosen, dim=1).tolist()

    def top(self) -> list[list[list[tuple[int, float]]]]:
        """For each row and step, the most likely tokens with log-probabilities (nats, at temperature 1)."""
        return [
            [
                list(zip(tokens_BK[row].tolist(), values_BK[row].tolist(), strict=True))
                for tokens_BK, values_BK in self._likeliest
            ]
            for row in range(len(self._generators))
        ]


class _StopStrings(StoppingCriteria):
    """Ends a row when its answer contains one of the strings; `lengths` has the number of tokens."""

    def __init__(
        self, decode: Callable[[list[int]], str], stop: Sequence[str], *, start: int, opened: Sequence[str]
    ) -> None:
        self.start = start
        self.lengths: list[int | None] = [None] * len(opened)
        self._decode = decode
        self._stop = stop
        self._opened = opened

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows (batch,) are done."""
        generated = input_ids[:, self.start :].tolist()
        for row, tokens in enumerate(generated):
            running = self._stop and self.lengths[row] is None
            if running and ended(self._opened[row] + self._decode(tokens), self._stop):
                self.lengths[row] = len(tokens)
        done = [length is not None for length in self.lengths]
        return torch.tensor(done, device=input_ids.device)


def _load(settings: LocalSettings) -> tuple[PreTrainedTokenizerBase, Any]:
    key, value = "generation.model", settings.model
    try:
        device = torch.empty(0, device=settings.device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"generation.device={settings.device}: does not exist ({one_line(error)}); expected e.g. cpu"
        ) from None
    config = read_settings(key, value)
    seq2seq = config.get("is_encoder_decoder", config.get("model_type") in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model: Any = load_from(key, value, auto, dtype=getattr(torch, settings.dtype))
    tokenizer = load_local_first(
        key, value, lambda source, local: read_pretrained(AutoTokenizer, source, local_files_only=local)
    )
    model.eval().to(device)
    model.generation_config = _plain_generation(key, value, model, tokenizer)
    return tokenizer, model


def _plain_generation(key: str, value: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The model's special tokens, without its author's sampling options."""
    own = model.generation_config
    eos = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    if eos is None:
        raise ModelError(f"{key}={value}: neither model nor tokenizer has an end token")
    eos = [eos] if isinstance(eos, int) else list(eos)
    start = own.decoder_start_token_id
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    pad = own.pad_token_id if own.pad_token_id is not None else tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        bos_token_id=own.bos_token_id,
        eos_token_id=eos,
        pad_token_id=eos[0] if pad is None else pad,
        decoder_start_token_id=start,
        forced_bos_token_id=own.forced_bos_token_id,
    )
