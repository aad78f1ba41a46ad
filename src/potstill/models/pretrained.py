"""The one place where transformers reads a folder or hub id. Code that comes with a model is never run. No torch.

Other modules call these functions instead of `from_pretrained` and `from_config`; a test checks that.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from potstill.errors import ModelError, PotstillError, WeightsError
from potstill.models.gguf import SUFFIX, gguf_of, is_gguf, read_header
from potstill.runtime.small_files import model_folder_problem

T = TypeVar("T")

HUB_TIMEOUT_SECONDS = 2.0
# Entries of config.json and tokenizer_config.json that name code; a saved student must not contain them.
CODE_ENTRIES = ("auto_map", "custom_pipelines")
_NO_CODE = "it needs Python code of its own (auto_map), which is never run"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def load_local_first(key: str, value: str, load: Callable[[str, bool], T]) -> T:
    """Load from a folder or hub id; the local cache of the hub is tried first, so a downloaded model needs no network.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, GGUF file, or hub id.
        load: called with the folder, file or hub id, and the argument `local_files_only` of `read_pretrained`.

    Raises:
        ModelError: no such folder, or a hub id without network.
        WeightsError: any other error of `load` that is not a user error already.
    """
    folder = local_folder(key, value)
    source = str(folder or value)
    try:
        try:
            return load(source, True)
        except OSError:
            if folder:
                raise
            if not hub_answers():
                raise no_network(key, value) from None
            return load(source, False)
    except PotstillError:
        raise
    except Exception as error:  # of many kinds, depending on the content of the files
        raise WeightsError(f"{key}={value}: cannot be loaded ({one_line(error)})") from error


def read_pretrained(auto_class: Any, source: str | Path, **settings: Any) -> Any:
    """Read a config, tokenizer or model of a folder or hub id, and remove entries that name code.

    The model of a GGUF file has dequantised weights, and is like any other from then on.

    Args:
        auto_class: of transformers, such as `AutoTokenizer`.
        source: folder, GGUF file, or hub id.
        settings: further arguments of `from_pretrained`; models need `weights_only=True`.

    Raises:
        ValueError: it cannot be loaded without running its code, or a file of the folder cannot be read in bounded
            time and memory. transformers may raise others.
    """
    file = path if is_gguf(path := Path(source)) else None
    if file is not None:
        source, settings = file.parent, settings | {"gguf_file": file.name}
    if (folder := Path(source)).is_dir() and (problem := model_folder_problem(folder)):
        raise ValueError(problem)
    try:
        # With None instead of False, transformers would ask on stdin, and run the code on "y".
        with nullcontext() if file is None else _gguf_bar():
            found = auto_class.from_pretrained(str(source), trust_remote_code=False, **settings)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(_NO_CODE) from error
    loaded = found[0] if isinstance(found, tuple) else found
    if file is not None:
        _forget_gguf(loaded, file)
    for entries in (getattr(loaded, "init_kwargs", None), vars(getattr(loaded, "config", loaded))):
        for name in CODE_ENTRIES:
            if isinstance(entries, dict):
                entries.pop(name, None)
    return found


@contextmanager
def _gguf_bar() -> Iterator[None]:
    """The progress bar of GGUF's weights, which is tqdm's own, follows transformers' setting within the context."""
    from transformers import modeling_gguf_pytorch_utils as module
    from transformers.utils import logging

    own = vars(module)["tqdm"]
    vars(module)["tqdm"] = logging.tqdm
    try:
        yield
    finally:
        vars(module)["tqdm"] = own


def _forget_gguf(loaded: Any, file: Path) -> None:
    """Make a model that was read from a GGUF file, or its config, or a tokenizer, one of no file.

    Raises:
        WeightsError: a model without some of the file's weights.
    """
    config = getattr(loaded, "config", loaded)
    if hasattr(loaded, "num_parameters"):
        expected, found = read_header(file, str(file)).parameters, loaded.num_parameters()
        if found != expected:
            raise WeightsError(f"{file}: transformers reads {found:,} of its {expected:,} weights; use a folder")
        for name in ("hf_quantizer", "quantization_method"):
            vars(loaded).pop(name, None)
        loaded.is_quantized = False
    if hasattr(loaded, "init_kwargs"):  # of a tokenizer
        for name in ("vocab_file", "is_local", "local_files_only"):
            loaded.init_kwargs.pop(name, None)
    vars(config).pop("quantization_config", None)


def make_from_config(auto_class: Any, config: Any) -> Any:
    """Make a model with new weights, of a class that transformers itself has.

    Args:
        auto_class: of transformers, such as `AutoModelForMaskedLM`.
        config: of the model.
    """
    return auto_class.from_config(config, trust_remote_code=False)


def local_folder(key: str, value: str) -> Path | None:
    """The folder that a value names, or the GGUF file: that itself, or the only model of a folder; None for a hub id.

    Raises:
        ModelError: `value` is empty, another file, a path that does not exist, or a folder of several GGUF files.
    """
    if not isinstance(value, str) or not value.strip():
        raise ModelError(f"{key}={value}: expected a folder or a hub id, e.g. {key}=bert-base-uncased")
    folder = Path(value).expanduser()
    if folder.is_dir():
        return gguf_of(folder, f"{key}={value}") or folder
    if is_gguf(folder):
        return folder
    if folder.exists():
        raise ModelError(
            f"{key}={value}: is a file; expected the folder that holds config.json and the weights, or a {SUFFIX} file"
        )
    if not _HUB_ID.fullmatch(value):
        raise ModelError(
            f"{key}={value}: no such folder; expected a folder with a config.json, or a hub id (name or owner/name)"
        )
    return None


def hub_answers(timeout: float = HUB_TIMEOUT_SECONDS) -> bool:
    """Whether the hub answers within `timeout` seconds; in offline mode it does not."""
    answered = threading.Event()

    def ask() -> None:
        from huggingface_hub import constants, get_session

        with suppress(Exception):  # any error: the hub does not answer
            get_session().head(constants.ENDPOINT, timeout=timeout)
            answered.set()

    # A thread, because name resolution has no timeout, and huggingface_hub itself would retry for half a minute.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def no_network(key: str, value: str) -> ModelError:
    """Error of a hub id when the hub does not answer."""
    return ModelError(
        f"{key}={value}: no such folder, and no network for the hub: pass a folder, e.g. {key}=/path/to/model"
    )


def one_line(error: BaseException) -> str:
    """Class and text of an exception in one line of limited length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
