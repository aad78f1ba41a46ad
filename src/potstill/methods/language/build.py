"""The parts of training runs and evaluations of language models, from configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import language_benchmark_of
from potstill.config.data import ConversationsDataConfig, CorpusDataConfig, TextDataConfig, data_of
from potstill.config.objectives.base import exchange_of
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.conversations.encoding import ConversationCorpus
from potstill.data.conversations.reading import Conversation
from potstill.data.corpus.datamodule import CorpusDataModule
from potstill.data.corpus.pickled import read_counts
from potstill.data.corpus.splits import Parts, sources_of
from potstill.data.corpus.store import Corpus
from potstill.errors import ConfigError, TokenizerError
from potstill.methods.common.candidates import control_of
from potstill.methods.common.data import (
    build_conversations,
    build_corpora,
    build_corpus,
    build_retokeniser,
    build_vocabulary,
    check_mask,
    conversation_parts,
    conversations_of,
    corpus_settings,
    given_vocabulary,
    own_vocabulary,
    sequence_length,
)
from potstill.methods.common.models import (
    build_interchange,
    build_models,
    build_objective,
    build_optimization,
    build_plan,
    check_vocabulary,
    compile_blocks,
    suit_hardware,
)
from potstill.methods.common.teacher_cache import open_language_outputs, store_language_teacher
from potstill.models.backbone import backbone_of
from potstill.models.load import load_language_model
from potstill.models.students import check_tokens
from potstill.objectives.language import LanguageObjective
from potstill.objectives.terms import HARD
from potstill.training.language import LanguageDistillation

Read = Parts | tuple[list[Conversation], list[Conversation]]  # training and evaluation, not tokenised yet
# Puts other completions into a training corpus: (corpus, teacher, student, vocabulary) -> corpus.
Completed = Callable[[ConversationCorpus, PreTrainedModel, PreTrainedModel, Vocabulary], ConversationCorpus]


@dataclass
class LanguageTraining:
    """The parts of a training run."""

    module: LanguageDistillation
    data: CorpusDataModule
    vocabulary: Vocabulary
    corpus: Corpus | ConversationCorpus
    teacher_parameters: int | None

    @property
    def figures(self) -> dict[str, int]:
        """Counts of the corpus."""
        return self.corpus.describe()


def build_language_training(
    config: TrainConfig, read: Read | None = None, completed: Completed | None = None
) -> LanguageTraining:
    """Tokenizer, models, corpus and module of a training run; what can fail early comes first.

    Args:
        config: of the run.
        read: its texts; None: they are read here.
        completed: puts other completions into the training corpus; None: the given ones are learned.

    Raises:
        PotstillError: text, tokenizer or models that cannot be used, or that do not fit each other.
    """
    text = data_of(config, TextDataConfig)
    read = texts_of(text) if read is None else read
    models = {"teacher.model": config.teacher.model, "student.model": config.student.model}
    if config.teacher.tokenizer is not None:  # the corpus is in the student's tokens
        del models["teacher.model"]
    vocabulary = vocabulary_for(text, read, models, saved=True)
    own = own_vocabulary(config.teacher.tokenizer, "teacher.model", str(config.teacher.model), vocabulary)
    teacher, student = build_models(config, vocabulary, own)
    objective = build_objective(
        config.losses, backbone_of(student), backbone_of(teacher) if teacher is not None else None, seed=config.seed
    )
    check_mask(objective.kind, vocabulary)
    if isinstance(text, ConversationsDataConfig):
        objective = replace(objective, positions="masked")  # the terms are of the tokens that are learned
    optimization = build_optimization(config, student)
    loaded = teacher
    if not objective.needs_teacher:
        teacher = None  # it only gave its layers
    readers = [m for m in (teacher if own is None else None, student) if m is not None]
    length = sequence_length(text, vocabulary, readers)
    train, evaluation = corpora_of(text, read, vocabulary, length)
    assert train is not None
    if completed is not None:
        assert loaded is not None
        assert isinstance(train, ConversationCorpus)
        train = completed(train, loaded, student, vocabulary)
    settings = corpus_settings(config, build_plan(exchange_of(config.objective)))
    retokenise = None
    if config.teacher.tokenizer is not None:
        assert teacher is not None
        assert isinstance(train, Corpus)
        retokenise = build_retokeniser(train, vocabulary, own, backbone_of(teacher).max_length)
    counts = None
    if isinstance(text, CorpusDataConfig) and text.token_counts is not None:
        counts = read_counts(Path(text.token_counts).expanduser(), vocabulary.size)
    data = CorpusDataModule(train, evaluation, vocabulary, objective.kind, settings, retokenise, counts)
    parameters = teacher.num_parameters() if teacher is not None else None
    stored = stored_eval = None
    if teacher is not None and config.teacher.cache.enabled:
        stored, stored_eval = store_language_teacher(config, teacher, student, data, vocabulary)
        teacher = None
    elif objective.needs_teacher and config.teacher.cache.replaces_teacher:
        stored, stored_eval = open_language_outputs(config, student, data, vocabulary)
    suit_hardware(config, [teacher], student)
    module = LanguageDistillation(student, teacher, objective, optimization, stored=stored, stored_eval=stored_eval)
    return LanguageTraining(module, data, vocabulary, train, parameters)


def texts_of(text: TextDataConfig, eval_file: str | None = None, *, evaluating: bool = False) -> Read:
    """The sources of a corpus, or the rows of conversations.

    Raises:
        PotstillError: there is no training text, or rows that cannot be used.
    """
    if isinstance(text, ConversationsDataConfig):
        if not evaluating:
            return conversation_parts(text)
        if found := conversations_of(text, "eval", [eval_file] if eval_file else None):
            return [], found
        train, evaluation = conversation_parts(text)
        return [], evaluation or train
    parts = sources_of(cast("CorpusDataConfig", text), eval_file=eval_file)
    if not parts.train and not evaluating:
        raise ConfigError("data.train_files=null: training needs text, data.train_files=[a.txt,b.txt.gz]")
    return parts


def vocabulary_for(
    text: TextDataConfig, read: Read, models: dict[str, str | None], *, saved: bool = False
) -> Vocabulary:
    """The tokenizer: that of the data, or of the first model that has one.

    Raises:
        TokenizerError: there is none.
    """
    if isinstance(text, CorpusDataConfig) and isinstance(read, Parts):
        return build_vocabulary(text, read, models, saved=saved)
    found = given_vocabulary(text, models, saved=saved)
    if found is None:
        raise TokenizerError("data.tokenizer=null: conversations need a model's tokenizer; data.tokenizer=<folder>")
    return found


def corpora_of(
    text: TextDataConfig, read: Read, vocabulary: Vocabulary, length: int
) -> Sequence[Corpus | ConversationCorpus | None]:
    """The training and the evaluation corpus."""
    if isinstance(text, ConversationsDataConfig) and not isinstance(read, Parts):
        return build_conversations(text, read, vocabulary, length)
    return build_corpora(cast("CorpusDataConfig", text), cast("Parts", read), vocabulary, length)


@dataclass
class LanguageEvaluation:
    """A single model, what it is evaluated on, the longest sequence in tokens, and the tokenizer's folder."""

    module: LanguageDistillation
    data: CorpusDataModule
    length: int
    tokenizer: str


def build_language_evaluation(
    config: EvaluateConfig, model: str, reference: str | None = None, control: str | None = None
) -> LanguageEvaluation:
    """A language model and its evaluation data, binarized with its own tokenizer.

    Args:
        config: of `evaluate.py`.
        model: evaluated.
        reference: the teacher that it is compared with, where the benchmark swaps states.
        control: what takes the model's place, see `Candidate`.

    Raises:
        PotstillError: a model or text that cannot be used, or two models that do not fit each other.
    """
    benchmark, text = language_benchmark_of(config.benchmark), data_of(config, TextDataConfig)
    read = texts_of(text, benchmark.eval_file, evaluating=True)
    vocabulary = vocabulary_for(text, read, {"model": model})
    student = load_language_model("model", model, need_head=True)
    teacher = load_language_model("model", reference, need_head=True) if reference else None
    if control and teacher is not None:
        student = control_of(config, control, student, teacher)
    models = [m for m in (teacher, student) if m is not None]
    for part in models:
        check_vocabulary(vocabulary, "model", part)
    if teacher is not None:
        check_tokens(teacher, student)
    kind = backbone_of(student).kind
    check_mask(kind, vocabulary)
    length = sequence_length(text, vocabulary, models)
    corpus: Corpus | ConversationCorpus | None
    if isinstance(read, Parts):
        corpus = build_corpus(cast("CorpusDataConfig", text), read.eval or read.train, vocabulary, length)
    else:
        _, corpus = corpora_of(text, read, vocabulary, length)
    exchange, plan = benchmark.interchange, None
    objective = LanguageObjective(kind, {HARD[kind]: 1.0})
    if teacher is not None:
        plan = build_plan(exchange)
        objective = replace(
            objective,
            positions=benchmark.positions,
            interchange=build_interchange(
                exchange, backbone_of(teacher), backbone_of(student), "benchmark.interchange"
            ),
        )
    data = CorpusDataModule(None, corpus, vocabulary, kind, corpus_settings(config, plan))
    if config.compile:
        for part in models:
            compile_blocks(part)
    return LanguageEvaluation(LanguageDistillation(student, teacher, objective), data, length, vocabulary.path)
