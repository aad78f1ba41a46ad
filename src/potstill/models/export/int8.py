"""Exported models with weights in int8."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from potstill.errors import ConfigError, ModelError
from potstill.models.export.comparison import largest_difference, random_batches
from potstill.models.export.folders import MODEL_FILE, quiet, require_packages, whole_folder
from potstill.models.export.runtime import ExportedModel, pad_token


def export_int8(source: str | Path, folder: str | Path, *, reduce_range: bool = False) -> float:
    """Write a folder like that of an exported model, with weights in int8; whole or not at all.

    ONNX Runtime's dynamic quantization: linear layers multiply int8 weights, scaled by channel, with activations that
    are scaled when they come, so no data is needed; embeddings are kept in int8 too. One library runs float32 and
    int8 files alike, and the folder stays a single portable file, which packed weights of torch are not. A vocabulary
    projection that is tied to the embeddings is int8 on disk but multiplies in float32. Activations are scaled by
    batch, so a row's logits depend a little on its neighbours.

    Args:
        source: a folder that `export_onnx` wrote.
        folder: where to; an earlier one is replaced.
        reduce_range: weights of 7 bits, for processors without VNNI, where sums of 8-bit products saturate.

    Returns:
        The largest difference of the logits from the float32 model's, at real tokens of random batches.

    Raises:
        ConfigError: a package is not installed, the folder cannot be written, or is the source.
        ModelError: the source holds no exported model, or its int8 logits are not finite.
    """
    require_packages("onnx", "onnxruntime")
    source, folder = Path(source), Path(folder)
    if source.resolve() == folder.resolve():
        raise ConfigError(f"export: {folder} holds the float32 model; choose another folder for int8")
    original = ExportedModel(source)
    config = original.config
    types = getattr(config, "type_vocab_size", 1)
    batches = random_batches(config.vocab_size, original.max_length, pad_token(config), types)
    with whole_folder(folder) as fresh:
        shutil.copytree(source, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MODEL_FILE))
        _quantize(source / MODEL_FILE, fresh / MODEL_FILE, reduce_range)
        difference = largest_difference(ExportedModel(fresh).run, original.run, batches)
        if not math.isfinite(difference):
            raise ModelError(f"{source}: its int8 logits are not finite; nothing is written")
    return difference


def _quantize(source: Path, target: Path, reduce_range: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        # Loaded here, because the quantizer would leave a temporary file beside the source. It turns weights around and
        # then trips over the shapes that the exporter has noted; without these it infers them.
        model = onnx.load(source)
        del model.graph.value_info[:]
        quantize_dynamic(
            model,
            target,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )
