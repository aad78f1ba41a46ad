"""Loading and saving language models and task models; an error of a checkpoint is one line."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from potstill.errors import ModelError, PotstillError
from potstill.models.folders import fresh_folder
from potstill.models.head_labels import (
    SPAN_LABELS,
    SUFFIXES,
    Head,
    head_fault,
    label_order,
    labels_from_settings,
    named_order,
    unnamed,
)
from potstill.models.head_problems import (
    Problem,
    declared_problem,
    default_problem,
    problem_fault,
    settings_fault,
)
from potstill.models.pretrained import read_pretrained
from potstill.models.specs import (
    Kind,
    hub_answers,
    local_folder,
    no_network,
    read_settings,
    read_spec,
    spec_from_settings,
)
from potstill.models.views import view_of

logger = logging.getLogger(__name__)

AUTO_CLASSES = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}
TASK_CLASSES: dict[Head, Any] = {
    "sequence": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
}


def load_language_model(
    key: str,
    value: str,
    *,
    kind: Kind | None = None,
    need_head: bool,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """Load a masked or causal language model, in evaluation mode as transformers gives it.

    Weights are read from safetensors, or from a PyTorch file that holds nothing but tensors; code that comes
    with a checkpoint is never run.

    Args:
        key: configuration key that names the model, for messages (`teacher.model`).
        value: folder, or hub id.
        kind: the kind that is needed; default the architecture's own.
        need_head: the checkpoint must bring a trained head (teachers). Otherwise a missing one is newly
            initialised from torch's generator, and that is logged.
        dtype: of the weights.
        attention: attention implementation of transformers (`sdpa`, `eager`, `flash_attention_2`, ...).

    Raises:
        ModelError: no such model, another kind, a damaged checkpoint, weights missing or of another shape
            than config.json says, or no trained head where one is needed.
    """
    spec = read_spec(key, value)
    if kind is not None and kind != spec.kind:
        raise ModelError(
            f"{key}={value}: is a {spec.kind} language model ({spec.model_type}); expected a {kind} one"
        )
    settings = {"dtype": dtype, "attn_implementation": attention}
    with quiet_transformers():
        model, report = _from_pretrained(key, value, AUTO_CLASSES[spec.kind], settings)
    _check_report(f"{key}={value}", model, report, need_head)
    return model


def load_from(key: str, value: str, auto_class: Any, settings: dict[str, Any]) -> PreTrainedModel:
    """Load a model of a class of transformers, all of whose weights the checkpoint has.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        auto_class: of transformers, such as `AutoModelForSeq2SeqLM`.
        settings: further arguments of its `from_pretrained`.

    Raises:
        ModelError: no such model, a damaged checkpoint, or weights missing or of another shape than config.json says.
    """
    with quiet_transformers():
        model, report = _from_pretrained(key, value, auto_class, settings)
    _check_shapes(f"{key}={value}", report["mismatched_keys"])
    _check_complete(f"{key}={value}", sorted(report["missing_keys"]))
    return model


def load_task_model(
    key: str,
    value: str,
    *,
    labels: Sequence[str],
    ordered: bool = True,
    head: Head = "sequence",
    problem: Problem | None = None,
    need_head: bool,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """Load a model with a head for a task, in evaluation mode as transformers gives it.

    A trained head that tells the same labels apart is kept; where its order is another one, its rows are put into the
    order of `labels`, by name. Weights are read as by `load_language_model`.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        labels: names of the data set's labels, by number; empty for a regression, whose head gives one score;
            `SPAN_LABELS` of a head for spans.
        ordered: whether their order is a published or a configured one; as `label_order`.
        head: what is labelled.
        problem: what a head of sequences is trained for; None: single labels, or scores where `labels` is empty.
        need_head: the checkpoint must bring a trained head of these labels (teachers, evaluated models).
            Otherwise one that is missing or of other labels is newly initialised from torch's generator, and that is
            logged.
        dtype: of the weights.
        attention: attention implementation of transformers.

    Raises:
        ModelError: as `load_language_model`; no trained head of these labels where one is needed.
    """
    label = f"{key}={value}"
    settings = read_settings(key, value)
    spec_from_settings(settings, label)
    problem = problem or default_problem(labels)
    if fault := settings_fault(settings):
        raise ModelError(f"{label}: {fault}")
    found = labels_from_settings(settings, head)
    other = problem_fault(settings, head, problem)
    order = None if found is None or other else label_order(found, labels, ordered)
    if order is None and need_head:
        raise ModelError(f"{label}: {other or head_fault(found, labels, head)}")
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if order is None and head != "spans":
        arguments["num_labels"] = max(len(labels), 1)
    with quiet_transformers():
        model, report = _from_pretrained(key, value, TASK_CLASSES[head], arguments)
        _check_task_report(label, model, report, () if order is not None else _head_modules(model, head))
        if order is None:
            _new_head(model, head)
    if order is None:
        old = (
            f"no trained head ({SUFFIXES[head]})"
            if found is None
            else f"a head of problem_type={declared_problem(settings)}"
            if other
            else f"a head of other labels ({', '.join(found)})"
        )
        keep = ""
        if found is not None and not ordered and len(found) == len(labels) and unnamed(found):
            keep = "; to keep the old one, give its labels in order by benchmark.labels"
        logger.warning("%s: %s in the checkpoint; a new one is initialised%s", label, old, keep)
    elif head != "spans" and labels and found is not None and named_order(found, labels) != order:
        logger.warning(
            "%s: its labels have no names; taken to be %s, in this order", label, ", ".join(labels)
        )
    elif order != sorted(order):
        _reorder_head(model, head, order)
        logger.info("%s: its labels are put into the order %s", label, ", ".join(labels))
    name_labels(model.config, labels, problem)
    return model


def name_labels(config: PreTrainedConfig, labels: Sequence[str], problem: Problem | None = None) -> None:
    """Have a model's configuration say what its head tells apart; empty labels are a regression's.

    A head for spans has no labels that transformers knows, and is left alone.

    Args:
        config: changed in place.
        labels: by number.
        problem: None: single labels, or scores where `labels` is empty.
    """
    if tuple(labels) == SPAN_LABELS:
        return
    names = list(labels) or ["score"]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = problem or default_problem(labels)


def save_student(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | str | Path, folder: str | Path, card: str
) -> Path:
    """Write a folder that `transformers.AutoModel*.from_pretrained` opens without this package.

    The folder appears, or replaces an earlier one, in one step: a reader never meets half a model.

    Args:
        model: the student.
        tokenizer: the tokenizer, or the folder that holds it.
        folder: where to.
        card: text of the model card (README.md).

    Returns:
        The folder.

    Raises:
        ModelError: the tokenizer's folder holds none.
    """
    folder = Path(folder)
    with fresh_folder(folder) as fresh:
        with quiet_transformers():
            model.save_pretrained(fresh)
            load_tokenizer(tokenizer).save_pretrained(fresh)
        (fresh / "README.md").write_text(card, encoding="utf-8")
    return folder


def save_module(model: nn.Module, folder: str | Path, card: str) -> Path:
    """Write a folder with any module's state, `model.safetensors`, as `safetensors.torch.load_model` reads it.

    Shared tensors are written once. The folder appears, or replaces an earlier one, in one step.

    Args:
        model: the student.
        folder: where to.
        card: text of its README.md.

    Returns:
        The folder.
    """
    folder = Path(folder)
    with fresh_folder(folder) as fresh:
        save_model(model, str(fresh / "model.safetensors"))
        (fresh / "README.md").write_text(card, encoding="utf-8")
    return folder


def _from_pretrained(
    key: str, value: str, auto_class: Any, settings: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    folder = local_folder(key, value)
    source = str(folder) if folder else value

    def load(local_files_only: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        return read_pretrained(
            auto_class,
            source,
            output_loading_info=True,
            # Reported by us, by name; transformers would raise without saying which.
            ignore_mismatched_sizes=True,
            local_files_only=local_files_only,
            weights_only=True,
            **settings,
        )

    try:
        try:
            # The local hub cache first: a run that was downloaded once needs no network.
            return load(local_files_only=True)
        except OSError:
            if folder:
                raise
            if not hub_answers():
                raise no_network(key, value) from None
            return load(local_files_only=False)
    except PotstillError:
        raise
    except Exception as error:  # of any kind, depending on what is in the files
        raise ModelError(f"{key}={value}: cannot be loaded ({_one_line(error)})") from error


def _check_report(label: str, model: PreTrainedModel, report: dict[str, Any], need_head: bool) -> None:
    """Check missing parameters: the encoder must be complete, the head only where it is needed."""
    _check_shapes(label, report["mismatched_keys"])
    # Tied weights are not saved and not in the report.
    missing = sorted(report["missing_keys"])
    _check_complete(label, [name for name in missing if name.startswith(f"{model.base_model_prefix}.")])
    if missing and need_head:
        raise ModelError(
            f"{label}: has no trained LM head ({missing[0]} is missing): "
            f"train one with objective=mlm student.model={label.partition('=')[2]}"
        )
    if missing:
        logger.warning("%s: no trained LM head in the checkpoint; a new one is initialised", label)


def _head_modules(model: PreTrainedModel, head: Head) -> tuple[str, ...]:
    return tuple(f"{name}." for name in view_of(model).task_modules(head))


def _check_task_report(
    label: str, model: PreTrainedModel, report: dict[str, Any], head: tuple[str, ...]
) -> None:
    """Check missing parameters: all but the modules of a new head must be there."""
    _check_shapes(label, [entry for entry in report["mismatched_keys"] if not entry[0].startswith(head)])
    _check_complete(label, sorted(name for name in report["missing_keys"] if not name.startswith(head)))


def _check_shapes(label: str, mismatched: Collection[Any]) -> None:
    if mismatched:
        name, found, expected = sorted(mismatched)[0]
        raise ModelError(
            f"{label}: {len(mismatched)} weights are of another shape than config.json says, "
            f"e.g. {name}: {tuple(found)}, expected {tuple(expected)}"
        )


def _check_complete(label: str, missing: list[str]) -> None:
    if missing:
        raise ModelError(
            f"{label}: {len(missing)} weights are missing from the checkpoint, e.g. {missing[0]}"
        )


def _new_head(model: PreTrainedModel, head: Head) -> None:
    """Initialise the head anew: a checkpoint of another task may have filled it.

    A pooler that the checkpoint has stays: it is part of the base model.
    """
    fresh = type(model)(model.config)
    base = f"{model.base_model_prefix}."
    for name in view_of(model).task_modules(head):
        if not name.startswith(base):
            model.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())


def _reorder_head(model: PreTrainedModel, head: Head, order: list[int]) -> None:
    """Put the rows of the head's last layer into another order."""
    last = model.get_submodule(view_of(model).task_modules(head)[-1])
    rows: Any = getattr(last, "out_proj", last)
    for parameter in (rows.weight, rows.bias):
        if parameter is not None:
            parameter.data = parameter.data[order].clone()


_kept: dict[str, PreTrainedTokenizerBase] = {}  # by folder, for the students of this process


def keep_tokenizer(label: str, folder: str | Path) -> None:
    """Load the tokenizer that a student will be saved with, and save it once, before anything is trained.

    It is kept, so that its folder may go.

    Args:
        label: of its key and value, for messages: `data.tokenizer=<folder>`.
        folder: that holds it.

    Raises:
        ModelError: it cannot be loaded or saved.
    """
    try:
        with quiet_transformers(), TemporaryDirectory(prefix="potstill-") as place:
            found = read_pretrained(AutoTokenizer, folder)
            found.save_pretrained(place)
            read_pretrained(AutoTokenizer, place)
    except Exception as error:  # of many kinds, depending on what is in the files
        raise ModelError(f"{label}: its tokenizer cannot be loaded and saved ({_one_line(error)})") from error
    _kept[str(folder)] = found


def check_savable(model: PreTrainedModel) -> None:
    """Save the configurations of a student once, before it is trained.

    Raises:
        ModelError: transformers rejects one, such as contradictory generation settings that came with its teacher.
    """
    try:
        with quiet_transformers(), TemporaryDirectory(prefix="potstill-") as place:
            model.config.save_pretrained(place)
            if model.can_generate() and model.generation_config is not None:
                model.generation_config.save_pretrained(place)
    except Exception as error:
        raise ModelError(f"student: its configuration cannot be saved ({_one_line(error)})") from error


def load_tokenizer(tokenizer: PreTrainedTokenizerBase | str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, as transformers loads it; a tokenizer is returned as it is.

    Raises:
        ModelError: the folder holds none.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if (kept := _kept.get(str(tokenizer))) is not None:
        return kept
    try:
        return read_pretrained(AutoTokenizer, tokenizer)
    except Exception as error:  # of many kinds, depending on what is in the files
        raise ModelError(f"{tokenizer}: holds no tokenizer ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No reports, warnings or progress bars of transformers; the settings are put back."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
