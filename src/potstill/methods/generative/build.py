"""The parts of training runs and evaluations of decoders that write, from configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from potstill.config import TrainConfig
from potstill.config.data import ConversationsDataConfig, data_of
from potstill.config.objectives import SamplingConfig, generative_of
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.conversations.encoding import ConversationCorpus
from potstill.data.conversations.reading import Conversation
from potstill.evaluation.generation import Decode, GenerationEvaluator
from potstill.methods.common.data import conversation_parts
from potstill.methods.generative.sequences import completed_by
from potstill.methods.language.build import LanguageTraining, build_language_training
from potstill.models.backbone import backbone_of
from potstill.models.generation import Sampling, Tokens
from potstill.models.load import load_tokenizer
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
    training.module = GenerativeDistillation(own.student, teacher, own.objective, generation, own.optimization)
    return training


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
