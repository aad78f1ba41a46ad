"""Folders of sentence encoders in the form of sentence-transformers: how token states become a vector. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import ModelError
from potstill.runtime.json_text import json_text, read_json

MODULES = "modules.json"
COSINE = "cosine"
STATIC = "StaticEmbedding"  # the module whose states of tokens are vectors without context
# Ways to make one vector of the states of the tokens, and their names in 1_Pooling/config.json.
POOLINGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "weighted": "pooling_mode_weightedmean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
}
ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}  # names of their prompts
# Newer releases write one name.
_OTHER_NAMES = {"lasttoken": "last", "weightedmean": "weighted", "mean_sqrt_len_tokens": "mean_sqrt_len"}
ACTIVATIONS = {"Identity": "torch.nn.modules.linear.Identity", "Tanh": "torch.nn.modules.activation.Tanh"}


@dataclass(frozen=True)
class SentenceSettings:
    """How a model makes a vector of a text.

    Attributes:
        pooling: one of `POOLINGS`.
        normalize: whether vectors have length 1.
        dense: name of the folder with a linear layer after the pooling; None without one.
        activation: after that layer, one of `ACTIVATIONS`.
        max_length: tokens of a text, with special tokens; longer ones are cut. None: as many as the model reads.
        lower: whether texts are put into lower case first.
        prompts: texts that are put before a text, by name.
        default_prompt: name of the prompt of texts for which none is chosen; None: none.
        similarity: how two vectors are compared, `cosine`, `dot`, `euclidean` or `manhattan`.
        static: whether the states of tokens are vectors without context, of `StaticEmbedding`.
    """

    pooling: str = "mean"
    normalize: bool = False
    dense: str | None = None
    activation: str = "Identity"
    max_length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = COSINE
    static: bool = False

    def prompt(self, wanted: str | None) -> str:
        """The text before every text: of a prompt's name, or the text itself; None: the default prompt."""
        name = self.default_prompt if wanted is None else wanted
        return "" if name is None else self.prompts.get(name, name)

    def prompt_of(self, role: str, wanted: str | None) -> str:
        """As `prompt`, before a `query` or `document`; None: the prompt of that name, else the default prompt."""
        own = next((name for name in ROLES[role] if name in self.prompts), None)
        return self.prompt(own if wanted is None else wanted)


def sentence_settings(label: str, folder: Path, pooling: str | None = None) -> SentenceSettings:
    """Read how the model of a folder makes a vector of a text.

    Args:
        label: of its key and value, for messages.
        folder: its folder.
        pooling: of a folder without modules.json, which is no sentence encoder by itself.

    Raises:
        ModelError: there is no modules.json and no pooling is given, or a module that is not supported.
    """
    if not (folder / MODULES).is_file():
        if pooling is None:
            raise ModelError(
                f"{label}: has no {MODULES}, so nothing says how token states become a vector; give "
                f"objective.pooling={'|'.join(POOLINGS)}, or the folder of a sentence encoder"
            )
        return SentenceSettings(pooling)
    modules = _json(label, folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(own, dict) for own in modules):
        raise ModelError(f"{label}: {MODULES} is not a list of modules")
    kinds = [str(own.get("type", "")).rpartition(".")[2] for own in modules]
    if kinds[:1] == [STATIC]:
        return _static_settings(label, folder, modules, kinds)
    known = (["Transformer", "Pooling"], ["Dense"], ["Normalize"])
    expected = [name for part in known for name in part if name in kinds or name in known[0]]
    if kinds != expected:
        raise ModelError(
            f"{label}: has the modules {', '.join(kinds)}; supported are Transformer, Pooling, then Dense and "
            "Normalize if wanted, in this order"
        )
    places = dict(zip(kinds, (str(own.get("path", "")) for own in modules), strict=True))
    if places["Transformer"]:
        raise ModelError(
            f"{label}: its transformer is in the folder '{places['Transformer']}'; put config.json, weights and "
            "tokenizer beside modules.json"
        )
    own = _object(label, folder / "sentence_bert_config.json")
    further = _further(label, folder)
    dense = _object(label, folder / places["Dense"] / "config.json") if "Dense" in places else {}
    activation = str(dense.get("activation_function", "Identity")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise ModelError(f"{label}: its Dense has the activation {activation}; one of {', '.join(ACTIVATIONS)}")
    return SentenceSettings(
        pooling=_pooling(
            label, _object(label, folder / places["Pooling"] / "config.json"), any(further["prompts"].values())
        ),
        normalize="Normalize" in kinds,
        dense=places.get("Dense"),
        activation=activation,
        max_length=own.get("max_seq_length"),
        lower=bool(own.get("do_lower_case")),
        **further,
    )


def _static_settings(label: str, folder: Path, modules: list[Mapping[str, Any]], kinds: list[str]) -> SentenceSettings:
    if kinds[1:] not in ([], ["Normalize"]) or modules[0].get("path"):
        raise ModelError(
            f"{label}: has the modules {', '.join(kinds)}; supported are {STATIC}, in the folder itself, then "
            "Normalize if wanted"
        )
    return SentenceSettings(normalize="Normalize" in kinds, static=True, **_further(label, folder))


def _further(label: str, folder: Path) -> dict[str, Any]:
    """Prompts and similarity of a folder."""
    own = _object(label, folder / "config_sentence_transformers.json")
    return {
        "prompts": {str(name): str(text) for name, text in (own.get("prompts") or {}).items()},
        "default_prompt": own.get("default_prompt_name"),
        "similarity": own.get("similarity_fn_name") or COSINE,
    }


def write_sentence_settings(settings: SentenceSettings, folder: Path, width: int) -> None:
    """Write the files that make a folder of transformers one of sentence-transformers, but for the weights of a Dense.

    Args:
        settings: of the model.
        folder: with config.json, weights and tokenizer.
        width: of the states that are pooled.
    """
    files: dict[str, Any] = {
        "config_sentence_transformers.json": {
            "prompts": dict(settings.prompts),
            "default_prompt_name": settings.default_prompt,
            "similarity_fn_name": settings.similarity,
        }
    }
    if settings.static:
        names = [STATIC]
    else:
        names = ["Transformer", "Pooling"] + ["Dense"] * (settings.dense is not None)
        pooling = {name: way == settings.pooling for way, name in POOLINGS.items()}
        files |= {
            "1_Pooling/config.json": {"word_embedding_dimension": width, **pooling, "include_prompt": True},
            "sentence_bert_config.json": {"max_seq_length": settings.max_length, "do_lower_case": settings.lower},
        }
    names += ["Normalize"] * settings.normalize
    files[MODULES] = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{name}" if number else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for number, name in enumerate(names)
    ]
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json_text(content, indent=2), encoding="utf-8")
    if settings.normalize:
        (folder / files[MODULES][-1]["path"]).mkdir()


def _pooling(label: str, config: Mapping[str, Any], prompted: bool) -> str:
    if prompted and config.get("include_prompt") is False:
        raise ModelError(f"{label}: leaves its prompt out of the pooling (include_prompt), which is not supported")
    given = config.get("pooling_mode")
    if given is not None:
        names = [given] if isinstance(given, str) else list(given)
        ways = [_OTHER_NAMES.get(str(name), str(name)) for name in names]
    else:
        ways = [way for way, name in POOLINGS.items() if config.get(name)]
    if len(ways) != 1 or ways[0] not in POOLINGS:
        raise ModelError(f"{label}: has the poolings {', '.join(ways) or 'none'}; one of {', '.join(POOLINGS)}")
    return ways[0]


def _object(label: str, path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    found = _json(label, path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ModelError(f"{label}: {path.name} is not a JSON object")
    return found


def _json(label: str, path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{label}: {path.name} cannot be read ({error})") from error
