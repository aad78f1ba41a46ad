"""The parts of training runs and evaluations of decoders that write, from configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import generation_benchmark_of
from potstill.config.data import ConversationsDataConfig, data_of
from potstill.config.objectives.generative import SamplingConfig, generative_of
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.conversations.encoding import ConversationCorpus
from potstill.data.conversations.reading import Conversation
from potstill.data.corpus.datamodule import CorpusDataModule
from potstill.evaluation.generation import Decode, GenerationEvaluator
from potstill.methods.common.data import conversation_parts, corpus_settings, sequence_length
from potstill.methods.common.models import check_vocabulary
from potstill.methods.generative.sequences import completed_by
from potstill.methods.language.build import (
    LanguageTraining,
    build_language_training,
    corpora_of,
    texts_of,
    vocabulary_for,
)
from potstill.models.backbone import backbone_of
from potstill.models.generation import Sampling, Tokens
from potstill.models.load import load_language_model, load_tokenizer
from potstill.objectives.language import LanguageObjective
from potstill.objectives.terms import HARD
from potstill.training.generative import Generation, GenerativeDistillation

log = logging.getLogger(__name__)


def build_generative_training(config: TrainConfig) -> LanguageTraining:
    """Tokenizer, models, conversations and module of a training run; what can fail early comes first.

    Raises:
        PotstillError: rows, tokenizer or models that cannot be used, or that do not fit each other.
    """
    objective, text = generative_of(config), data_of(config, ConversationsDataConfig)
    read, sampling = conversation_parts(text), sampling_of(objective.sampling)

    def completed(
        corpus: ConversationCorpus, teacher: PreTrainedModel, student: PreTrainedModel, vocabulary: Vocabulary
    ) -> ConversationCorpus:
        tokens, longest = tokens_of(vocabulary, teacher, corpus), _longest(teacher, student)
        return completed_by(config, teacher, corpus, sampling, tokens, vocabulary.digest, longest)

    training = build_language_training(config, read, completed if objective.sequence_kd else None)
    own, data = training.module, training.data
    assert isinstance(data.train, ConversationCorpus)
    evaluation = data.evaluation
    assert evaluation is None or isinstance(evaluation, ConversationCorpus)
    teacher: Any = own.teacher
    evaluator = None if evaluation is None else evaluator_of_rows(read[1], evaluation)
    generation = Generation(
        sampling,
        tokens_of(training.vocabulary, own.student, data.train),
        decoder_of(training.vocabulary),
        objective.on_policy,
        _longest(teacher, own.student),
        None if evaluation is None else evaluation.prompt,
        evaluator,
        evaluator is not None and evaluator.has_answers,
    )
    if objective.on_policy:
        _report_short(data.train, sampling, _longest(teacher, own.student))
    training.module = GenerativeDistillation(own.student, teacher, own.objective, generation, own.optimization)
    return training


def _report_short(corpus: ConversationCorpus, sampling: Sampling, longest: int) -> None:
    """Warn of sequences whose completions are not sampled, or are shorter than they may be."""
    kept = int((corpus.prompts < 0).sum() + (corpus.prompts >= longest).sum())
    short = int((corpus.prompts > longest - sampling.max_new_tokens).sum())
    if kept or short:
        log.warning(
            "of %d sequences, %d have a last turn that is cut off and keep it, and %d have a prompt that leaves fewer "
            "than objective.sampling.max_new_tokens=%d of the models' %d positions",
            len(corpus), kept, short, sampling.max_new_tokens, longest,
        )  # fmt: skip


@dataclass
class GenerationParts:
    """A single model, what it completes, and the conversations of these."""

    module: GenerativeDistillation
    data: CorpusDataModule
    evaluator: GenerationEvaluator


def build_generation_evaluation(config: EvaluateConfig, model: str) -> GenerationParts:
    """A causal language model and the conversations that it completes, in its own tokens.

    Raises:
        PotstillError: a model or rows that cannot be used.
    """
    benchmark, text = generation_benchmark_of(config.benchmark), data_of(config, ConversationsDataConfig)
    read = texts_of(text, benchmark.eval_file, evaluating=True)
    vocabulary = vocabulary_for(text, read, {"model": model})
    student = load_language_model("model", model, need_head=True)
    check_vocabulary(vocabulary, "model", student)
    _, corpus = corpora_of(text, read, vocabulary, sequence_length(text, vocabulary, [student]))
    assert isinstance(corpus, ConversationCorpus)
    evaluator = evaluator_of_rows(read[1], corpus)  # type: ignore[arg-type]
    generation = Generation(
        Sampling(0.0, max_new_tokens=benchmark.max_new_tokens),
        tokens_of(vocabulary, student, corpus),
        decoder_of(vocabulary),
        prompts=corpus.prompt,
        evaluator=evaluator,
        evaluates=True,
    )
    objective = LanguageObjective("causal", {HARD["causal"]: 1.0})
    data = CorpusDataModule(None, corpus, vocabulary, "causal", corpus_settings(config))
    return GenerationParts(GenerativeDistillation(student, None, objective, generation), data, evaluator)


def _longest(*models: PreTrainedModel | None) -> int:
    """Most tokens that all models read."""
    return min(backbone_of(model).max_length for model in models if model is not None)


def sampling_of(settings: SamplingConfig) -> Sampling:
    """How completions are sampled."""
    return Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, settings.batch_size)


def tokens_of(vocabulary: Vocabulary, model: PreTrainedModel, corpus: ConversationCorpus) -> Tokens:
    """The tokens of completions; they end with the tokenizer's or model's end token, or as a template closes a turn."""
    ends = {vocabulary.end_id, *(set(corpus.ends.tolist()) & {*vocabulary.special_ids})}
    settings = getattr(model, "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    ends |= {*found} if isinstance(found, list) else {found}
    return Tokens(vocabulary.size, frozenset(token for token in ends if token is not None), vocabulary.pad_id)


def decoder_of(vocabulary: Vocabulary) -> Decode:
    """Token ids to a text without special tokens."""
    tokenizer = load_tokenizer(vocabulary.path)
    return lambda ids: str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))


def evaluator_of_rows(rows: Sequence[Conversation], corpus: ConversationCorpus) -> GenerationEvaluator:
    """The evaluator of a corpus that was made of some rows."""
    pairs = zip(corpus.rows.tolist(), corpus.prompts.tolist(), strict=True)
    return GenerationEvaluator([rows[row] if prompt > 0 else None for row, prompt in pairs])
