"""Export of models of transformers to ONNX files, in float32 and in int8."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import ConfigError, ModelError
from potstill.models.export.comparison import SPANS, Batch, Outputs, largest_difference, random_batches
from potstill.models.export.runtime import MODEL_FILE, ExportedModel, pad_token
from potstill.models.folders import fresh_folder
from potstill.models.sentence import EncoderModule, SentenceEncoder
from potstill.models.sentence_folders import SentenceSettings
from potstill.models.specs import spec_from_settings
from potstill.models.students import set_attention
from potstill.runtime.packages import require_packages

TOLERANCE = 1e-4  # in logits, or numbers of a vector
VECTOR = "sentence_embedding"  # output of a sentence encoder
LARGEST_BYTES = 2**31  # of a protocol buffer, which an ONNX file is

HEADS = {
    "ForSequenceClassification": ("logits",),
    "ForTokenClassification": ("logits",),
    "ForQuestionAnswering": SPANS,
    "ForMaskedLM": ("logits",),
    "ForCausalLM": ("logits",),
    "LMHeadModel": ("logits",),
}


def export_onnx(
    model: PreTrainedModel | EncoderModule, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> float:
    """Write a folder with `model.onnx`, `config.json` and the tokenizer's files, in one step.

    The inputs of the file are int64 `input_ids` and `attention_mask`, and `token_type_ids` if the model has several
    types, each (batch, length) of any size; the outputs are float32 `logits`, or `start_logits` and `end_logits` for
    question answering. A sentence encoder has no `token_type_ids`, and gives `sentence_embedding`, (batch, width),
    after pooling, linear layer and norm. torch's exporter of `torch.export` programs writes the file, which rejects a
    model whose sizes cannot be dynamic; a trace would fix them silently. Before the folder appears, the file is opened
    and compared with the model on random padded batches.

    Args:
        model: of an architecture of `models.specs.ARCHITECTURES`, with a head of `HEADS`, or a sentence encoder;
            unchanged. The file is float32 without dropout.
        tokenizer: of the model.
        folder: where to; an earlier one is replaced.

    Returns:
        The largest difference of the file's logits from the model's, at real tokens, or of its vectors.

    Raises:
        PackageError: a package is not installed.
        WriteError: the folder cannot be written.
        ModelError: another architecture or head, a model that is too large or cannot be exported, or a difference
            above `TOLERANCE`.
    """
    require_packages("export", "export", "onnx", "onnxscript", "onnxruntime")
    settings = model.encoder.settings if isinstance(model, EncoderModule) else None
    source: PreTrainedModel = model.model if isinstance(model, EncoderModule) else model
    folder, name = Path(folder), type(source).__name__
    spec = spec_from_settings(source.config.to_dict(), name)
    if settings is None and not any(name.endswith(suffix) for suffix in HEADS):
        raise ModelError(f"{name}: this head cannot be exported; expected one of {', '.join(HEADS)}")
    plain = _plain(source, name)
    wrapped = _Positional(plain) if settings is None else _PositionalEncoder(plain, settings)
    batches = [*random_batches(spec.vocab_size, spec.max_length, pad_token(model.config), wrapped.types)]
    with fresh_folder(folder) as fresh:
        _write(wrapped, batches[2], fresh / MODEL_FILE, name)
        wrapped.model.config.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        difference = largest_difference(ExportedModel(fresh).run, wrapped.run, iter(batches))
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{name}: the exported model's outputs differ from the model's by {difference:.2g}, more than "
                f"{TOLERANCE:.2g}; nothing is written"
            )
    return difference


def export_int8(source: str | Path, folder: str | Path) -> float:
    """Write a folder like that of an exported model, with weights in int8, in one step.

    ONNX Runtime's dynamic quantization: linear layers multiply int8 weights, scaled by channel, with activations that
    are scaled at run time, so no data is needed; embeddings are int8 too. The same library runs float32 and int8
    files, and the folder stays portable, unlike packed weights of torch. A vocabulary projection that is tied to the
    embeddings is int8 on disk but multiplies in float32. Activations are scaled by batch, so the logits of a row depend
    slightly on the other rows. If sums of 8-bit products saturate on this processor (x86 without VNNI), weights have 7
    bits.

    Args:
        source: a folder that `export_onnx` wrote.
        folder: where to; an earlier one is replaced.

    Returns:
        The largest difference of the logits from the float32 model's, at real tokens of random batches.

    Raises:
        PackageError: a package is not installed.
        ConfigError: the folder is the source.
        WriteError: the folder cannot be written.
        WeightsError: the source holds no exported model.
        ModelError: its int8 logits are not finite.
    """
    require_packages("export", "export", "onnx", "onnxruntime")
    source, folder = Path(source), Path(folder)
    if source.resolve() == folder.resolve():
        raise ConfigError(f"export: {folder} holds the float32 model; choose another folder for int8")
    original = ExportedModel(source)
    config = original.config
    types = getattr(config, "type_vocab_size", 1)
    batches = random_batches(config.vocab_size, original.max_length, pad_token(config), types)
    with fresh_folder(folder) as fresh:
        shutil.copytree(source, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MODEL_FILE))
        _quantize(source / MODEL_FILE, fresh / MODEL_FILE)
        difference = largest_difference(ExportedModel(fresh).run, original.run, batches)
        if not math.isfinite(difference):
            raise ModelError(f"{source}: its int8 logits are not finite; nothing is written")
    return difference


class _Positional(nn.Module):
    """A model with positional inputs and plain tensors as outputs, as the exporter needs it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.outputs, self.types = self.signature()
        self.inputs = ["input_ids", "attention_mask", *["token_type_ids"] * (self.types > 1)]
        self.eval()

    def signature(self) -> tuple[tuple[str, ...], int]:
        """Names of the outputs, and the number of token types."""
        name = type(self.model).__name__
        takes_types = "token_type_ids" in inspect.signature(self.model.forward).parameters
        types = getattr(self.model.config, "type_vocab_size", 1) if takes_types else 1
        return next(outputs for suffix, outputs in HEADS.items() if name.endswith(suffix)), types

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        return tuple(found[name] for name in self.outputs)

    def run(self, batch: Batch) -> Outputs:
        with torch.inference_mode():
            found = self(*(batch[name] for name in self.inputs))
        return dict(zip(self.outputs, found, strict=True))


class _PositionalEncoder(_Positional):
    """The same of a sentence encoder."""

    def __init__(self, model: PreTrainedModel, settings: SentenceSettings) -> None:
        super().__init__(model)
        self.encoder = SentenceEncoder(model, settings)

    def signature(self) -> tuple[tuple[str, ...], int]:
        """See `_Positional`; all tokens are of the first type."""
        return (VECTOR,), 1

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (self.encoder(*tensors),)


def _plain(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """A float32 copy on the CPU, with attention that can be exported and without a cache of keys and values."""
    gigabytes = sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e9
    if gigabytes * 1e9 >= LARGEST_BYTES:
        raise ModelError(f"{name}: {gigabytes:.1f} GB of weights; an ONNX file holds less than 2.1 GB")
    if name.endswith("ForSequenceClassification") and model.config.pad_token_id is None:
        raise ModelError(f"{name}: config.pad_token_id is not set; a batch needs it to find where sequences end")
    plain: Any = copy.deepcopy(model).float().cpu()
    set_attention(plain, "sdpa")
    plain.config.use_cache = False
    plain.config.architectures = [name]  # what save_pretrained of a model writes
    return plain


def _write(wrapped: _Positional, example: Batch, path: Path, name: str) -> None:
    open_sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet(), torch.no_grad():
        try:
            torch.onnx.export(
                wrapped,
                tuple(example[key] for key in wrapped.inputs),
                path,
                input_names=wrapped.inputs,
                output_names=list(wrapped.outputs),
                dynamic_shapes=(tuple(open_sizes for _ in wrapped.inputs),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise ModelError(f"{name}: cannot be exported ({reason})") from error
    _strip(path)


def _strip(path: Path) -> None:
    """Remove the exporter's metadata of each node: stack traces with the paths of this machine."""
    import onnx

    written = onnx.load(path)
    graph = written.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    onnx.save(written, path)


def _quantize(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        # Loaded here, because the quantizer would leave a temporary file beside the source. It transposes weights, in
        # contradiction to the shapes that the exporter has recorded; without these it infers them.
        model = onnx.load(source)
        del model.graph.value_info[:]
        settings = {"per_channel": True, "weight_type": QuantType.QInt8, "reduce_range": _products_saturate()}
        quantize_dynamic(model, target, **settings)


def _products_saturate() -> bool:
    """Whether sums of 8-bit products saturate on this processor."""
    return torch.cpu._is_avx2_supported() and not torch.cpu._is_vnni_supported()


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and log lines of the exporter and the quantizer within the context."""
    root, disabled = logging.getLogger(), logging.root.manager.disable
    # Without a handler, logging.warning() would install one of its own.
    root.addHandler(handler := logging.NullHandler())
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)
