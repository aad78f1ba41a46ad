"""`export=onnx`, `export=int8`: exports of a model, evaluated beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from potstill.models.export.onnx import export_int8, export_onnx
from potstill.models.export.runtime import ExportedModel
from potstill.models.load import load_tokenizer
from potstill.models.sentence import EncoderModule
from potstill.validation.exports import INT8, ONNX
from potstill.validation.names import stem_of

log = logging.getLogger(__name__)


class Deployed(NamedTuple):
    """An exported model.

    Attributes:
        form: `onnx` or `int8`.
        model: the exported model.
        difference: largest difference of its logits, or vectors, from the model that it was exported from, on random
            batches.
    """

    form: str
    model: ExportedModel
    difference: float

    @property
    def figures(self) -> dict[str, float]:
        """Figures that differ from those of the original model."""
        return {"size_mb": self.model.size_mb, "export_difference": self.difference}


def deploy(
    forms: Sequence[str], model: PreTrainedModel | EncoderModule, tokenizer: str, folder: Path, name: str
) -> Iterator[Deployed]:
    """Export a model to `<folder>/export/<name>/<form>`, and open each export.

    Args:
        forms: some of `onnx` and `int8`; the latter is quantized from the former.
        model: with a head, or a sentence encoder.
        tokenizer: folder of its tokenizer, which is copied.
        folder: of the run.
        name: of the model.

    Raises:
        PotstillError: the model cannot be exported, or the folder cannot be written.
    """
    if not forms:
        return
    target = folder / "export" / stem_of(name)
    onnx = target / ONNX
    difference = export_onnx(model, load_tokenizer(tokenizer), onnx)
    if ONNX in forms:
        log.info("%s: its outputs are within %.1e of the model's", onnx, difference)
        yield Deployed(ONNX, ExportedModel(onnx), difference)
    if INT8 in forms:
        int8 = target / INT8
        difference = export_int8(onnx, int8)
        log.info("%s: its outputs are within %.1e of the float32 ones", int8, difference)
        yield Deployed(INT8, ExportedModel(int8), difference)
