"""Rules that drop ops which change nothing, and merge an op into the one before it."""

from __future__ import annotations

import math

from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, Operand, Value, Weight
from slmopt.ir.ops.shape import slice_bounds
from slmopt.ir.types import DType, TensorType
from slmopt.rewrite import Match, Rewriter, Rule, any_, constant, either, op, replace, rule

__all__ = ["IDENTITIES"]

Found = Value | Weight | None
_X = any_("x")


def _unchanged(at: Rewriter, m: Match) -> Found:
    """The operand, where the result has its type: shape-changing ops that keep the shape."""
    return m["x"] if m["x"].type == m.root.result.type else None


def _permutes(found: Op) -> tuple[int, ...]:
    return found.attributes["axes"]  # type: ignore[return-value]


@rule("permute", op("permute", _X))
def _identity_permute(at: Rewriter, m: Match) -> Found:
    axes = _permutes(m.root)
    return m["x"] if axes == tuple(range(len(axes))) else None


@rule("permute", op("permute", op("permute", _X, bind="inner")))
def _merge_permutes(at: Rewriter, m: Match) -> Found:
    inner = _permutes(m.op("inner"))
    return at.add("permute", m["x"], axes=tuple(inner[axis] for axis in _permutes(m.root)))


@rule("reshape", op("reshape", op("reshape", _X)))
def _merge_reshapes(at: Rewriter, m: Match) -> Found:
    return at.add("reshape", m["x"], shape=m.root.attributes["shape"])


@rule("expand", op("expand", op("expand", _X)))
def _merge_expands(at: Rewriter, m: Match) -> Found:
    return at.add("expand", m["x"], shape=m.root.attributes["shape"])


# --- casts -------------------------------------------------------------------------------------------------------
def _holds(wide: TensorType, narrow: TensorType) -> bool:
    """Whether every number of element type `narrow` is one of `wide`."""
    a, b = wide.element, narrow.element
    if not isinstance(a, DType) or not isinstance(b, DType):
        return False
    if a == b or b == DType.bool:
        return True
    if a.is_float and b.is_float:
        return a.bits > b.bits
    return a.bits > b.bits and not a.is_float and not b.is_float and a != DType.bool


@rule("cast", op("cast", op("cast", _X, bind="inner")))
def _merge_casts(at: Rewriter, m: Match) -> Found:
    if not _holds(m["inner"].type, m["x"].type):
        return None
    return at.add("cast", m["x"], element=m.root.attributes["element"])


# --- slices and concatenations -------------------------------------------------------------------------------------
@rule("slice", op("slice", op("slice", _X, bind="inner")))
def _merge_slices(at: Rewriter, m: Match) -> Found:
    (axis, start, stop, step), inner = slice_bounds(m.root), slice_bounds(m.op("inner"))
    if axis != inner[0] or inner[3] != 1:
        return None
    return at.add("slice", m["x"], axis=axis, start=inner[1] + start, stop=inner[1] + stop, step=step)


def _concat_axis(found: Op) -> int:
    axis = found.attributes["axis"]
    return int(axis) % found.result.type.rank  # type: ignore[arg-type]


def _size(operand: Operand, axis: int) -> Dim:
    return 0 if operand is None else operand.type.shape[axis]


@rule("slice", op("slice", op("concat", ..., bind="whole")))
def _slice_of_concat(at: Rewriter, m: Match) -> Found:
    """A slice that lies within one part reads that part alone."""
    (axis, start, stop, step), whole = slice_bounds(m.root), m.op("whole")
    begin: Dim = 0
    for part in whole.operands if _concat_axis(whole) == axis else ():
        size = _size(part, axis)
        if not isinstance(begin, int) or not isinstance(size, int) or not isinstance(start, int):
            return None
        if begin <= start and isinstance(stop, int) and stop <= begin + size:
            return at.add("slice", part, axis=axis, start=start - begin, stop=stop - begin, step=step)
        begin = begin + size
    return None


@rule("concat", op("concat", ...))
def _simplify_concat(at: Rewriter, m: Match) -> Found:
    """One part is the whole; empty parts vanish; neighbouring slices of one value are one slice."""
    axis, parts = _concat_axis(m.root), list[Operand]()
    for part in m.root.operands:
        joined = _join(at, parts[-1], part, axis) if parts else None
        if joined is not None:
            parts[-1] = joined
        elif _size(part, axis) != 0:
            parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return at.add("concat", *parts, axis=axis) if 1 < len(parts) < len(m.root.operands) else None


def _join(at: Rewriter, left: Operand, right: Operand, axis: int) -> Value | None:
    first, second = (part.op if isinstance(part, Value) else None for part in (left, right))
    if first is None or second is None or not first.name == second.name == "slice":
        return None
    one, other = slice_bounds(first), slice_bounds(second)
    apart = first.operands[0] != second.operands[0] or one[2] != other[1]
    if apart or not one[0] == other[0] == axis or not one[3] == other[3] == 1:
        return None
    return at.add("slice", first.operands[0], axis=axis, start=one[1], stop=other[2])


# --- arithmetic with neutral numbers --------------------------------------------------------------------------------
_ONE = constant(1, tolerance=0.0)
_NEUTRAL = either(
    op("add", _X, constant(0)), op("sub", _X, constant(0)), op("pow", _X, _ONE), op("mul", _X, _ONE),
    op("div", _X, _ONE),
)  # fmt: skip
_TRUE = either(op("logical_and", _X, _ONE), op("logical_or", _X, constant(0)))


@rule("mul", op("mul", op("mul", _X, constant(name="a"), once=True), constant(name="b")))
def _merge_factors(at: Rewriter, m: Match) -> Found:
    """(x a) b -> x (a b), for real numbers."""
    element = m.root.result.type.element
    if not isinstance(m["x"], Value) or not element.is_float or m["x"].type != m.root.result.type:
        return None
    factor = at.add("constant", value=m.number("a") * m.number("b"), element=str(element))
    return at.add("mul", m["x"], factor)


@rule("mean", op(("div", "mul"), op("sum", _X, bind="sum"), constant(name="c")))
def _mean(at: Rewriter, m: Match) -> Found:
    """sum(x) / n -> mean(x), n the number of elements along the axis"""
    total, number = m.op("sum"), m.number("c")
    axis = int(total.attributes["axis"]) % m["x"].type.rank  # type: ignore[arg-type]
    size = m["x"].type.shape[axis]
    factor = 1 / number if m.root.name == "mul" and number else number
    if not isinstance(size, int) or not math.isclose(factor, size, rel_tol=1e-6) or not m["x"].type.element.is_float:
        return None
    return at.add("mean", m["x"], axis=axis, keep=total.attributes["keep"])


IDENTITIES: tuple[Rule, ...] = (
    *(Rule(name, op(name, _X), _unchanged, f"{name}(x) -> x") for name in ("cast", "reshape", "expand", "slice")),
    Rule("neutral", _NEUTRAL, _unchanged, "x + 0, x - 0, x * 1, x / 1, x ** 1 -> x"),
    Rule("neutral", _TRUE, _unchanged, "x and true, x or false -> x"),
    replace("neg", op("neg", op("neg", _X)), _X),
    _identity_permute, _merge_permutes, _merge_reshapes, _merge_expands, _merge_casts, _merge_slices, _slice_of_concat,
    _simplify_concat, _merge_factors, _mean,
)  # fmt: skip
