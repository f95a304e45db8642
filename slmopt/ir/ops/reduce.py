"""Ops that combine elements along an axis."""

from __future__ import annotations

from typing import Any

from slmopt.errors import IRError
from slmopt.ir.dims import Dim, dim_symbols, product
from slmopt.ir.graph import Op, operand_type
from slmopt.ir.ops.elementwise import broadcast_shapes
from slmopt.ir.ops.shape import axis_of
from slmopt.ir.spec import OpSpec, Required
from slmopt.ir.types import TensorType

__all__ = ["SPECS"]


def _reduce(op: Op) -> TensorType:
    found = operand_type(op.operands[0])
    axis = axis_of(op, found.rank)
    kept: tuple[Dim, ...] = (1,) if op.attributes["keep"] else ()
    return found.with_shape(*found.shape[:axis], *kept, *found.shape[axis + 1 :])


def _same(op: Op) -> TensorType:
    found = operand_type(op.operands[0])
    axis_of(op, found.rank)
    return found


def _matmul(op: Op) -> TensorType:
    left, right = (operand_type(o) for o in op.operands)
    if left.rank < 2 or right.rank < 2 or left.shape[-1] != right.shape[-2] or left.element != right.element:
        raise IRError(f"{left} and {right} do not multiply: expected [..., m, k] and [..., k, n] of one element type")
    batch = broadcast_shapes(left.shape[:-2], right.shape[:-2]) if left.rank > 2 or right.rank > 2 else ()
    return left.with_shape(*batch, left.shape[-2], right.shape[-1])


def _matmul_flops(op: Op) -> Dim:
    return product(op.results[0].shape) * operand_type(op.operands[0]).shape[-1] * 2


def _mixes_axis(op: Op, symbol: str) -> bool:
    found = operand_type(op.operands[0])
    return symbol in dim_symbols(found.shape[axis_of(op, found.rank)])


def _matmul_mixes(op: Op, symbol: str) -> bool:
    left, right = (operand_type(o) for o in op.operands)
    return symbol in dim_symbols(left.shape[-1]) or symbol in dim_symbols(right.shape[-1])


def _axis(op: Op) -> int:
    axis = op.attributes["axis"]
    return int(axis)  # type: ignore[arg-type]


_KEEP = {"axis": Required(int), "keep": True}
_AXIS = {"axis": Required(int)}


def _reference_reduce(name: str) -> Any:
    def reference(op: Op, x: Any) -> Any:
        return getattr(x, name)(_axis(op), bool(op.attributes["keep"]))

    return reference


SPECS: tuple[OpSpec, ...] = (
    OpSpec("sum", ("x",), _reduce, _reference_reduce("sum"), "sum along an axis", _KEEP, mixes=_mixes_axis),
    OpSpec("mean", ("x",), _reduce, _reference_reduce("mean"), "mean along an axis", _KEEP, mixes=_mixes_axis),
    OpSpec("amax", ("x",), _reduce, _reference_reduce("amax"), "maximum along an axis", _KEEP, mixes=_mixes_axis),
    OpSpec("softmax", ("x",), _same, lambda op, x: x.softmax(_axis(op)), "exp(x) / sum exp(x) along an axis", _AXIS,
           mixes=_mixes_axis),
    OpSpec("cumsum", ("x",), _same, lambda op, x: x.cumsum(_axis(op)), "running sum along an axis", _AXIS,
           mixes=_mixes_axis),
    OpSpec("matmul", ("a", "b"), _matmul, lambda op, a, b: a.matmul(b),
           "matrix product of [..., m, k] and [..., k, n], leading axes broadcast", flops=_matmul_flops,
           mixes=_matmul_mixes),
)  # fmt: skip
