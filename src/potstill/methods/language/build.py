"""The parts of training runs and evaluations of language models, from configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from omegaconf import DictConfig

from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.datamodule import CorpusDataModule
from potstill.data.corpus.splits import sources_of
from potstill.data.corpus.store import Corpus
from potstill.errors import ConfigError
from potstill.methods.common.data import (
    batch_settings,
    build_corpora,
    build_corpus,
    build_retokeniser,
    build_vocabulary,
    check_mask,
    own_vocabulary,
    sequence_length,
)
from potstill.methods.common.models import (
    build_interchange,
    build_models,
    build_objective,
    build_optimizer,
    build_plan,
    build_schedule,
    check_vocabulary,
    compile_blocks,
    suit_hardware,
)
from potstill.methods.common.teacher_cache import store_language_teacher
from potstill.models.backbone import backbone_of
from potstill.models.load import load_language_model
from potstill.models.students import check_tokens
from potstill.objectives.language import HARD, LanguageObjective
from potstill.training.language import LanguageDistillation


@dataclass
class LanguageTraining:
    """The parts of a training run."""

    module: LanguageDistillation
    data: CorpusDataModule
    vocabulary: Vocabulary
    corpus: Corpus
    teacher_parameters: int | None

    @property
    def figures(self) -> dict[str, int]:
        """Counts of the corpus."""
        return self.corpus.describe()


def build_language_training(config: DictConfig) -> LanguageTraining:
    """Tokenizer, models, corpus and module of a training run; what can fail early comes first.

    Raises:
        PotstillError: text, tokenizer or models that cannot be used, or that do not fit each other.
    """
    parts = sources_of(config.data)
    if not parts.train:
        raise ConfigError("data.train_files=null: training needs text, data.train_files=[a.txt,b.txt.gz]")
    models = {"teacher.model": config.teacher.model, "student.model": config.student.model}
    if config.teacher.tokenizer is not None:  # the corpus is in the student's tokens
        del models["teacher.model"]
    vocabulary = build_vocabulary(config.data, parts, models, saved=True)
    own = own_vocabulary(config.teacher.tokenizer, "teacher.model", config.teacher.model, vocabulary)
    teacher, student = build_models(config, vocabulary, own)
    objective = build_objective(
        config.objective,
        backbone_of(student),
        backbone_of(teacher) if teacher is not None else None,
        seed=config.seed,
    )
    check_mask(objective.kind, vocabulary)
    # An error in their arguments must not wait for the corpus.
    build_schedule(config.schedule, build_optimizer(config.optimizer, student), steps=1)
    if not objective.needs_teacher:
        teacher = None  # it only gave its layers
    readers = [m for m in (teacher if own is None else None, student) if m is not None]
    length = sequence_length(config.data, vocabulary, readers)
    train, evaluation = build_corpora(config.data, parts, vocabulary, length)
    assert train is not None
    settings = batch_settings(config, build_plan(config.objective.interchange))
    retokenise = None
    if config.teacher.tokenizer is not None:
        assert teacher is not None
        retokenise = build_retokeniser(train, vocabulary, own, backbone_of(teacher).max_length)
    data = CorpusDataModule(train, evaluation, vocabulary, objective.kind, settings, retokenise)
    parameters = teacher.num_parameters() if teacher is not None else None
    stored = stored_eval = None
    if teacher is not None and config.teacher.cache.enabled:
        stored, stored_eval = store_language_teacher(config, teacher, student, data, vocabulary)
        teacher = None
    suit_hardware(config, [teacher], student)
    module = LanguageDistillation(
        student,
        teacher,
        objective,
        optimizer=lambda model: build_optimizer(config.optimizer, model),
        schedule=lambda optimizer, steps: build_schedule(config.schedule, optimizer, steps),
        clip=config.trainer.gradient_clip_val,
        shares_every=config.objective.gradient_shares_every,
        stored=stored,
        stored_eval=stored_eval,
    )
    return LanguageTraining(module, data, vocabulary, train, parameters)


@dataclass
class LanguageEvaluation:
    """A single model, what it is judged on, the longest sequence in tokens, and the tokenizer's folder."""

    module: LanguageDistillation
    data: CorpusDataModule
    length: int
    tokenizer: str


def build_language_evaluation(
    config: DictConfig, model: str, reference: str | None = None
) -> LanguageEvaluation:
    """A language model and its evaluation data, binarized with its own tokenizer.

    Args:
        config: of `evaluate.py`.
        model: judged.
        reference: the teacher that it is compared with, where the benchmark swaps states.

    Raises:
        PotstillError: a model or text that cannot be used, or two models that do not fit each other.
    """
    parts = sources_of(config.data, eval_file=config.benchmark.eval_file)
    vocabulary = build_vocabulary(config.data, parts, {"model": model})
    student = load_language_model("model", model, need_head=True)
    teacher = load_language_model("model", reference, need_head=True) if reference else None
    models = [m for m in (teacher, student) if m is not None]
    for part in models:
        check_vocabulary(vocabulary, "model", part)
    if teacher is not None:
        check_tokens(teacher, student)
    kind = backbone_of(student).kind
    check_mask(kind, vocabulary)
    length = sequence_length(config.data, vocabulary, models)
    corpus = build_corpus(config.data, parts.eval or parts.train, vocabulary, length)
    exchange, plan = config.benchmark.interchange, None
    objective = LanguageObjective(kind, {HARD[kind]: 1.0})
    if teacher is not None:
        plan = build_plan(exchange)
        objective = replace(
            objective,
            positions=config.benchmark.positions,
            interchange=build_interchange(
                exchange, backbone_of(teacher), backbone_of(student), "benchmark.interchange"
            ),
        )
    data = CorpusDataModule(None, corpus, vocabulary, kind, batch_settings(config, plan))
    if config.compile:
        for part in models:
            compile_blocks(part)
    return LanguageEvaluation(
        LanguageDistillation(student, teacher, objective), data, length, vocabulary.path
    )
