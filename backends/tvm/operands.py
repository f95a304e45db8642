"""What a lowering asks of an op's operands and attributes, or it does not support the op."""

from __future__ import annotations

from slmopt.errors import UnsupportedError
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, Value, Weight
from slmopt.ir.types import DType

__all__ = ["is_quantized", "known_size", "number", "optional_weight", "required_weight", "whole_number", "word"]


def optional_weight(op: Op, index: int) -> Weight | None:
    """An operand that must be a weight, or None where it is absent."""
    operand = op.operands[index] if index < len(op.operands) else None
    if operand is None or isinstance(operand, Weight):
        return operand
    raise UnsupportedError(f"{op.describe()}: operand {index} is computed by the graph; the kernel wants a weight")


def required_weight(op: Op, index: int) -> Weight:
    """An operand that must be a weight."""
    weight = optional_weight(op, index)
    if weight is None:
        raise UnsupportedError(f"{op.describe()}: operand {index} is absent")
    return weight


def known_size(dim: Dim, op: Op) -> int:
    """A dimension that must be a number."""
    if not isinstance(dim, int):
        raise UnsupportedError(f"{op.describe()}: the size {dim} is not known when compiling")
    return dim


def word(op: Op, name: str) -> str | None:
    """An attribute that is a word or absent."""
    value = op.attributes[name]
    return None if value is None else str(value)


def number(op: Op, name: str) -> float | None:
    """An attribute that is a number or absent."""
    value = op.attributes[name]
    return float(value) if isinstance(value, int | float) else None


def whole_number(op: Op, name: str) -> int | None:
    """An attribute that is a whole number or absent."""
    value = op.attributes[name]
    return value if isinstance(value, int) else None


def is_quantized(value: Value) -> bool:
    """Whether a value is stored as codes with scales."""
    return not isinstance(value.type.element, DType)
