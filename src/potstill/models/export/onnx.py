"""Models of transformers as ONNX files."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.errors import ModelError
from potstill.models.export.comparison import SPANS, Batch, Outputs, largest_difference, random_batches
from potstill.models.export.folders import MODEL_FILE, quiet, require_packages, whole_folder
from potstill.models.export.runtime import ExportedModel, pad_token
from potstill.models.specs import spec_from_settings

TOLERANCE = 1e-4
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    tolerance: float = TOLERANCE,
) -> float:
    """Write a folder with `model.onnx`, `config.json` and the tokenizer's files, whole or not at all.

    The file takes int64 `input_ids` and `attention_mask`, and `token_type_ids` where the model has several types, each
    (batch, length) of any size, and gives float32 `logits`, or `start_logits` and `end_logits` of question answering.
    It is written by torch's exporter of `torch.export` programs, which rejects a model whose sizes it cannot keep
    open; a trace would fix them silently. It is opened and compared with the model on random padded batches
    before the folder appears.

    Args:
        model: of an architecture of `models.specs.ARCHITECTURES`, with a head of `HEADS`; left as it is. What is
            written is float32 and has no dropout.
        tokenizer: its own.
        folder: where to; an earlier one is replaced.
        tolerance: the largest difference to allow, in logits.

    Returns:
        The largest difference of the file's logits from the model's, at real tokens.

    Raises:
        ConfigError: a package is not installed, or the folder cannot be written.
        ModelError: another architecture or head, too large a model, one that cannot be exported, or a difference
            above `tolerance`.
    """
    require_packages("onnx", "onnxscript", "onnxruntime")
    folder, name = Path(folder), type(model).__name__
    spec = spec_from_settings(model.config.to_dict(), name)
    wrapped = _Positional(_plain(model, name))
    batches = [*random_batches(spec.vocab_size, spec.max_length, pad_token(model.config), wrapped.types)]
    with whole_folder(folder) as fresh:
        _write(wrapped, batches[2], fresh / MODEL_FILE, name)
        wrapped.model.config.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        difference = largest_difference(ExportedModel(fresh).run, wrapped.run, iter(batches))
        if not difference <= tolerance:
            raise ModelError(
                f"{name}: the exported model's logits differ from the model's by {difference:.2g}, "
                f"allowed are {tolerance:.2g}; nothing is written"
            )
    return difference


class _Positional(nn.Module):
    """A model that takes its inputs in order and gives plain tensors, as the exporter wants it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.outputs = next(
            outputs for suffix, outputs in HEADS.items() if type(model).__name__.endswith(suffix)
        )
        takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
        self.types = getattr(model.config, "type_vocab_size", 1) if takes_types else 1
        self.inputs = ["input_ids", "attention_mask", *["token_type_ids"] * (self.types > 1)]
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        return tuple(found[name] for name in self.outputs)

    def run(self, batch: Batch) -> Outputs:
        with torch.inference_mode():
            found = self(*(batch[name] for name in self.inputs))
        return dict(zip(self.outputs, found, strict=True))


def _plain(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """A float32 copy on the CPU, with the attention that can be exported and without a cache of keys."""
    if not any(name.endswith(suffix) for suffix in HEADS):
        raise ModelError(f"{name}: this head cannot be exported; one of {', '.join(HEADS)} can")
    gigabytes = sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e9
    if gigabytes * 1e9 >= LARGEST_BYTES:
        raise ModelError(f"{name}: {gigabytes:.1f} GB of weights; an ONNX file holds less than 2.1 GB")
    if name.endswith("ForSequenceClassification") and model.config.pad_token_id is None:
        raise ModelError(
            f"{name}: config.pad_token_id is not set; a batch needs it to find where sequences end"
        )
    plain: Any = copy.deepcopy(model).float().cpu()
    plain.set_attn_implementation("sdpa")
    plain.config.use_cache = False
    plain.config.architectures = [name]  # what save_pretrained of a model writes
    return plain


def _write(wrapped: _Positional, example: Batch, path: Path, name: str) -> None:
    open_sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with quiet(), torch.no_grad():
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
    """Take out what the exporter notes on each node: stack traces, with the paths of this machine."""
    import onnx

    written = onnx.load(path)
    graph = written.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    onnx.save(written, path)
