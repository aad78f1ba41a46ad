"""Training and evaluation from Python: composed, checked and run like the two commands. No torch until a run starts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from potstill.config import SCHEMAS, EvaluateConfig, TrainConfig, config_folder, register
from potstill.config.overrides import composition_error, quoted
from potstill.config.typed import typed
from potstill.errors import ConfigError, ModelError, StoppedError
from potstill.runs import folder as run_folder
from potstill.runs.checks import validate_evaluate, validate_train
from potstill.runtime import signals
from potstill.runtime.json_text import read_json
from potstill.runtime.process import have_home, importing, prepare
from potstill.runtime.redaction import remember_overrides, remember_references

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_one_at_a_time = threading.RLock()  # Hydra's state and the random generators are those of the process


@dataclass(frozen=True)
class EvaluationResult:
    """Results of an evaluation.

    Attributes:
        folder: Folder with `summary.json` and `report.html`.
        metrics: Content of `summary.json`; with several models the keys begin with `<name>/`.

    Example:
        >>> from pathlib import Path
        >>> from potstill import EvaluationResult
        >>> EvaluationResult(Path("runs/evaluation"), {"perplexity": 12.5}).metrics["perplexity"]
        12.5
    """

    folder: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class TrainingResult:
    """Results of a training run; models are loaded from its folder when they are first used.

    Attributes:
        folder: Folder of the run, with `student/`, `summary.json`, `metrics.csv`, `checkpoints/` and `report.html`.
        metrics: Content of `summary.json`, such as `val/perplexity`.

    Example:
        An earlier run is opened by its folder.

        >>> from potstill import TrainingResult
        >>> TrainingResult.open("runs/no-such-run")
        Traceback (most recent call last):
        potstill.errors.ConfigError: runs/no-such-run: no summary.json; expected the folder of a finished run
    """

    folder: Path
    metrics: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> TrainingResult:
        """Results of a finished run.

        Args:
            folder: Folder of the run.

        Raises:
            ConfigError: The folder has no summary.json.
        """
        folder = Path(folder)
        if not (folder / "summary.json").is_file():
            raise ConfigError(f"{folder}: no summary.json; expected the folder of a finished run")
        return cls(folder, _summary(folder))

    @cached_property
    def student(self) -> PreTrainedModel | dict[str, PreTrainedModel]:
        """The trained student in evaluation mode; a dictionary by task if the run had several tasks.

        Raises:
            ModelError: The student is a module of your own, whose class is not in its folder.
        """
        folder = self.folder / "student"
        if (folder / "config.json").is_file():
            return _load(folder)
        tasks = {path.parent.name: _load(path.parent) for path in sorted(folder.glob("*/config.json"))}
        if not tasks:
            raise ModelError(
                f"{folder}: no config.json; load {folder / 'model.safetensors'} into your module with "
                "safetensors.torch.load_model"
            )
        return tasks

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer."""
        from potstill.models.load import load_tokenizer

        folder = self.folder / "student"
        folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        found = next((path for path in folders if (path / "tokenizer_config.json").is_file()), None)
        if found is None:
            raise ModelError(f"{folder}: no tokenizer_config.json")
        return load_tokenizer(found)

    @cached_property
    def history(self) -> dict[str, tuple[list[int], list[float]]]:
        """Logged metrics by name: `(steps, values)`; for example for a plot."""
        from potstill.reporting.report import read_metrics

        path = self.folder / "metrics.csv"
        return read_metrics(path) if path.is_file() else {}


def train(*overrides: str, folder: str | Path | None = None, **options: Any) -> TrainingResult:
    r"""Train a model; the same as `python train.py <overrides>`.

    The run happens in this process, on one device; calls from several threads run one after the other. Pipelines
    (`stages`), sweeps, `doctor=true` and runs on several devices need the command line.

    Args:
        *overrides: Overrides as on the command line, `"objective=kd"`, `"trainer.max_steps=100"`.
        folder: Folder of the run; default `runs/train/<time>`, as on the command line.
        **options: Options by group or key, applied after `overrides`. A string for a group chooses its option
            (`objective="kd"`), a mapping sets keys of a section (`teacher={"model": "bert-base-uncased"}`). Full
            keys are passed with `**{"trainer.max_steps": 100}`.

    Returns:
        The student, its tokenizer, the metrics and the folder.

    Raises:
        PotstillError: An invalid option, or models or data that cannot be used; the message names the key.

    Example:
        >>> import pathlib, tempfile
        >>> import potstill
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "text.txt").write_text("the cat sat on the mat .\na dog ran to the house .\n" * 20)
        >>> result = potstill.train(
        ...     "objective=mlm", "student=bert_small", "logger=csv", "data=text_files",
        ...     folder=folder / "run",
        ...     data={"train_files": [folder / "text.txt"], "min_length": 2, "vocabulary_size": 100, "cache": folder},
        ...     student={"config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}},
        ...     trainer={"max_steps": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
        ... )
        >>> result.metrics["train/steps"], type(result.student).__name__, len(result.tokenizer("the cat").input_ids)
        (2, 'BertForMaskedLM', 4)
        >>> "train/loss_mlm" in result.history
        True
    """

    def run(config: TrainConfig, target: Path) -> None:
        _reject_unsupported(config)
        validate_train(config)
        prepare()
        with importing():
            from potstill.runs.train import train as run_training  # imports torch
        run_training(config, target)

    done = _run("train", overrides, options, folder, run)
    return TrainingResult(done, _summary(done))


def evaluate(*overrides: str, folder: str | Path | None = None, **options: Any) -> EvaluationResult:
    r"""Evaluate one or several models; the same as `python evaluate.py <overrides>`.

    Args:
        *overrides: Overrides as on the command line, `"benchmark=mlm"`.
        folder: Folder of the results; default `runs/evaluate/<time>`, as on the command line.
        **options: Options by group or key, as for `train`; `model` is a folder, a hub id or a list of them.

    Returns:
        The metrics and the folder with the report.

    Raises:
        PotstillError: An invalid option, or models or data that cannot be used; the message names the key.

    Example:
        >>> import pathlib, tempfile
        >>> import potstill
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "text.txt").write_text("the cat sat on the mat .\na dog ran to the house .\n" * 20)
        >>> data = {"min_length": 2, "cache": folder}
        >>> result = potstill.train(
        ...     "objective=mlm", "student=bert_small", "logger=csv", "data=text_files",
        ...     folder=folder / "run",
        ...     data={"train_files": [folder / "text.txt"], "vocabulary_size": 100, **data},
        ...     student={"config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}},
        ...     trainer={"max_steps": 0},
        ... )
        >>> evaluation = potstill.evaluate(
        ...     "data=text_files", benchmark="mlm", model=result.folder / "student", folder=folder / "evaluation",
        ...     data={"eval_files": [folder / "text.txt"], **data}, trainer={"enable_progress_bar": False},
        ... )  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        benchmark=mlm ...
        >>> evaluation.metrics["perplexity"] > 1
        True
    """

    def run(config: EvaluateConfig, target: Path) -> None:
        validate_evaluate(config)
        run_folder.begin(target, anew=config.overwrite)
        if config.sweep.folder is not None:
            from potstill.runs.sweep_tables import compare

            compare(config, target)
            return
        prepare()
        with importing():
            from potstill.runs.evaluate import evaluate as run_evaluation  # imports torch
        run_evaluation(config, target)

    done = _run("evaluate", overrides, options, folder, run)
    return EvaluationResult(done, _summary(done))


def overrides_of(command: str, options: Mapping[str, Any]) -> list[str]:
    """Keyword options as overrides in Hydra's grammar.

    Args:
        command: `train` or `evaluate`.
        options: Values by key; mappings are sections.
    """
    schema = OmegaConf.structured(SCHEMAS[command])
    return [word for key, value in options.items() for word in _overrides(schema, key, _plain(value))]


def _overrides(schema: DictConfig, key: str, value: Any) -> Iterator[str]:
    if (config_folder() / key).is_dir() and not isinstance(value, Mapping):
        yield f"{key}={'null' if value is None else value}"
    elif isinstance(value, Mapping) and value:
        for inner, own in value.items():
            yield from _overrides(schema, f"{key}.{inner}", own)
    else:
        yield f"{'++' if _is_free(schema, key) else ''}{key}={quoted(value)}"


def _is_free(schema: DictConfig, key: str) -> bool:
    """Whether a key is in a section that takes any key, such as `student.config`."""
    node: Any = schema
    for part in key.split(".")[:-1]:
        node = node._get_node(part) if isinstance(node, DictConfig) and part in node.keys() else None  # noqa: SIM118
        if isinstance(node, DictConfig) and OmegaConf.get_type(node) is dict:
            return True
    return False


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _run(
    command: str,
    overrides: tuple[str, ...],
    options: Mapping[str, Any],
    folder: str | Path | None,
    run: Callable[[Any, Path], None],
) -> Path:
    """Compose, claim the folder and run; returns the folder."""
    words = [*overrides, *overrides_of(command, options)]
    if folder is not None:
        words.append(f"hydra.run.dir={quoted(str(folder))}")
    have_home()
    remember_overrides(words)
    with _one_at_a_time, signals.listening(), _composed(command, words) as config:
        target = Path(HydraConfig.get().runtime.output_dir)
        remember_references(OmegaConf.to_yaml(config))
        run_folder.claim(target, run_folder.kind_of(config), config)
        try:
            run(typed(config, SCHEMAS[command]), target)
        except StoppedError as stopped:
            if stopped.signal == signal.SIGINT:
                raise KeyboardInterrupt(str(stopped)) from None
            raise
        finally:
            run_folder.release(target)
    return target


@contextmanager
def _composed(command: str, words: list[str]) -> Iterator[DictConfig]:
    """The configuration; within, Hydra's global state is that of the run, and afterwards it is restored.

    Raises:
        ConfigError: Hydra cannot compose the overrides.
    """
    register()
    hydra, job = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            try:
                config = compose(command, words, return_hydra_config=True)
            except (HydraException, OmegaConfBaseException) as error:
                raise composition_error(command, words, error) from error
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in the folder's name
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.runtime.output_dir = str(Path(config.hydra.run.dir).absolute())
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        yield config
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, job


def _reject_unsupported(config: TrainConfig) -> None:
    for key, value, usual in (
        ("doctor", config.doctor, (False,)),
        ("stage", config.stage, ("train",)),
        ("trainer.devices", config.trainer.devices, (1, "1")),
        ("trainer.num_nodes", config.trainer.num_nodes, (1,)),
    ):
        if value not in usual:
            raise ConfigError(f"{key}={value}: {usual[0]} in Python; for others run train.py")
    if config.stages:
        raise ConfigError("stages: a pipeline starts commands; run it with train.py")


def _load(folder: Path) -> PreTrainedModel:
    import transformers

    from potstill.models import bigru, static
    from potstill.models.pretrained import read_pretrained

    (name,) = read_json(folder / "config.json")["architectures"]
    kind = next(getattr(module, name) for module in (transformers, bigru, static) if hasattr(module, name))
    return read_pretrained(kind, folder)  # type: ignore[no-any-return]


def _summary(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / "summary.json"))
