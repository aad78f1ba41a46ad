"""Problems of a teacher that reads its own tokens, and of terms that compare models token by token."""

from __future__ import annotations

from potstill.config import TrainConfig
from potstill.config.benchmarks import RowsConfig
from potstill.config.data import ConversationsDataConfig, CorpusDataConfig, augment_of, data_of
from potstill.config.defaults import trains_task
from potstill.config.objectives.base import exchange_of, matches_of

_BY_TOKEN = ("cos", "causal_ce", "causal_cos")  # terms that compare states or predictions of the same tokens


def own_input_problems(config: TrainConfig) -> list[str]:
    """Problems of `teacher.tokenizer`."""
    setting, objective = config.teacher.tokenizer, config.losses
    uld, task = objective.terms.given("uld"), trains_task(config)
    if uld and (setting is None or task):
        right = "objective.terms.ce" if task else "teacher.tokenizer=own"
        return [
            f"objective.terms.uld.weight={uld['uld'].weight}: is of language models of different tokenizers; use "
            f"{right}"
        ]
    if setting is None:
        return []
    given = f"teacher.tokenizer={setting}"
    if not objective.taught:
        return [f"{given}: objective={objective.name} reads no teacher; null"]
    if not task:
        return _language_problems(config, given, bool(uld))
    problems = [*_compared_by_token(config, given, _BY_TOKEN)]
    if config.benchmark is not None and not isinstance(config.benchmark, RowsConfig):
        problems.append(
            f"{given}: benchmark={config.benchmark.name} is predicted token by token, so both must have the same; null"
        )
    if share := augment_of(config.data).share:
        problems.append(f"data.augment.share={share} with {given}: the teacher would read the rows as they were; use 0")
    return problems + _layers_problems(config, given)


def _language_problems(config: TrainConfig, given: str, uld: bool) -> list[str]:
    """Problems of language models whose teacher has a tokenizer of its own."""
    problems = _compared_by_token(config, given, ("ce", "mse", *_BY_TOKEN))
    if isinstance(config.data, ConversationsDataConfig):
        problems.append(f"data={config.data.name} with {given}: completions are of the student's tokens; null")
    elif data_of(config, CorpusDataConfig).packed:
        problems.append(f"data.packed=true with {given}: texts are retokenised one by one; use false")
    if not uld:
        problems.append(f"{given}: only objective.terms.uld compares other tokens; give it a weight above 0")
    if not config.student.model and not config.student.config:
        problems.append(
            f"student.model=null with {given}: a student of the teacher's layers reads the teacher's tokens; give "
            "student.model=<folder>, or a student from scratch"
        )
    return problems


def _layers_problems(config: TrainConfig, given: str) -> list[str]:
    """Problems of a task student that is built from layers of such a teacher."""
    problems = []
    if config.data.tokenizer is not None and not config.student.model and not config.student.config:
        problems.append(
            f"data.tokenizer={config.data.tokenizer} with {given}: a student of the teacher's layers has its "
            "embeddings, of its tokens; give student.model=<folder>, or a student from scratch"
        )
    return problems


def _compared_by_token(config: TrainConfig, given: str, terms: tuple[str, ...]) -> list[str]:
    """Terms and keys that need the same tokens at the same positions."""
    exchange, matches = exchange_of(config.objective), matches_of(config.objective)
    problems = [
        f"objective.terms.{name}.weight={term.weight} with {given}: compares models token by token, and theirs differ; "
        "use 0"
        for name, term in config.losses.terms.given(*terms).items()
    ]
    if matches:
        problems.append(
            f"objective.matches={matches} with {given}: compares models token by token, and the lengths of "
            "theirs differ; use null"
        )
    if exchange.mapping is not None:
        problems.append(
            f"objective.interchange.mapping={exchange.mapping} with {given}: swaps states of the same "
            "tokens, and theirs differ; use null"
        )
    return problems
