"""Weights for modules that have none, such as IR text: absent ones that say so, or drawn ones for numeric checks."""

from __future__ import annotations

import math
import zlib
from typing import Any

from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ir.types import QuantizedType, TensorType
from slmopt.ir.weights import QuantizedTensor, WeightSource

__all__ = ["add_stand_ins"]


def add_stand_ins(module: Module, *, drawn: bool = False) -> None:
    """Put every weight that ops name and the store lacks into the store.

    Without `drawn`, passes can derive from them and their types are checked, but whoever asks for numbers gets an
    InputError. With it, they are random numbers of about the size of trained ones, the same for the same key.
    """
    for key, type in module.weight_types().items():
        if key not in module.weights:
            source = _Drawn(key, type) if drawn else _Absent(key)
            module.weights.add(key, WeightSource(type, "drawn" if drawn else "named by IR text", source))


class _Absent:
    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self) -> Any:
        raise InputError(f"the numbers of weight @{self.key} are needed and IR text has none: "
                         "give the model's directory, or draw random ones with --check")  # fmt: skip


class _Drawn:
    def __init__(self, key: str, type: TensorType) -> None:
        self.key, self.type = key, type

    def __call__(self) -> Any:
        import torch

        from slmopt.ir.torch_types import torch_dtype

        generator = torch.Generator().manual_seed(zlib.crc32(self.key.encode()))
        shape = [int(dim) for dim in self.type.shape]  # type: ignore[arg-type]
        element = self.type.element
        if isinstance(element, QuantizedType):
            return _draw_codes(element, shape, generator)
        if not element.is_float:
            return torch.zeros(shape, dtype=torch_dtype(element))
        if len(shape) < 2:  # norms multiply by numbers near 1
            return (1 + 0.1 * torch.randn(shape, generator=generator)).to(torch_dtype(element))
        return (torch.randn(shape, generator=generator) / math.sqrt(max(shape[-1], 1))).to(torch_dtype(element))


def _draw_codes(type: QuantizedType, shape: list[int], generator: Any) -> QuantizedTensor:
    import torch

    low = -(1 << (type.bits - 1)) if type.symmetric else 0
    kind = torch.int8 if type.symmetric else torch.uint8
    codes = torch.randint(low, low + (1 << type.bits), shape, generator=generator).to(kind)
    groups = [*shape[:-1], type.groups(shape[-1])]
    scale = 1 / (math.sqrt(max(shape[-1], 1)) * (1 << (type.bits - 1)))
    scales = torch.full(groups, scale, dtype=torch.float16)
    return QuantizedTensor(type, codes, scales, None if type.symmetric else -scales * (1 << (type.bits - 1)))
