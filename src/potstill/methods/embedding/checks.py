"""Problems of sentence encoders: teacher, student, texts and scored pairs. No torch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import BenchmarkConfig, RetrievalConfig, SimilarityConfig
from potstill.config.data import CorpusDataConfig, PairsDataConfig, SequenceDataConfig, data_of
from potstill.config.models import FILES
from potstill.config.objectives.base import matches_of
from potstill.config.objectives.embedding import embedding_of
from potstill.data.corpus.text_rows import Columns
from potstill.data.tasks.retrieval import collection_files
from potstill.data.tasks.splits import evaluated_parts
from potstill.errors import PotstillError
from potstill.methods.common.checks import evaluation_problems, own_module_problems
from potstill.models.sentence_folders import sentence_settings
from potstill.models.specs import ModelSpec, default_layers
from potstill.runtime.small_files import not_a_file
from potstill.validation.cache import PRECISIONS
from potstill.validation.data import kind_problems, pair_problems, text_problems
from potstill.validation.folders import writable
from potstill.validation.generation import served_problems
from potstill.validation.launch import SHARDED
from potstill.validation.models import (
    attentionless_problems,
    layer_problems,
    learner_of,
    length_problems,
    spec_of,
    student_problems,
)
from potstill.validation.objectives import objective_problems
from potstill.validation.teachers import match_problems

SIMILARITY_METRICS = ("spearman", "pearson", "average_precision")
RETRIEVAL_METRIC = re.compile(r"(ndcg|recall|precision|mrr|map)@[1-9][0-9]{0,3}")


def embedding_problems(config: TrainConfig, *, models: bool = True) -> list[str]:
    """Problems of a training run with `objective=embed`.

    Args:
        config: of the run.
        models: whether the models exist already.
    """
    name = config.objective.name
    if problems := kind_problems(config.data, (CorpusDataConfig, PairsDataConfig), f"objective={name}"):
        return problems
    problems = [*objective_problems(config.losses), *own_module_problems(config), *_data_problems(config)]
    if config.trainer.strategy in SHARDED:
        problems.append(f"trainer.strategy={config.trainer.strategy}: objective={name} runs with ddp or one device")
    if config.benchmark is not None:
        problems += _benchmark_problems(config.benchmark, name)
    problems += _vector_problems(config, exist=models)
    return problems + (_model_problems(config) if models else [])


def served_vector_problems(config: TrainConfig) -> list[str]:
    """Problems of a run that stores the vectors of a server."""
    return served_problems(config, {}, "a server of embeddings") + _precision_problems(config)


def has_vectors(config: TrainConfig) -> bool:
    """Whether stored vectors take the place of `teacher.model`, where that is null."""
    return config.teacher.cache.file is not None or config.teacher.cache.replaces_teacher


def _vector_problems(config: TrainConfig, *, exist: bool) -> list[str]:
    """Problems of vectors that are stored, or of the user's own; `exist`: stores exist already."""
    cache, objective, problems = config.teacher.cache, embedding_of(config), list[str]()
    if cache.file is None and not cache.enabled:
        return []
    given = "teacher/cache=on" if cache.file is None else f"teacher.cache.file={cache.file}"
    if matches_of(objective) is not None:
        problems.append(f"objective.matches: {given} keeps the teacher's vectors, no states within it; use null")
    if not follows_teacher(config):
        problems.append(f"objective.terms: none reads the vectors of {given}; give one a weight, or leave it out")
    if cache.file is None:
        problems += _precision_problems(config)
        problems += [] if cache.folder is None else writable("teacher.cache.folder", Path(cache.folder).expanduser())
        store = None if cache.folder is None else Path(cache.folder).expanduser() / "train"
        if config.teacher.model is None and exist and store is not None and not store.is_dir():
            problems.append(
                f"teacher.cache.folder={cache.folder}: {store} {not_a_file(store)}, so there is no store in the place "
                "of teacher.model=null; compute it, or give teacher.model"
            )
        return problems
    if cache.enabled:
        problems.append(f"{given} with teacher/cache=on: give one of them")
    if isinstance(config.data, PairsDataConfig):
        problems.append(f"{given}: has one vector per text, and data={config.data.name} rows of several; teacher.model")
    if config.teacher.model and (config.student.model or config.student.config):
        problems.append(
            f"teacher.model={config.teacher.model}: {given} takes its place, and this student is not made of its "
            "layers; leave it out"
        )
    for name in cache.files:
        path = Path(name).expanduser()
        if path.suffix not in FILES:
            problems.append(f"teacher.cache.file={name}: one of {', '.join(FILES)}")
        elif not path.is_file():
            problems.append(f"teacher.cache.file={name}: {not_a_file(path)}")
    return problems


def _precision_problems(config: TrainConfig) -> list[str]:
    precision, known = config.teacher.cache.precision, PRECISIONS["hidden"]
    return [] if precision in known else [f"teacher.cache.precision={precision}: one of {', '.join(known)}"]


def follows_teacher(config: TrainConfig) -> bool:
    """Whether a term reads the teacher's vectors or states."""
    objective = embedding_of(config)
    read = objective.terms.given("mse", "cos", "similarity") or matches_of(objective)
    return bool(read) or (bool(objective.terms.given("margin_mse")) and not is_scored(config))


def is_scored(config: TrainConfig) -> bool:
    """Whether `margin_mse` reads scores of the rows."""
    return isinstance(config.data, PairsDataConfig) and bool(config.data.columns.scores)


def columns_of(data: PairsDataConfig) -> Columns:
    """The columns that the keys of `data.columns` name."""
    own = data.columns
    return Columns(own.query, own.positive, own.negatives, own.scores or ())


def _data_problems(config: TrainConfig) -> list[str]:
    """Problems of texts or rows, and of terms that need rows."""
    if isinstance(config.data, PairsDataConfig):
        return pair_problems(config.data, columns_of(config.data))
    data = data_of(config, CorpusDataConfig)
    problems = text_problems(data)
    if data.packed:
        problems.append("data.packed=true: a text has a vector of its own; use false")
    return problems + [
        f"objective.terms.{name}.weight={term.weight}: needs rows of a query and a positive, data=text_pairs, and "
        f"data={data.name} has single texts; use 0"
        for name, term in embedding_of(config).terms.given("contrastive", "margin_mse").items()
    ]


def evaluated_encoder_problems(config: EvaluateConfig, models: list[str]) -> list[str]:
    """Problems of an evaluation of sentence encoders."""
    problems = _benchmark_problems(config.benchmark, "", config.data)
    for model in models:
        problems += _folder_problems("model", model, None)
    return evaluation_problems(config, models, problems)


def _benchmark_problems(benchmark: BenchmarkConfig, objective: str, data: object = None) -> list[str]:
    if isinstance(benchmark, SimilarityConfig):
        known, wrong = ", ".join(SIMILARITY_METRICS), set(benchmark.metrics) - set(SIMILARITY_METRICS)
    elif isinstance(benchmark, RetrievalConfig):
        known = "ndcg@k, recall@k, precision@k, mrr@k, map@k"
        wrong = {name for name in benchmark.metrics if not RETRIEVAL_METRIC.fullmatch(name)}
    else:
        return [
            f"benchmark={benchmark.name}: objective={objective} trains on texts, and watches sentence encoders; "
            "benchmark=sts, paraphrases, retrieval, or null"
        ]
    if wrong or not benchmark.metrics:
        return [f"benchmark.metrics={list(benchmark.metrics)}: some of {known}"]
    if benchmark.monitor not in benchmark.metrics:
        return [f"benchmark.monitor={benchmark.monitor}: one of benchmark.metrics, {', '.join(benchmark.metrics)}"]
    limits = (data.max_examples, data.skip) if isinstance(data, SequenceDataConfig) else (None, None)
    try:
        if isinstance(benchmark, RetrievalConfig):
            collection_files(benchmark.folder, benchmark.part)
        else:
            for part in evaluated_parts(benchmark, *limits).values():
                part.check()
    except PotstillError as error:
        return [str(error)]
    return []


def _folder_problems(key: str, value: str, pooling: str | None) -> list[str]:
    """Problems of a local folder that is to be a sentence encoder; one of the hub is read later."""
    folder = Path(value).expanduser()
    if not (folder / "config.json").is_file():
        return []
    try:
        sentence_settings(f"{key}={value}", folder, pooling)
    except PotstillError as error:
        return [str(error)]
    return []


def _model_problems(config: TrainConfig) -> list[str]:
    objective, student = embedding_of(config), config.student
    problems: list[str] = []
    if config.teacher.models is not None:
        problems.append(f"teacher.models={list(config.teacher.models)}: objective=embed has one teacher")
    layered = not student.model and not student.config
    if config.teacher.model is None:
        if (follows_teacher(config) and not has_vectors(config)) or layered:
            return [*problems, "teacher.model=null: objective=embed needs a sentence encoder, a folder or hub id"]
        return problems + _alone_problems(config)
    teacher = spec_of("teacher.model", config.teacher.model, problems)
    learner = learner_of(student, problems)
    if teacher is None or problems:
        return problems
    problems += _folder_problems("teacher.model", config.teacher.model, objective.pooling)
    problems += student_problems(config)
    if layered:
        problems += layer_problems(student, teacher)
    if layered and config.data.tokenizer is not None:
        problems.append(
            f"data.tokenizer={config.data.tokenizer}: a student of the teacher's layers has its embeddings, of its "
            "tokens; give student.model=<folder>, or a student from scratch"
        )
    if problems:
        return problems
    compared = learner or replace(teacher, depth=len(student.layers or default_layers(teacher.depth)))
    problems += length_problems(config.data, {"teacher.model": teacher, "the student": learner})
    problems += _width_problems(config, teacher, compared)
    problems += attentionless_problems(config, compared)
    if matches_of(objective) is not None and not compared.depth:
        problems.append(f"objective.matches: a {compared.model_type} student has no layers; use null")
    elif matches_of(objective) is not None:
        problems += match_problems(config, [teacher], compared)
        if own := _other_tokens(config):
            problems.append(f"objective.matches: compares states of the same tokens, and {own}; use null")
    return problems


def _alone_problems(config: TrainConfig) -> list[str]:
    """Problems of a student without a teacher."""
    student, objective, problems = config.student, embedding_of(config), list[str]()
    learner = learner_of(student, problems)
    if learner is None or problems:
        return problems
    problems += student_problems(config)
    if student.model:
        problems += _folder_problems("student.model", student.model, objective.pooling)
    elif objective.pooling is None and learner.depth:
        problems.append("objective.pooling=null: a student from scratch without a teacher needs one, mean")
    if not student.model and config.data.tokenizer is None:
        problems.append("data.tokenizer=null: a student from scratch without a teacher needs one, a folder or hub id")
    if config.teacher.tokenizer is not None:
        problems.append(f"teacher.tokenizer={config.teacher.tokenizer}: there is no teacher; null")
    return problems + length_problems(config.data, {"the student": learner}) + attentionless_problems(config, learner)


def _width_problems(config: TrainConfig, teacher: ModelSpec, student: ModelSpec) -> list[str]:
    objective = embedding_of(config)
    if objective.projection == "student" and not student.depth:
        return [f"objective.projection=student: a {student.model_type} student is its vectors alone; use teacher"]
    if objective.projection == "teacher" and student.width > teacher.width:
        return [
            f"objective.projection=teacher: the student's vectors are {student.width} wide, and the teacher's "
            f"{teacher.width}; use student"
        ]
    return []


def _other_tokens(config: TrainConfig) -> str:
    """The key that gives the student tokens of its own."""
    if config.teacher.tokenizer is not None:
        return f"teacher.tokenizer={config.teacher.tokenizer} gives the teacher others"
    return "" if config.data.tokenizer is None else f"data.tokenizer={config.data.tokenizer} gives the student others"
