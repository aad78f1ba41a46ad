"""Loading language models and task models; an invalid checkpoint is reported in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    AutoModel,
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

from potstill.errors import ModelError, TokenizerError, WeightsError
from potstill.models.heads import (
    SPAN_LABELS,
    SUFFIXES,
    Head,
    Problem,
    declared_problem,
    default_problem,
    head_problem,
    label_order,
    labels_from_settings,
    named_order,
    problem_type_error,
    settings_problem,
    unnamed,
)
from potstill.models.pretrained import load_local_first, one_line, read_pretrained
from potstill.models.specs import attention_for, read_settings, read_spec, spec_from_settings
from potstill.models.views import view_of

logger = logging.getLogger(__name__)

AUTO_CLASSES = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM}
TASK_CLASSES: dict[Head, Any] = {
    "sequence": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
}


def load_language_model(key: str, value: str, *, need_head: bool, attention: str = "sdpa") -> PreTrainedModel:
    """Load a masked or causal language model in float32, in evaluation mode as transformers returns it.

    Weights are read from safetensors, or from a PyTorch file of tensors alone; code of a checkpoint is never run.

    Args:
        key: configuration key that names the model, for messages (`teacher.model`).
        value: folder, or hub id.
        need_head: the checkpoint must have a trained head (teachers). Otherwise a missing one is initialised from
            torch's generator, with a warning.
        attention: attention implementation of transformers (`sdpa`, `eager`, `flash_attention_2`, ...).

    Raises:
        ModelError: no such model.
        WeightsError: a damaged checkpoint, weights that are missing or of another shape than config.json says, or no
            trained head where one is needed.
    """
    label = f"{key}={value}"
    spec = read_spec(key, value)
    own = attention_for(spec.model_type, attention)
    model, report = _load(key, value, AUTO_CLASSES[spec.kind], attn_implementation=own)
    # Tied weights are not saved and not in the report.
    head = tuple(sorted(name for name in report["missing_keys"] if not name.startswith(f"{model.base_model_prefix}.")))
    _check_weights(label, report, new=head)
    if head and need_head:
        raise WeightsError(
            f"{label}: has no trained LM head ({head[0]} is missing): "
            f"train one with objective=mlm student.model={value}"
        )
    if head:
        logger.warning("%s: no trained LM head in the checkpoint; a new one is initialised", label)
    return model


def load_base_model(key: str, value: str, *, attention: str = "sdpa") -> PreTrainedModel:
    """Load an encoder or decoder without a head in float32, in evaluation mode as transformers returns it.

    A pooler, which no state of a token needs, is frozen; without weights of its own it is left out.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        attention: attention implementation of transformers.

    Raises:
        ModelError: no such model.
        WeightsError: as `load_language_model`, but for the head.
    """
    spec = read_spec(key, value)
    model, report = _load(key, value, AutoModel, attn_implementation=attention_for(spec.model_type, attention))
    _check_weights(f"{key}={value}", report, new=("pooler.",))
    if getattr(model, "pooler", None) is not None:
        keep_pooler(model, not any(name.startswith("pooler.") for name in report["missing_keys"]))
    return model


def keep_pooler(model: Any, kept: bool) -> None:
    """Freeze the pooler of a base model, which no state of a token needs, or leave it out."""
    if kept:
        model.pooler.requires_grad_(False)
    else:
        model.pooler = None


def load_from(key: str, value: str, auto_class: Any, **settings: Any) -> PreTrainedModel:
    """Load a model of a class of transformers; the checkpoint must have all of its weights.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        auto_class: of transformers, such as `AutoModelForSeq2SeqLM`.
        settings: further arguments of its `from_pretrained`; the default of `dtype` is float32.

    Raises:
        ModelError: no such model.
        WeightsError: a damaged checkpoint, or weights that are missing or of another shape than config.json says.
    """
    model, report = _load(key, value, auto_class, **settings)
    _check_weights(f"{key}={value}", report)
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
    attention: str = "sdpa",
) -> PreTrainedModel:
    """Load a model with a head for a task in float32, in evaluation mode as transformers returns it.

    A trained head of the same labels is kept; if its order differs, its rows are put into the order of `labels`, by
    name. Weights are read as by `load_language_model`.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        labels: names of the data set's labels, by number; empty for a regression, whose head gives one score;
            `SPAN_LABELS` of a head for spans.
        ordered: whether their order is published or configured; as for `label_order`.
        head: what is labelled.
        problem: what a head of sequences is trained for; None: single labels, or scores if `labels` is empty.
        need_head: the checkpoint must have a trained head of these labels (teachers, evaluated models). Otherwise a
            missing one, or one of other labels, is initialised from torch's generator, with a warning.
        attention: attention implementation of transformers.

    Raises:
        ModelError: no such model, a config.json that contradicts itself, or no trained head of these labels where one
            is needed.
        WeightsError: as `load_language_model`.
    """
    label = f"{key}={value}"
    settings = read_settings(key, value)
    spec = spec_from_settings(settings, label)
    problem = problem or default_problem(labels)
    if unusable := settings_problem(settings):
        raise ModelError(f"{label}: {unusable}")
    found = labels_from_settings(settings, head)
    other = problem_type_error(settings, head, problem)
    order = None if found is None or other else label_order(found, labels, ordered)
    if order is None and need_head:
        raise ModelError(f"{label}: {other or head_problem(found, labels, head)}")
    arguments: dict[str, Any] = {"attn_implementation": attention_for(spec.model_type, attention)}
    if order is None and head != "spans":
        arguments["num_labels"] = max(len(labels), 1)
    model, report = _load(key, value, TASK_CLASSES[head], **arguments)
    view = view_of(model)
    modules = view.task_modules(head)
    if order is None:
        _check_weights(label, report, new=tuple(f"{name}." for name in modules))
        _new_head(model, [name for name in modules if name not in view.head_modules])
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
    else:
        _check_weights(label, report)
        if head != "spans" and labels and found is not None and named_order(found, labels) != order:
            logger.warning("%s: its labels have no names; assumed to be %s, in this order", label, ", ".join(labels))
        elif order != sorted(order):
            _reorder_head(model, modules[-1], order)
            logger.info("%s: its labels are put into the order %s", label, ", ".join(labels))
    name_labels(model.config, labels, problem)
    return model


def name_labels(config: PreTrainedConfig, labels: Sequence[str], problem: Problem | None = None) -> None:
    """Write the labels of a head into the configuration of its model.

    The labels of a head for spans have no entry in transformers, so its configuration stays as it is.

    Args:
        config: changed in place.
        labels: by number; empty for a regression.
        problem: None: single labels, or scores if `labels` is empty.
    """
    if tuple(labels) == SPAN_LABELS:
        return
    names = list(labels) or ["score"]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = problem or default_problem(labels)


def _load(key: str, value: str, auto_class: Any, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model and transformers' report of missing and mismatched weights."""

    def load(source: str, local_files_only: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        return read_pretrained(
            auto_class,
            source,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_weights` names them; transformers would not
            local_files_only=local_files_only,
            weights_only=True,
            **{"dtype": torch.float32, **settings},
        )

    with quiet_transformers():
        return load_local_first(key, value, load)


def _check_weights(label: str, report: dict[str, Any], new: tuple[str, ...] = ()) -> None:
    """Check that all weights are there, except those whose names start with one of `new`."""
    if mismatched := sorted(entry for entry in report["mismatched_keys"] if not entry[0].startswith(new)):
        name, found, expected = mismatched[0]
        raise WeightsError(
            f"{label}: {len(mismatched)} weights are of another shape than config.json says, "
            f"e.g. {name}: {tuple(found)}, expected {tuple(expected)}"
        )
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith(new)):
        raise WeightsError(f"{label}: {len(missing)} weights are missing from the checkpoint, e.g. {missing[0]}")


def _new_head(model: PreTrainedModel, modules: Sequence[str]) -> None:
    """Initialise the modules of a head anew, which a checkpoint of another task may have filled.

    A pooler of the checkpoint is kept: it is part of the base model. So is a module that the language model has too.
    """
    with quiet_transformers():
        fresh = type(model)(model.config)
    for name in modules:
        if not name.startswith(f"{model.base_model_prefix}."):
            model.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())


def _reorder_head(model: PreTrainedModel, last: str, order: list[int]) -> None:
    """Put the rows of the last module of a head into another order."""
    module = model.get_submodule(last)
    rows: Any = getattr(module, "out_proj", module)
    for parameter in (rows.weight, rows.bias):
        if parameter is not None:
            parameter.data = parameter.data[order].clone()


_tokenizers: dict[str, PreTrainedTokenizerBase] = {}  # by folder, for the students of this process


def keep_tokenizer(label: str, folder: str | Path) -> None:
    """Load the tokenizer that a student will be saved with, and try to save it, before training.

    It stays loaded, so that its folder may be deleted.

    Args:
        label: of its key and value, for messages: `data.tokenizer=<folder>`.
        folder: that holds it.

    Raises:
        TokenizerError: it cannot be loaded or saved.
    """
    try:
        with quiet_transformers(), TemporaryDirectory(prefix="potstill-") as place:
            found = read_pretrained(AutoTokenizer, folder)
            found.save_pretrained(place)
            read_pretrained(AutoTokenizer, place)
    except Exception as error:  # of many kinds, depending on the content of the files
        raise TokenizerError(f"{label}: its tokenizer cannot be loaded and saved ({one_line(error)})") from error
    _tokenizers[str(folder)] = found


def load_tokenizer(tokenizer: PreTrainedTokenizerBase | str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder with transformers; a tokenizer is returned as it is.

    Raises:
        TokenizerError: the folder holds none.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if (kept := _tokenizers.get(str(tokenizer))) is not None:
        return kept
    try:
        return read_pretrained(AutoTokenizer, tokenizer)
    except Exception as error:  # of many kinds, depending on the content of the files
        raise TokenizerError(f"{tokenizer}: holds no tokenizer ({one_line(error)})") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No reports, warnings or progress bars of transformers within the context."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
