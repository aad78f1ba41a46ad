"""The matrix products of a step, alone: what no implementation of the same arithmetic can be faster than.

They are recorded while the step runs, and repeated in the same order on random numbers of the same shapes, strides and
types, by the same kernels. Casts, additions, norms, softmaxes, dropout and the optimizer are left out.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {aten.mm.default: 0, aten.addmm.default: 1, aten.bmm.default: 0, aten.baddbmm.default: 1}
FLASH = aten._scaled_dot_product_flash_attention_for_cpu.default
FLASH_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
Place = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, strides, type


class Recorder(TorchDispatchMode):
    """Records the operands of all matrix products, those of fused attention as batched ones."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Place, Place]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            first, second = args[PRODUCTS[func] :][:2]
            self.products.append((_place(first), _place(second)))
        elif func in (FLASH, FLASH_BACKWARD):
            query, key, value = (x.flatten(0, 1) for x in args[func is FLASH_BACKWARD :][:3])
            scores = query.new_empty(len(query), query.shape[1], key.shape[1])
            pairs = [(query, key.mT), (scores, value)]
            if func is FLASH_BACKWARD:  # scores again; gradients of value, scores, query and key
                pairs = [pairs[0], (scores.mT, value), (query, value.mT), (scores, key), (scores.mT, query)]
            self.products += [(_place(first), _place(second)) for first, second in pairs]
        return func(*args, **(kwargs or {}))


def recorded(step: Callable[[], Any]) -> tuple[list[tuple[Place, Place]], Any]:
    """The products of a step, and what it returns."""
    with Recorder() as recorder:
        result = step()
    return recorder.products, result


def seconds_of(products: list[tuple[Place, Place]]) -> float:
    """Seconds that the products take, one after the other."""
    places = {place for pair in products for place in pair}
    operands = {place: _operand(*place) for place in places}
    begun = time.perf_counter()
    with torch.no_grad():
        for first, second in products:
            torch.matmul(operands[first], operands[second])
    return time.perf_counter() - begun


def _place(tensor: Tensor) -> Place:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _operand(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.randn(length, dtype=dtype).as_strided(shape, strides)
