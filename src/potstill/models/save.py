"""Saving students: folders that transformers, or safetensors, opens without this package."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import ModelError
from potstill.models.folders import fresh_folder
from potstill.models.load import load_tokenizer, quiet_transformers
from potstill.models.pretrained import one_line


def save_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | str | Path,
    folder: str | Path,
    card: str,
    more: Callable[[Path], None] | None = None,
) -> Path:
    """Write a folder that `transformers.AutoModel*.from_pretrained` opens without this package.

    The folder appears, or replaces an earlier one, in one step, so readers never see an incomplete model.

    Args:
        model: the student.
        tokenizer: the tokenizer, or the folder that holds it.
        folder: where to.
        card: text of the model card (README.md).
        more: writes further files into the folder.

    Returns:
        The folder.

    Raises:
        TokenizerError: the tokenizer's folder holds none.
        WriteError: the folder cannot be written.
    """
    with _folder_with_card(folder, card) as fresh, quiet_transformers():
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # accelerate imports DeepSpeed, which warns on stdout where there is no GPU
        try:
            model.save_pretrained(fresh)
        finally:
            logging.disable(disabled)
        _for_model(load_tokenizer(tokenizer), model).save_pretrained(fresh)
        if more is not None:
            more(fresh)
    return Path(folder)


def _for_model(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """A tokenizer that returns only inputs which the model takes, so that `model(**tokenizer(text))` works."""
    taken = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in taken]
    if names == tokenizer.model_input_names:
        return tokenizer
    own = copy.deepcopy(tokenizer)
    own.model_input_names = own.init_kwargs["model_input_names"] = names
    return own


def save_module(model: nn.Module, folder: str | Path, card: str) -> Path:
    """Write a folder with any module's state, `model.safetensors`, as `safetensors.torch.load_model` reads it.

    Shared tensors are written once. The folder appears, or replaces an earlier one, in one step.

    Args:
        model: the student.
        folder: where to.
        card: text of its README.md.

    Returns:
        The folder.

    Raises:
        WriteError: the folder cannot be written.
    """
    with _folder_with_card(folder, card) as fresh:
        save_model(model, str(fresh / "model.safetensors"))
    return Path(folder)


@contextmanager
def _folder_with_card(folder: str | Path, card: str) -> Iterator[Path]:
    with fresh_folder(Path(folder)) as fresh:
        yield fresh
        (fresh / "README.md").write_text(card, encoding="utf-8")


def check_savable(model: PreTrainedModel) -> None:
    """Try to save the configurations of a student, before it is trained.

    Raises:
        ModelError: transformers rejects one, such as contradictory generation settings of its teacher.
    """
    try:
        with quiet_transformers(), TemporaryDirectory(prefix="potstill-") as place:
            model.config.save_pretrained(place)
            if model.can_generate() and model.generation_config is not None:
                model.generation_config.save_pretrained(place)
    except Exception as error:
        raise ModelError(f"student: its configuration cannot be saved ({one_line(error)})") from error
