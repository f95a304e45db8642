"""Ops that combine elements along an axis."""

from __future__ import annotations

from typing import Any

from slmopt.errors import IRError
from slmopt.ir.dims import Dim, dim_symbols, product
from slmopt.ir.graph import Op, operand_type
from slmopt.ir.linking import AxisLinker
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
        found = getattr(x, name)(_axis(op), bool(op.attributes["keep"]))
        return found.to(x.dtype)  # torch sums small integers in i64

    return reference


_REDUCED = (
    " `axis` may be negative: counted from the end. With `keep` the axis stays, of size 1; else it goes. The result "
    "has the element type of x."
)
_ALONG = " `axis` may be negative: counted from the end. The result has the type of x."


def _reduced(name: str) -> str:
    return f"%x: f32[b, s, 8] -> {name}(%x) {{axis = 2, keep = true}} : f32[b, s, 1]"


def _couple_reduced(axes: AxisLinker, op: Op) -> None:
    """Along other axes each position is reduced by itself."""
    x = axes.operand(0)
    axis: Any = op.attributes["axis"]
    axis %= len(axes.shape(x))
    gone = len(axes.shape(x)) - len(axes.shape(axes.result))
    axes.block(x, axis, "combines its positions")
    for index in range(len(axes.shape(x))):
        if index != axis:
            axes.link(x, index, axes.result, index - gone if index > axis else index)
    if not gone:
        axes.block(axes.result, axis, "combines its positions")


def _couple_matmul(axes: AxisLinker, op: Op) -> None:
    left, right = op.operands
    axes.link(left, -1, right, -2)
    axes.link(left, -2, axes.result, -2)
    axes.link(right, -1, axes.result, -1)
    ranks = [len(axes.shape(operand)) for operand in (left, right, axes.result)]
    for operand, rank in ((left, ranks[0]), (right, ranks[1])):
        for back in range(3, rank + 1):
            if axes.shape(operand)[-back] == axes.shape(axes.result)[-back]:
                axes.link(operand, -back, axes.result, -back)


SPECS: tuple[OpSpec, ...] = (
    OpSpec("sum", ("x",), _reduce, _reference_reduce("sum"), "sum along an axis", _KEEP, mixes=_mixes_axis,
           couple=_couple_reduced,
           meaning="The sum of the elements along `axis`, 0 of none." + _REDUCED, example=_reduced("sum")),
    OpSpec("mean", ("x",), _reduce, _reference_reduce("mean"), "mean along an axis", _KEEP, mixes=_mixes_axis,
           couple=_couple_reduced,
           meaning="The sum along `axis`, divided by the number of elements; x is real." + _REDUCED,
           example=_reduced("mean")),
    OpSpec("amax", ("x",), _reduce, _reference_reduce("amax"), "maximum along an axis", _KEEP, mixes=_mixes_axis,
           couple=_couple_reduced,
           meaning="The largest element along `axis`, which is not empty; NaN where there is one." + _REDUCED,
           example=_reduced("amax")),
    OpSpec("softmax", ("x",), _same, lambda op, x: x.softmax(_axis(op)), "exp(x) / sum exp(x) along an axis", _AXIS,
           mixes=_mixes_axis,
           couple=_couple_reduced,
           meaning="exp(x - m) / sum(exp(x - m)), m the maximum along `axis`; x is real. All -inf gives NaN." + _ALONG,
           example="%x: f32[b, 4, s, s] -> softmax(%x) {axis = 3} : f32[b, 4, s, s]"),
    OpSpec("cumsum", ("x",), _same, lambda op, x: x.cumsum(_axis(op)).to(x.dtype), "running sum along an axis", _AXIS,
           mixes=_mixes_axis, couple=_couple_reduced,
           meaning="Element i is the sum of the elements 0 to i along `axis`." + _ALONG,
           example="%x: f32[b, s] -> cumsum(%x) {axis = 1} : f32[b, s]"),
    OpSpec("matmul", ("a", "b"), _matmul, lambda op, a, b: a.matmul(b),
           "matrix product of [..., m, k] and [..., k, n], leading axes broadcast", flops=_matmul_flops,
           mixes=_matmul_mixes,
           couple=_couple_matmul,
           meaning="result[..., i, j] = sum over l of a[..., i, l] b[..., l, j]. a and b have at least two axes and "
                   "one "
                   "element type, the result's; the axes before the last two broadcast as in numpy.",
           example="%a: f32[b, 4, s, 8], %b: f32[b, 1, 8, s] -> matmul(%a, %b) : f32[b, 4, s, s]"),
)  # fmt: skip
