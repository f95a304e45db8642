"""Random weights of every type, as the store gives them, packed, and as the float32 numbers they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.packing import pack_chunks, packed_bytes
from slmopt.ir.torch_types import torch_dtype
from slmopt.ir.types import Element, QuantizedType
from slmopt.ir.weights import QuantizedTensor
from tests.backends.native import aligned

__all__ = ["PackedWeight", "make_weight"]


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [rows, columns]: its packed bytes and its values."""

    element: Element
    packed: np.ndarray
    values: np.ndarray


def make_weight(
    isa: Isa, element: Element, rows: int, columns: int, random: np.random.Generator, *, whole: bool = False
) -> PackedWeight:
    """Random codes over their whole range, or normal floats, or `whole` ones from -99 to 99."""
    weight: Any
    if isinstance(element, QuantizedType):
        weight = _quantized(element, rows, columns, random)
        values = weight.dequantize()
    else:
        numbers = random.integers(-99, 100, (rows, columns)) if whole else random.normal(size=(rows, columns))
        weight = torch.from_numpy(numbers.astype(np.float32)).to(torch_dtype(element))
        values = weight.float()
    data = np.frombuffer(b"".join(pack_chunks(isa, element, weight)), np.uint8)
    if len(data) != packed_bytes(isa, element, rows, columns):
        raise ValueError(f"{element} [{rows}, {columns}] packs to {len(data)} bytes, not to what packed_bytes says")
    return PackedWeight(element, aligned(data), values.numpy())


def _quantized(element: QuantizedType, rows: int, columns: int, random: np.random.Generator) -> QuantizedTensor:
    half = 1 << element.bits - 1
    low, high, kind = (-half, half, np.int8) if element.symmetric else (0, 2 * half, np.uint8)
    codes = torch.from_numpy(random.integers(low, high, (rows, columns)).astype(kind))
    codes[0] = low  # the extremes meet: no intermediate sum may overflow
    codes[-1] = high - 1
    scales = torch.from_numpy(random.uniform(0.01, 0.1, (rows, element.groups(columns))).astype(np.float16))
    minimum = None if element.symmetric else torch.from_numpy(random.normal(size=scales.shape).astype(np.float16))
    return QuantizedTensor(element, codes, scales, minimum)
