"""Exported models in ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from potstill.errors import ConfigError, ModelError, WeightsError
from potstill.models.export.comparison import Batch, Outputs
from potstill.models.specs import spec_from_settings
from potstill.runtime.json_text import read_json
from potstill.runtime.packages import require_packages

MODEL_FILE = "model.onnx"


class ExportedModel(nn.Module):
    """A model from a folder with `model.onnx`, `config.json` and a tokenizer.

    It is a module, so that its latency is measured like that of others, but has no parameters: count parameters, FLOPs
    and memory on the model that was exported.

    Attributes:
        config: of the model that was exported.
        max_length: the longest sequence, in tokens.
        size_mb: of `model.onnx`, in MB (10^6 bytes).
        outputs: names of the outputs: `logits`, or `start_logits` and `end_logits`, or `sentence_embedding`.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        """Open a folder.

        Args:
            folder: written by `export_onnx` or `export_int8`.
            threads: of one pass; None: as many as torch uses, so that both can be compared.

        Raises:
            PackageError: ONNX Runtime is not installed.
            ConfigError: `threads` is not positive.
            WeightsError: the folder holds no exported model, or one that cannot be opened.
        """
        super().__init__()
        require_packages("export", "export", "onnxruntime")
        if threads is not None and threads < 1:
            raise ConfigError(f"export: threads={threads}: a positive number, or null for torch's own")
        self.folder = Path(folder)
        settings = _settings(self.folder)
        self.config: Any = AutoConfig.for_model(**settings)
        self.max_length = spec_from_settings(settings, str(folder)).max_length
        self.size_mb = (self.folder / MODEL_FILE).stat().st_size / 1e6
        self._session = _open(self.folder / MODEL_FILE, threads or torch.get_num_threads())
        self._inputs = [node.name for node in self._session.get_inputs()]
        self.outputs = [node.name for node in self._session.get_outputs()]
        # Measurements find the device and the number of ids here; it has no elements.
        self.ids = nn.Embedding(self.config.vocab_size, 0)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Logits of a batch, or vectors of its texts.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), 1 for real tokens; None: all are real.
            token_type_ids: (batch, length); None: all 0. Ignored by a model with one type.

        Returns:
            (batch, labels) of a classifier of sequences, (batch, length, labels or vocabulary) of other heads;
            (batch, length, 2) of question answering: start, end; (batch, width) of a sentence encoder. float32, on the
            CPU.

        Raises:
            ModelError: a sequence is longer than the model's positions.
        """
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        found = list(self.run({name: tensor for name, tensor in batch.items() if tensor is not None}).values())
        return found[0] if len(found) == 1 else torch.stack(found, dim=-1)

    def run(self, batch: Batch) -> Outputs:
        """Outputs by name; the arguments of `forward` by name, others are ignored.

        Raises:
            ModelError: as `forward`.
        """
        ids_BL = batch["input_ids"]
        if ids_BL.shape[1] > self.max_length:
            raise ModelError(f"{self.folder}: length {ids_BL.shape[1]} exceeds the model's {self.max_length} positions")
        assumed = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
        feed = {}
        for name in self._inputs:
            tensor = batch[name] if name in batch else assumed[name](ids_BL)
            feed[name] = tensor.detach().cpu().long().contiguous().numpy()
        arrays = self._session.run(self.outputs, feed)
        return {name: torch.from_numpy(array) for name, array in zip(self.outputs, arrays, strict=True)}


def pad_token(config: Any) -> int:
    """Padding id; 0 if the configuration has none."""
    return config.pad_token_id or 0


def _settings(folder: Path) -> dict[str, Any]:
    for name in (MODEL_FILE, "config.json"):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder}: has no {name}; expected a folder that an export wrote")
    try:
        settings = read_json(folder / "config.json")
    except ValueError as error:
        raise WeightsError(f"{folder}: config.json is damaged ({error}); export the model again") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise WeightsError(f"{folder}: config.json names no model_type; export the model again")
    return settings


def _open(path: Path, threads: int) -> Any:
    """Open a session of ONNX Runtime."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    problems = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf,
              state.NotImplemented, state.RuntimeException)  # fmt: skip
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except problems as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{path}: cannot be opened ({reason}); export the model again") from error
