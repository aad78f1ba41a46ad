"""The protocol of training methods and of evaluators, which `runs` uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from potstill.config import EvaluateConfig, TrainConfig

if TYPE_CHECKING:
    from lightning import Trainer

    from potstill.evaluation.rows import Row
    from potstill.rationale_generation.answers import Tally
    from potstill.reporting.report import Section, Table


@dataclass(frozen=True)
class ServedOutputs:
    """What a server has computed for a run to come.

    Attributes:
        unit: what is counted, `tokens` or `texts`.
        wanted: number of all.
        stored: number of those whose outputs are stored.
        tally: counts of the requests.
        reading: the keys of a run that reads them.
    """

    unit: str
    wanted: int
    stored: int
    tally: Tally
    reading: str


class Training(Protocol):
    """The parts of a training run.

    Attributes:
        module: the LightningModule, with the student and the teacher.
        data: the LightningDataModule.
        figures: counts of the data, recorded in summary.json as `data/<name>`.
        teacher_parameters: number of parameters of all teachers; None without a teacher.
    """

    module: Any
    data: Any
    teacher_parameters: int | None

    @property
    def figures(self) -> Mapping[str, float]:
        """Counts of the data."""


class Method(ABC):
    """One way to train a student: its checks, its parts, the metric that decides, what is saved and reported.

    `runs` only talks to this class. Importing a method must not import torch, because the checks run before that.
    """

    #: What `train/<unit>_per_second` counts.
    unit = "tokens"

    def applies(self, config: TrainConfig) -> bool:
        """Whether the options of a training run choose this method."""
        return False

    @abstractmethod
    def problems(self, config: TrainConfig, *, models: bool = True) -> list[str]:
        """User errors of a training configuration that need no torch.

        Args:
            config: of the run.
            models: whether the models exist already; those of later stages of a pipeline do not.
        """

    @abstractmethod
    def build(self, config: TrainConfig) -> Training:
        """The parts of a training run; whatever can fail early comes first.

        Raises:
            PotstillError: data or models that cannot be used, or that do not fit each other.
        """

    @abstractmethod
    def monitored(self, config: TrainConfig) -> tuple[str, str | None]:
        """The metric that decides, as it is logged, and `min` or `max` where the best student is kept.

        With None the student of the last step is kept.
        """

    @abstractmethod
    def data_name(self, config: TrainConfig) -> str:
        """The name of the training data in reports and model cards."""

    def served_problems(self, config: TrainConfig) -> list[str]:
        """User errors of `stage=teacher_outputs`, in which a server computes what a run reads of its teacher."""
        return [
            f"stage=teacher_outputs: objective={config.objective.name} reads no outputs of a server; use kd or embed"
        ]

    def store_served(self, config: TrainConfig) -> ServedOutputs:
        """Compute these outputs.

        Raises:
            PotstillError: data, server or stores that cannot be used.
        """
        raise NotImplementedError

    def sample(self, config: TrainConfig, examples: int) -> None:  # noqa: B027
        """Limit the data of a `doctor=true` run to a sample, where the whole would take long; changes `config`."""

    def test(self, trainer: Trainer, training: Training, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Further entries of summary.json, computed after the last validation; called on all ranks."""
        return {}

    def tables(self, training: Training, metrics: Mapping[str, float]) -> dict[str, Table]:
        """Tables of a validated run, by the name under which they are logged; called on all ranks."""
        return {}

    def check_savable(self, training: Training) -> None:
        """Raise a PotstillError before training if the student could not be saved after it."""
        from potstill.models.save import check_savable

        check_savable(training.module.student)

    def save(self, config: TrainConfig, training: Any, summary: dict[str, Any], folder: Path) -> None:
        """Write the student with its tokenizer and model card."""
        from potstill.methods.common.cards import student_card
        from potstill.models.save import save_student

        student = training.module.student
        card = student_card(config, self.data_name(config), summary, student)
        save_student(student, training.vocabulary.path, folder, card)

    def curves(self, metrics: Mapping[str, Any]) -> list[Section]:
        """Plots of the validation metrics, from the series of metrics.csv."""
        from potstill.reporting.report import Curves

        shown = {name: series for name, series in metrics.items() if name.startswith("val/") and "loss" not in name}
        return [Curves("Validation", shown, "step", "metric")] if shown else []


class Evaluator(ABC):
    """One way to evaluate models on a benchmark and to compare them."""

    def applies(self, config: EvaluateConfig) -> bool:
        """Whether the options of an evaluation choose this evaluator."""
        return False

    @abstractmethod
    def problems(self, config: EvaluateConfig, models: Sequence[str]) -> list[str]:
        """User errors of an evaluation that need no torch.

        Args:
            config: of the evaluation.
            models: folders or hub ids, the reference first.
        """

    @abstractmethod
    def evaluate(self, config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """Evaluate the models and their exported forms; writes what they predict.

        Args:
            config: of the evaluation.
            models: folder or hub id by the name in tables, the reference first.
            folder: of the evaluation.

        Raises:
            PotstillError: a model or data that cannot be used.
        """

    @abstractmethod
    def sections(self, config: EvaluateConfig, rows: list[Row]) -> list[Section]:
        """Tables and plots of the rows; tables are printed too."""

    def deciding(self, config: EvaluateConfig) -> str:
        """The metric that decides, as a row has it."""
        return f"test/{config.benchmark.monitor}"
