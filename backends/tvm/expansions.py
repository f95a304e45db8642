"""Primitives that are computed as other primitives."""

from __future__ import annotations

from slmopt.backends.tvm.expansion import expansion
from slmopt.errors import UnsupportedError
from slmopt.ir.cursor import Cursor
from slmopt.ir.graph import Op, Value, Weight, operand_type
from slmopt.ir.ops.shape import axis_of

__all__ = ["lower_mean", "lower_softmax"]


@expansion
def lower_mean(at: Cursor, op: Op, x: Value | Weight) -> Value:
    """mean(x) -> sum(x) / n"""
    shape = operand_type(x).shape
    size = shape[axis_of(op, len(shape))]
    if not isinstance(size, int):
        raise UnsupportedError(f"{op.describe()}: no kernel for a mean over {size} numbers, a size not known yet")
    total = at.add("sum", x, axis=op.attributes["axis"], keep=op.attributes["keep"])
    return at.add("mul", total, at.constant(1 / size, x))


@expansion
def lower_softmax(at: Cursor, op: Op, x: Value | Weight) -> Value:
    """softmax(x) -> e / sum(e), e = exp(x - amax(x))"""
    axis = op.attributes["axis"]
    powers = at.add("exp", at.add("sub", x, at.add("amax", x, axis=axis, keep=True)))
    return at.add("div", powers, at.add("sum", powers, axis=axis, keep=True))
