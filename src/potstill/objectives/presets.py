"""Published lists of matches, by name. Imports no torch.

Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, and `examples/matches/matches.py` of its code.
"""

from __future__ import annotations

from typing import Any

from potstill.errors import KeyNameError, PairError
from potstill.models.specs import ModelSpec

EXAMPLE = "[{teacher: 12, student: 3, loss: hidden_mse}]"

# Student layers that are matched, and whether the published student is narrower than its teacher.
_PRESETS = {
    "L3": ((0, 1, 2, 3), 3, False),
    "L3_small": ((0, 1, 2, 3), 3, True),
    "L4": ((0, 1, 2, 3, 4), 4, False),
    "L4_tiny": ((0, 1, 2, 3, 4), 4, True),
    "L6": ((0, 1, 2, 3, 4, 5, 6), 6, False),
    "L12_nano": ((0, 2, 4, 6, 8, 10, 12), 12, True),
    "es": ((2, 4, 6, 8, 10, 12), 12, True),
}
_BY_DEPTH = "textbrewer"  # the preset that the published tables use for a student of this depth
_OF_DEPTH = {3: "L3", 4: "L4", 6: "L6", 12: "L12_nano"}
_UNMATCHED = ("bigru", "electra")  # published without matches
_FORMS = ("hidden_mse", "nst")  # of a preset without a form
_MORE_FORMS = ("fsp", "attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean")
# Names of the published code.
_PUBLISHED = {"L3n": "L3_small", "L3l": "L3", "L4t": "L4_tiny", "small": "L12_nano"}
_PUBLISHED_FORMS = {"hidden_smmd": "nst", "hidden_sgram": "fsp"}
_LAYERS = {"nst": 2, "fsp": 2}  # of each model that a form compares; others compare one


def preset_names() -> list[str]:
    """Every preset that `objective.matches` accepts: of a student, with both forms or with one."""
    return [name + end for name in _PRESETS for end in ("", *(f"_{form}" for form in (*_FORMS, *_MORE_FORMS)))]


def _own_name(name: str) -> str:
    """The name of a preset for one of the published code, `L3_nst` for `L3_hidden_smmd`."""
    base, _, form = name.partition("_hidden_")
    form = f"hidden_{form}" if form else ""
    own = [_PUBLISHED.get(base, base), _PUBLISHED_FORMS.get(form, form)]
    return "_".join(part for part in own if part)


def preset_matches(name: str, teacher: ModelSpec, student: ModelSpec, key: str) -> list[dict[str, Any]]:
    """A published list of matches, with the teacher's layers scaled to its depth."""
    given, name = name, _own_name(name)
    if name == _BY_DEPTH:
        if student.model_type in _UNMATCHED:
            return []
        if student.depth not in _OF_DEPTH:
            depths = ", ".join(map(str, _OF_DEPTH))
            raise PairError(f"{key}={name}: the student has {student.depth} blocks; published for {depths}")
        name = _OF_DEPTH[student.depth]
    if name not in preset_names():
        raise KeyNameError(
            f"{key}={given}: {_BY_DEPTH}, or one of {', '.join(_PRESETS)}, alone or with one of "
            f"{', '.join(f'_{form}' for form in (*_FORMS, *_MORE_FORMS))}; or a list {EXAMPLE}"
        )
    base = next(known for known in sorted(_PRESETS, key=len, reverse=True) if name.startswith(known))
    layers, depth, narrow = _PRESETS[base]
    if student.depth != depth or teacher.depth < depth:
        raise PairError(
            f"{key}={name}: needs a student of {depth} blocks and a teacher of {depth} or more; these models have "
            f"{student.depth} and {teacher.depth}"
        )
    forms = _FORMS if name == base else (name.removeprefix(f"{base}_"),)
    projection = "linear" if narrow or teacher.width != student.width else None
    return [
        {
            "name": f"{form}_{layer}",
            "teacher": [round(layer * teacher.depth / depth)] * _LAYERS.get(form, 1),
            "student": [layer] * _LAYERS.get(form, 1),
            "loss": form,
            "projection": projection if form in ("hidden_mse", "fsp") else None,
        }
        for form in forms
        for layer in layers
        if layer or not form.startswith("attention")  # the embeddings attend to nothing
    ]
