"""float16 with loss scaling, for GPUs without bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

from potstill.config.running import TrainerConfig

FLOAT16: Literal["16-mixed"] = "16-mixed"


class Float16(MixedPrecision):
    """Autocast to float16; the scale of the loss is part of a checkpoint.

    A `StudentModule` unscales the gradients before it clips them, so they are not unscaled here.

    Args:
        device: type of the device.
    """

    scaler: torch.amp.GradScaler

    def __init__(self, device: str):
        super().__init__(FLOAT16, device, torch.amp.GradScaler(device))

    def optimizer_step(self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any) -> None:  # type: ignore[override]
        """Update the weights, unless a gradient was not finite, and the scale."""
        closure()
        self._after_closure(model, optimizer)
        self.scaler.step(optimizer, **kwargs)
        self.scaler.update()


def precision_of(settings: TrainerConfig) -> dict[str, Any]:
    """The arguments of Lightning's Trainer for `trainer.precision`."""
    if settings.precision != FLOAT16:
        return {"precision": settings.precision, "plugins": []}
    return {"precision": None, "plugins": [Float16("cpu" if settings.accelerator == "cpu" else "cuda")]}


def scaler_of(plugin: Precision) -> torch.amp.GradScaler | None:
    """The scaler of the loss; None if it is not scaled."""
    return plugin.scaler if isinstance(plugin, Float16) else None
