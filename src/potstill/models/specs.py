"""Facts of a model, read from its config.json alone.

Nothing here imports torch or transformers, so an invalid configuration is rejected before they are imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from potstill.errors import ConfigError, ModelError, WeightsError
from potstill.models.gguf import is_gguf, read_header
from potstill.models.pretrained import HUB_TIMEOUT_SECONDS, hub_answers, local_folder, no_network
from potstill.runtime.json_text import read_json
from potstill.runtime.small_files import model_folder_problem

Kind = Literal["masked", "causal"]

# A head is padded to a multiple of 8 (tensor cores) at least, and by a few hundred rows at most.
HEAD_MULTIPLE = 8
MAX_HEAD_PADDING = 1024

UNLIMITED = 2**30  # tokens of a model that reads any number

_STANDARD_NAMES = {
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "positions": "max_position_embeddings",
    "vocab": "vocab_size",
}


@dataclass(frozen=True)
class Architecture:
    """The entries of one `model_type` in config.json.

    Attributes:
        kind: `masked` (bidirectional, MLM head) or `causal` (CLM head).
        defaults: the sizes that transformers uses where config.json has none.
        names: the architecture's own keys where they differ from the standard ones.
        offset_positions: positions are counted from `pad_token_id + 1`, so that many are not usable.
        attention: it has attention; a recurrent model has none, and no language-model head either.
        scores: the scores of bidirectional attention are products of queries and keys at all tokens.
        own_first: the first block has other parts than the rest, so a student of layers begins with it.
        own_attention: transformers has one implementation of its attention, `eager`.
        unsupported: keys of config.json whose parts the backbone view does not have; null, false or 0 is accepted.
    """

    kind: Kind
    defaults: Mapping[str, int]
    names: Mapping[str, str] = field(default_factory=dict)
    offset_positions: bool = False
    attention: bool = True
    scores: bool = True
    own_first: bool = False
    own_attention: bool = False
    unsupported: tuple[str, ...] = ()


def _sizes(depth: int, width: int, heads: int, positions: int, vocab: int) -> dict[str, int]:
    return {"depth": depth, "width": width, "heads": heads, "positions": positions, "vocab": vocab}


_ROBERTA_LIKE = Architecture("masked", _sizes(12, 768, 12, 512, 30522), offset_positions=True)

ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture("masked", _sizes(12, 768, 12, 512, 30522)),
    "roberta": Architecture("masked", _sizes(12, 768, 12, 512, 50265), offset_positions=True),
    "xlm-roberta": _ROBERTA_LIKE,
    "camembert": _ROBERTA_LIKE,
    "distilbert": Architecture(
        "masked", _sizes(6, 768, 12, 512, 30522), names={"depth": "n_layers", "width": "dim", "heads": "n_heads"}
    ),
    "electra": Architecture("masked", _sizes(12, 256, 4, 512, 30522)),
    "modernbert": Architecture("masked", _sizes(22, 768, 12, 8192, 50368), scores=False, own_first=True),
    "deberta-v2": Architecture(
        "masked", _sizes(24, 1536, 24, 512, 128100), scores=False, own_attention=True, unsupported=("conv_kernel_size",)
    ),
    "gpt2": Architecture(
        "causal",
        _sizes(12, 768, 12, 1024, 50257),
        names={"depth": "n_layer", "width": "n_embd", "heads": "n_head", "positions": "n_positions"},
    ),
    "llama": Architecture("causal", _sizes(32, 4096, 32, 2048, 32000)),
    "mistral": Architecture("causal", _sizes(32, 4096, 32, 131072, 32000)),
    "qwen2": Architecture("causal", _sizes(32, 4096, 32, 32768, 151936)),
    "qwen3": Architecture("causal", _sizes(32, 4096, 32, 32768, 151936)),
    "gpt_neox": Architecture("causal", _sizes(44, 6144, 64, 2048, 50432)),
    "olmo2": Architecture("causal", _sizes(32, 4096, 32, 2048, 50304)),
    "gemma3_text": Architecture(
        "causal",
        _sizes(26, 2304, 8, 131072, 262208),
        unsupported=("final_logit_softcapping", "use_bidirectional_attention"),
    ),
    "bigru": Architecture("masked", _sizes(1, 512, 1, 512, 30522), attention=False),
    "static": Architecture("masked", _sizes(0, 256, 1, UNLIMITED, 30522), attention=False),
}

SEQ2SEQ = ("t5", "mt5")  # encoder-decoders, of `models.seq2seq`


@dataclass(frozen=True)
class ModelSpec:
    """The facts of a model that a configuration is checked against.

    Attributes:
        model_type: the architecture, a key of `ARCHITECTURES`.
        kind: `masked` or `causal`.
        depth: number of blocks.
        width: dimension of the residual stream.
        heads: number of attention heads (query heads where keys are shared).
        vocab_size: rows of the vocabulary head.
        max_length: the longest sequence, in tokens.
    """

    model_type: str
    kind: Kind
    depth: int
    width: int
    heads: int
    vocab_size: int
    max_length: int

    @property
    def head_dim(self) -> int:
        """Width of one head's slice of the residual stream."""
        return self.width // self.heads

    @property
    def has_scores(self) -> bool:
        """Whether every token attends to every other, so that attention can be compared with another model's."""
        return self.kind == "masked" and self.is_transformer and ARCHITECTURES[self.model_type].scores

    @property
    def is_transformer(self) -> bool:
        """Whether it has attention; a recurrent student has none."""
        return ARCHITECTURES[self.model_type].attention


def read_spec(key: str, value: str) -> ModelSpec:
    """Read the facts of a model without loading it.

    Args:
        key: configuration key that names the model, for messages (`teacher.model`).
        value: folder with a config.json, GGUF file, or a hub id (`name` or `owner/name`).

    Raises:
        ModelError: no such folder, a missing or invalid config.json, an unknown architecture, or a hub id that is
            neither in the local cache of the hub nor on the hub.
    """
    return spec_from_settings(read_settings(key, value), f"{key}={value}")


def read_settings(key: str, value: str) -> dict[str, Any]:
    """Read the config.json of a folder or hub id, or the sizes in the header of a GGUF file.

    Raises:
        ModelError: as `read_spec`, except for the architecture.
    """
    label = f"{key}={value}"
    folder = local_folder(key, value)
    if folder and is_gguf(folder):
        return read_header(folder, label).settings
    path = folder / "config.json" if folder else _hub_config(key, value)
    error = model_folder_problem(folder) if folder else None
    if error or not path.is_file():
        error = error or "the folder has no config.json"
        raise ModelError(f"{label}: {error}; expected a folder written by save_pretrained")
    settings = _read_json(path, label)
    for name, attention in settings.items():
        if "attn_implementation" in name and "/" in str(attention):
            raise ModelError(
                f"{label}: its config.json names a kernel of the hub ({attention}), which is code and never run; "
                "remove the entry"
            )
    return settings


def spec_from_settings(settings: Mapping[str, Any], label: str) -> ModelSpec:
    """Make a spec from the content of a config.json.

    Args:
        settings: the decoded config.json.
        label: how messages name the model.

    Raises:
        ModelError: an unknown architecture, or sizes that are not positive integers or contradict each other.
    """
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ModelError(f"{label}: {unknown_architecture(model_type)}")
    architecture = ARCHITECTURES[model_type]
    size = {name: _size(settings, architecture, name, label) for name in _STANDARD_NAMES}
    if size["width"] % size["heads"]:
        raise ModelError(f"{label}: config.json has width {size['width']}, which {size['heads']} heads do not divide")
    if architecture.kind == "masked" and settings.get("is_decoder"):
        raise ModelError(f"{label}: is_decoder is true in config.json; {model_type} is supported as an encoder only")
    for key in architecture.unsupported:
        if settings.get(key):
            raise ModelError(f"{label}: {key}={settings[key]!r} in config.json; not supported for a {model_type}")
    max_length = size["positions"]
    if architecture.offset_positions:
        max_length -= _integer(settings.get("pad_token_id", 1), "pad_token_id", label, least=0) + 1
    return ModelSpec(
        model_type=model_type,
        kind=architecture.kind,
        depth=size["depth"],
        width=size["width"],
        heads=size["heads"],
        vocab_size=size["vocab"],
        max_length=max_length,
    )


def attention_for(model_type: str, attention: str) -> str:
    """The attention implementation for a value of `teacher.attention` or `student.attention`.

    `sdpa`, the default, is `eager` where transformers has no other.
    """
    known = ARCHITECTURES.get(model_type)
    return "eager" if attention == "sdpa" and known is not None and known.own_attention else attention


def attention_error(model_type: str, attention: str) -> str | None:
    """Error of an attention implementation that an architecture does not have; None as far as config.json shows."""
    if attention in ("sdpa", "eager") or not ARCHITECTURES[model_type].own_attention:
        return None
    return f"transformers has one implementation for a {model_type}; use eager"


def unknown_architecture(model_type: object) -> str:
    """Error of an architecture that is not supported, which names those that are."""
    if model_type in SEQ2SEQ:
        return f"{model_type} is an encoder-decoder, which only objective=step_by_step trains"
    known = ", ".join(ARCHITECTURES)
    return f"unknown model_type {model_type!r}; known: {known} (to add one: add a view in models/views.py)"


def check_writer(settings: Mapping[str, Any], label: str) -> bool:
    """Reject the content of a config.json of a model that writes no text.

    Returns:
        Whether it is an encoder-decoder; otherwise it is a decoder-only model.

    Raises:
        WeightsError: an encoder, or an unknown architecture.
        ModelError: as `spec_from_settings`.
    """
    model_type = str(settings.get("model_type"))
    if model_type in SEQ2SEQ:
        return True
    decoders = [name for name, known in ARCHITECTURES.items() if known.kind == "causal"]
    if model_type not in decoders:
        what = "an encoder" if model_type in ARCHITECTURES else "an unknown architecture"
        raise WeightsError(
            f"{label}: is {what} ({model_type}); step-by-step distillation needs an encoder-decoder "
            f"({', '.join(SEQ2SEQ)}) or a decoder-only model ({', '.join(decoders)})"
        )
    spec_from_settings(settings, label)
    return False


def check_layers(layers: Sequence[int], depth: int, key: str, model_type: str | None = None) -> list[int]:
    """Check a choice of blocks.

    Args:
        layers: block indices, counted from 0.
        depth: number of blocks there are.
        key: configuration key, for messages.
        model_type: the architecture of a student that is made of these blocks.

    Returns:
        The indices as a plain list.

    Raises:
        ConfigError: empty, not integers, out of range, not increasing, or without a first block that the architecture
            needs.
    """
    chosen = list(layers)
    given = f"{key}={chosen}".replace(" ", "")
    if not chosen:
        raise ConfigError(f"{given}: no layers; expected some of 0 to {depth - 1}")
    for layer in chosen:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise ConfigError(f"{given}: {layer!r} is not an integer; expected some of 0 to {depth - 1}")
        if not 0 <= layer < depth:
            raise ConfigError(f"{given}: {layer} is out of range; the {depth} layers are 0 to {depth - 1}")
    if any(later <= earlier for earlier, later in pairwise(chosen)):
        raise ConfigError(f"{given}: must be increasing, e.g. {sorted(set(chosen))}")
    if model_type is not None and ARCHITECTURES[model_type].own_first and chosen[0] != 0:
        raise ConfigError(f"{given}: the first block of a {model_type} differs from the others; begin with 0")
    return chosen


def default_layers(depth: int, count: int | None = None) -> list[int]:
    """Blocks spread evenly over the depth, including the first and the last (DistilBERT: 0 2 4 7 9 11 of 12).

    Args:
        depth: number of blocks to choose from.
        count: number of layers; default half of them.

    Raises:
        ConfigError: `count` is not between 1 and `depth`.
    """
    count = max(1, depth // 2) if count is None else count
    if not 1 <= count <= depth:
        raise ConfigError(f"{count} layers cannot be chosen from {depth}; expected 1 to {depth}")
    if count == 1:
        return [0]
    return [round(i * (depth - 1) / (count - 1)) for i in range(count)]


def vocabularies_fit(one: int, other: int) -> bool:
    """Whether heads of two sizes can belong to one tokenizer.

    They are equal, or the larger one, which may be padded, is a multiple of 8 and fewer than 1024 rows larger. (50257
    and 50304 of GPT-2 fit; 50257 of GPT-2 and 50265 of RoBERTa do not.)
    """
    larger = max(one, other)
    return one == other or (larger % HEAD_MULTIPLE == 0 and abs(one - other) < MAX_HEAD_PADDING)


def check_pair(teacher: ModelSpec, student: ModelSpec) -> list[str]:
    """Errors of a teacher and a student that do not fit each other; empty if they fit.

    Args:
        teacher: facts of the teacher.
        student: facts of the student.
    """
    problems = []
    if teacher.kind != student.kind:
        problems.append(
            f"student.model is a {student.kind} language model ({student.model_type}), "
            f"teacher.model a {teacher.kind} one ({teacher.model_type}): both must be of one kind"
        )
    if not vocabularies_fit(teacher.vocab_size, student.vocab_size):
        problems.append(
            f"student.model has a vocabulary of {student.vocab_size}, "
            f"teacher.model one of {teacher.vocab_size}: both must use one tokenizer"
        )
    return problems


def _size(settings: Mapping[str, Any], architecture: Architecture, name: str, label: str) -> int:
    standard = _STANDARD_NAMES[name]
    for key in (architecture.names.get(name, standard), standard):
        if key in settings:
            return _integer(settings[key], key, label, least=1)
    return architecture.defaults[name]


def _integer(value: object, name: str, label: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ModelError(f"{label}: {name}={value!r} in config.json; expected an integer of at least {least}")
    return value


def _read_json(path: Path, label: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (ValueError, OSError) as error:
        raise ModelError(f"{label}: config.json cannot be read ({error}); expected a JSON object") from error
    if not isinstance(content, dict):
        raise ModelError(f"{label}: config.json holds a {type(content).__name__}; expected a JSON object")
    if not isinstance(content.get("model_type"), str | None):
        raise ModelError(f"{label}: model_type={content['model_type']!r:.60} in config.json; expected a text")
    names = content.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelError(f"{label}: architectures={names!r:.60} in config.json; expected a list of texts")
    return content


def _hub_config(key: str, value: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(value, "config.json")
        if isinstance(cached, str):
            return Path(cached)
        if not hub_answers():
            raise no_network(key, value)
        return Path(hf_hub_download(value, "config.json", etag_timeout=HUB_TIMEOUT_SECONDS))
    # Its errors (no such repository, gated, no such file, bad id) are OSErrors or ValueErrors.
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{key}={value}: no such folder, and no such model on the hub ({reason})") from error
