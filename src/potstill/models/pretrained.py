"""The one place where transformers reads a folder or hub id: code that comes with a model is never run. No torch.

Every other module calls these functions instead of `from_pretrained` and `from_config`, which a test holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.runtime.small_files import model_folder_fault

# Entries of config.json and tokenizer_config.json that name code; a saved student must not carry them on.
CODE_ENTRIES = ("auto_map", "custom_pipelines")
_NO_CODE = "it needs Python code of its own (auto_map), which is never run"


def read_pretrained(auto_class: Any, source: str | Path, **settings: Any) -> Any:
    """A config, tokenizer or model of a folder or hub id; entries that name code are removed from it.

    Args:
        auto_class: of transformers, such as `AutoTokenizer`.
        source: folder, or hub id.
        settings: further arguments of its `from_pretrained`; `weights_only=True` is a model's.

    Raises:
        ValueError: it cannot be loaded without running its code, or a file of the folder cannot be read in bounded
            time and memory; others as transformers raises them.
    """
    if (folder := Path(source)).is_dir() and (fault := model_folder_fault(folder)):
        raise ValueError(fault)
    try:
        # None instead of False would ask on stdin, and run the code on "y".
        found = auto_class.from_pretrained(str(source), trust_remote_code=False, **settings)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(_NO_CODE) from error
    _without_code(found[0] if isinstance(found, tuple) else found)
    return found


def make_from_config(auto_class: Any, config: Any) -> Any:
    """A model with new weights, of a class that transformers itself has.

    Args:
        auto_class: of transformers, such as `AutoModelForMaskedLM`.
        config: of the model.
    """
    return auto_class.from_config(config, trust_remote_code=False)


def hub_kernel(attention: object) -> str | None:
    """Error of the attention implementation in a config.json; None if it is valid.

    Args:
        attention: the entries that name one, or transformers' reading of them.
    """
    if "/" not in str(attention):
        return None
    return f"its config.json names a kernel of the hub ({attention}), which is code and never run; remove the entry"


def _without_code(found: Any) -> None:
    for settings in (getattr(found, "init_kwargs", None), vars(getattr(found, "config", found))):
        for entry in CODE_ENTRIES:
            if isinstance(settings, dict):
                settings.pop(entry, None)
