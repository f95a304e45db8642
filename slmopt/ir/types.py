"""Types of values and weights: an element type (plain or quantized storage) and a shape of symbolic dimensions."""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from slmopt.errors import IRError
from slmopt.ir.dims import Dim, parse_dim, product, substitute_dim

__all__ = ["DType", "Element", "QuantizedType", "TensorType", "parse_element", "tensor"]


class DType(StrEnum):
    """A plain element type."""

    f64 = "f64"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    i64 = "i64"
    i32 = "i32"
    i8 = "i8"
    u8 = "u8"
    bool = "bool"

    @property
    def bits(self) -> int:
        """Bits one element takes in memory."""
        return {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32}.get(self.value, 8)

    @property
    def is_float(self) -> builtins.bool:
        """Whether elements are floating-point numbers."""
        return self.value in ("f64", "f32", "f16", "bf16")


@dataclass(frozen=True)
class QuantizedType:
    """Integer codes with float16 scales along the last axis.

    Symmetric: `w = scale * code`, code in [-2^(bits-1), 2^(bits-1)-1]. Asymmetric: `w = scale * code + minimum`,
    code in [0, 2^bits - 1]. `group` counts the inputs that share a scale; None means one scale per row ("channel").
    """

    bits: int
    group: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise IRError(f"a quantized type has 2 to 8 bits, not {self.bits}")
        if self.group is not None and self.group < 1:
            raise IRError(f"a quantized type's group counts at least 1 element, not {self.group}")

    def __str__(self) -> str:
        scope = "c" if self.group is None else f"g{self.group}"
        return f"q{self.bits}{scope}{'' if self.symmetric else 'a'}"

    def groups(self, columns: int) -> int:
        """The number of scales a row of `columns` elements has."""
        return 1 if self.group is None else -(-columns // self.group)

    @property
    def is_float(self) -> bool:
        """Quantized storage stands for real numbers."""
        return True


Element: TypeAlias = DType | QuantizedType


def parse_element(text: str) -> Element:
    """`f32`, `i64`, `q4g32`, `q8c`, `q4g32a`; raises IRError on anything else."""
    match = re.fullmatch(r"q([0-9]{1,2})(?:c|g([0-9]{1,9}))(a?)", text)
    if match:
        return QuantizedType(int(match[1]), int(match[2]) if match[2] else None, not match[3])
    if text not in DType.__members__.values():
        known = ", ".join(DType)
        raise IRError(f"unknown element type {text[:40]!r}: expected one of {known} or quantized such as q4g32")
    return DType(text)


@dataclass(frozen=True)
class TensorType:
    """An element type and a shape; printed as `f32[b, s, 64]`."""

    element: Element
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.element}[{', '.join(map(str, self.shape))}]"

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def elements(self) -> Dim:
        """The number of elements, symbolic where the shape is."""
        return product(self.shape)

    @property
    def bytes(self) -> Dim:
        """Bytes of storage; needs static rows where the element type is quantized."""
        if isinstance(self.element, DType):
            total = self.elements * self.element.bits
            return total // 8 if isinstance(total, int) else (total.divide(8) or 0)
        columns = self.shape[-1]
        if not isinstance(columns, int):
            raise IRError(f"{self} has no static size: the last axis of quantized storage must be a number")
        rows = product(self.shape[:-1])
        scales = self.element.groups(columns) * (2 if self.element.symmetric else 4)
        return rows * (-(-columns * self.element.bits // 8) + scales)

    def with_shape(self, *shape: Dim) -> TensorType:
        """The same element type with another shape."""
        return TensorType(self.element, tuple(shape))

    def with_element(self, element: Element) -> TensorType:
        """The same shape with another element type."""
        return TensorType(element, self.shape)

    def substitute(self, values: Mapping[str, Dim]) -> TensorType:
        """The type with each named dimension replaced."""
        if all(isinstance(dim, int) for dim in self.shape):
            return self
        return TensorType(self.element, tuple(substitute_dim(dim, values) for dim in self.shape))


def tensor(element: Element | str, *shape: Dim | str) -> TensorType:
    """Write types shortly: `tensor("f32", "b", "s", 64)`."""
    dims = tuple(parse_dim(dim) if isinstance(dim, str) else dim for dim in shape)
    return TensorType(parse_element(element) if not isinstance(element, QuantizedType | DType) else element, dims)
