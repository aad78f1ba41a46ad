"""Shared by the exports: required packages, and folders that appear complete."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.errors import ConfigError
from potstill.models.folders import fresh_folder

MODEL_FILE = "model.onnx"


def require_packages(*names: str) -> None:
    """Check that packages of the export extra are there, before any work.

    Raises:
        ConfigError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"export: {name} is not installed; pip install 'potstill[export]'")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends, and vanishes when it fails.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        with fresh_folder(folder) as fresh:
            yield fresh
    except OSError as error:
        raise ConfigError(
            f"export: {folder} cannot be written ({error.strerror}); choose a writable folder"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and log lines of the exporter and the quantizer; what they set is put back."""
    root, disabled = logging.getLogger(), logging.root.manager.disable
    # logging.warning() would install a handler of its own where the process has none.
    root.addHandler(handler := logging.NullHandler())
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)
