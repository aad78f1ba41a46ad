"""The header of a GGUF file, llama.cpp's format of a model and its tokenizer in one file. No torch, no transformers.

The weights are read and dequantised by transformers. Source: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import ModelError, WeightsError
from potstill.runtime.packages import require_packages
from potstill.runtime.small_files import not_a_file

SUFFIX = ".gguf"

# Architectures that both transformers reads from GGUF and `specs.ARCHITECTURES` has, by their names there.
_MODEL_TYPES = {name: name for name in ("llama", "mistral", "qwen2", "qwen3", "gpt2")} | {"gemma3": "gemma3_text"}
_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
# Tensors that transformers reads; others (factors of scaled rotary frequencies) change what a model computes.
_READ = re.compile(r"(token_embd|position_embd|output_norm|output|blk\.\d+\.\w+)\.(weight|bias)")
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_KEPT = "tokenizer.ggml.tokens"  # the one list of texts that is kept
_MOST = 1 << 20  # entries, tensors, or bytes of a name
_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of its model.

    Attributes:
        metadata: values by name; lists of texts as None, except for the tokens.
        parameters: number of weights.
    """

    metadata: dict[str, Any]
    parameters: int

    @property
    def settings(self) -> dict[str, Any]:
        """The sizes as entries of a config.json."""
        kind = self.metadata["general.architecture"]
        sizes = {standard: self.metadata.get(f"{kind}.{own}") for own, standard in _SIZES.items()}
        sizes["vocab_size"] = self.metadata.get(f"{kind}.vocab_size", len(self.metadata[_KEPT]))
        return {"model_type": _MODEL_TYPES[kind], **{name: size for name, size in sizes.items() if size is not None}}

    @property
    def tokenizer_settings(self) -> dict[str, Any]:
        """The special tokens and the longest sequence as entries of a tokenizer_config.json."""
        tokens, found = self.metadata[_KEPT], {"model_max_length": self.settings.get("max_position_embeddings")}
        for own, name in _SPECIAL.items():
            number = self.metadata.get(f"tokenizer.ggml.{own}_token_id")
            if isinstance(number, int) and 0 <= number < len(tokens):
                found[name] = tokens[number]
        return found


def is_gguf(path: Path) -> bool:
    """Whether a path is a file with the suffix of GGUF."""
    return path.suffix == SUFFIX and path.is_file()


def gguf_of(folder: Path, label: str) -> Path | None:
    """The GGUF file of a folder without a config.json; None if there is none.

    Raises:
        ModelError: there are several.
    """
    if (folder / "config.json").exists():
        return None
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5]) + (", ..." if len(files) > 5 else "")
        raise ModelError(f"{label}: the folder has {len(files)} GGUF files ({names}); name one of them")
    return files[0] if files else None


def read_header(path: Path, label: str) -> GgufHeader:
    """Read the header of a GGUF file, and compare the file's size with what it says.

    Args:
        path: of the file.
        label: how messages name the model.

    Raises:
        ModelError: an architecture that transformers does not read from GGUF, or that has parts which it leaves out.
        PackageError: a package that transformers needs is not installed.
        WeightsError: no GGUF file, or a truncated one.
    """
    require_packages(label, "gguf", "gguf", "accelerate")
    if not path.is_file():
        raise WeightsError(f"{label}: {not_a_file(path)}")
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as blob:
            return _read(_Cursor(blob), label)
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise WeightsError(f"{label}: the header is damaged, or the file is truncated ({error})") from error
    except (OSError, ValueError) as error:  # mmap rejects an empty file
        raise WeightsError(f"{label}: cannot be read ({error})") from error


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, blob: mmap.mmap) -> None:
        self.blob, self.place = blob, 0

    def take(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self.blob, self.place)
        self.place += struct.calcsize(f"<{form}")
        return value[0] if len(value) == 1 else value

    def count(self, form: str = "Q", most: int = _MOST) -> int:
        if (found := self.take(form)) > most:
            raise IndexError(f"a count of {found:,}")
        return int(found)

    def text(self) -> str:
        size = self.count(most=len(self.blob))
        start, self.place = self.place, self.place + size
        if self.place > len(self.blob):
            raise IndexError("a text ends after the file")
        return self.blob[start : self.place].decode("utf-8")

    def value(self, kind: int, name: str) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            return self.take(_FORMATS[kind]) if kind in _FORMATS else _unknown(kind)
        inner, count = self.take("I"), self.count(most=len(self.blob))
        if inner == _TEXT:
            texts = [self.text() for _ in range(count)]
            return texts if name == _KEPT else None
        if inner not in _FORMATS:
            return _unknown(inner)
        values = struct.unpack_from(f"<{count}{_FORMATS[inner]}", self.blob, self.place)
        self.place += count * struct.calcsize(_FORMATS[inner])
        return list(values)


def _unknown(kind: int) -> None:
    raise IndexError(f"a value of type {kind}")


def _read(cursor: _Cursor, label: str) -> GgufHeader:
    if cursor.blob[:4] != b"GGUF":
        raise WeightsError(f"{label}: is no GGUF file")
    cursor.place = 4
    if (version := cursor.take("I")) not in (2, 3):
        raise WeightsError(f"{label}: has version {version} of GGUF; expected 2 or 3, little-endian")
    tensors, entries = cursor.count(), cursor.count()
    metadata = {}
    for _ in range(entries):
        name = cursor.text()
        metadata[name] = cursor.value(cursor.take("I"), name)
    _check_metadata(metadata, label)
    parameters, end = 0, 0
    for _ in range(tensors):
        name = cursor.text()
        shape = [cursor.count(most=1 << 40) for _ in range(cursor.count("I", 8))]
        parameters += math.prod(shape)
        kind, offset = cursor.take("IQ")
        end = max(end, _end(name, shape, kind, offset, label))
    alignment = metadata.get("general.alignment") or _ALIGNMENT
    end += math.ceil(cursor.place / alignment) * alignment
    if end > len(cursor.blob):
        raise WeightsError(f"{label}: the file is truncated; it has {len(cursor.blob):,} bytes of {end:,}")
    return GgufHeader(metadata, parameters)


def _check_metadata(metadata: dict[str, Any], label: str) -> None:
    kind = metadata.get("general.architecture")
    if kind not in _MODEL_TYPES:
        raise ModelError(f"{label}: a GGUF file of the architecture {kind!r}; known: {', '.join(_MODEL_TYPES)}")
    if (count := metadata.get("split.count")) and count > 1:
        raise ModelError(f"{label}: is one of {count} parts of a model; join them with llama.cpp's gguf-split --merge")
    if not isinstance(metadata.get(_KEPT), list):
        raise WeightsError(f"{label}: the header has no {_KEPT}")
    if metadata.get(scaled := f"{kind}.rope.scaling.type", "none") != "none":
        raise ModelError(_left_out(label, f"{scaled}={metadata[scaled]!r:.40}"))


def _end(name: str, shape: list[int], kind: int, offset: int, label: str) -> int:
    """Where a tensor ends, in bytes after the first one's beginning."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if not _READ.fullmatch(name):
        raise ModelError(_left_out(label, f"the tensor {name!r:.60}"))
    try:
        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise WeightsError(f"{label}: the tensor {name} has the unknown type {kind}; update gguf") from None
    return offset + math.prod(shape) // elements * size


def _left_out(label: str, what: str) -> str:
    return f"{label}: has {what}, which transformers does not read from GGUF; use the model's own folder"
