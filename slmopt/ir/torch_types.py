"""Element types of the IR and of torch, each as the other."""

from __future__ import annotations

import torch

from slmopt.errors import UnsupportedError
from slmopt.ir.types import DType

__all__ = ["element_of", "torch_dtype"]

_TORCH = {
    DType.f64: torch.float64, DType.f32: torch.float32, DType.f16: torch.float16, DType.bf16: torch.bfloat16,
    DType.i64: torch.int64, DType.i32: torch.int32, DType.i8: torch.int8, DType.u8: torch.uint8, DType.bool: torch.bool,
}  # fmt: skip
_ELEMENT = {dtype: element for element, dtype in _TORCH.items()}


def torch_dtype(element: object) -> torch.dtype:
    """The torch dtype of a plain element type."""
    if isinstance(element, str) and element in _TORCH:
        return _TORCH[DType(element)]
    raise UnsupportedError(f"element type {element} has no torch dtype; quantized storage is loaded as QuantizedTensor")


def element_of(dtype: torch.dtype) -> DType:
    """The element type of a torch dtype."""
    if dtype not in _ELEMENT:
        raise UnsupportedError(f"tensors of {dtype} are not supported; expected one of {', '.join(map(str, _ELEMENT))}")
    return _ELEMENT[dtype]
