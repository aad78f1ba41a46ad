"""`export=onnx`, `export=int8`: forms of a judged model that run without torch, judged beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from potstill.models.export.int8 import export_int8
from potstill.models.export.onnx import export_onnx
from potstill.models.export.runtime import ExportedModel
from potstill.models.load import load_tokenizer
from potstill.validation import stem_of
from potstill.validation.exports import INT8, ONNX

log = logging.getLogger(__name__)


class Deployed(NamedTuple):
    """A form of a model.

    Attributes:
        form: `onnx` or `int8`.
        model: it.
        difference: the largest of its logits from those of the form that it was made of, on random batches.
    """

    form: str
    model: ExportedModel
    difference: float

    @property
    def figures(self) -> dict[str, float]:
        """What a table has of it in place of the model's own."""
        return {"size_mb": self.model.size_mb, "export_difference": self.difference}


def deploy(
    forms: Sequence[str], model: PreTrainedModel, tokenizer: str, folder: Path, name: str
) -> Iterator[Deployed]:
    """Write the wanted forms of a model into `<folder>/export/<name>/<form>`, and open each.

    Args:
        forms: some of `onnx` and `int8`, which is made of the other.
        model: with a head; left as it is.
        tokenizer: the folder of its tokenizer, which goes along.
        folder: of the run.
        name: of the model.

    Raises:
        PotstillError: a model that cannot be exported, or a folder that cannot be written.
    """
    if not forms:
        return
    place = folder / "export" / stem_of(name)
    onnx = place / ONNX
    difference = export_onnx(model, load_tokenizer(tokenizer), onnx)
    if ONNX in forms:
        log.info("%s: its logits are within %.1e of the model's", onnx, difference)
        yield Deployed(ONNX, ExportedModel(onnx), difference)
    if INT8 in forms:
        int8 = place / INT8
        difference = export_int8(onnx, int8)
        log.info("%s: its logits are within %.1e of the float32 ones", int8, difference)
        yield Deployed(INT8, ExportedModel(int8), difference)
