"""The pass `raise-rope`: rotary position embedding, by halves or by neighbouring pairs, of all or part of a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, Operand, Value
from slmopt.ir.ops.shape import slice_bounds
from slmopt.rewrite import Match, Pattern, RewritePass, Rewriter, Rule, any_, on_last_axis, op, rule

__all__ = ["RULES", "RaiseRope"]


@dataclass(frozen=True)
class _Part:
    """Elements start, start + step, ... below stop of the last axis of `source`."""

    source: Operand
    start: Dim
    stop: Dim
    step: int = 1


def _part(operand: Operand) -> _Part:
    """What an operand shows of another one's last axis: all of itself where it is no such slice."""
    made_by = operand.op if isinstance(operand, Value) else None
    if made_by is not None and made_by.name == "slice":
        axis, start, stop, step = slice_bounds(made_by)
        if axis == made_by.result.type.rank - 1:
            return _Part(made_by.operands[0], start, stop, step)
    return _Part(operand, 0, operand.type.shape[-1] if operand is not None else 0)


def _halves(operand: Operand) -> tuple[_Part, _Part] | None:
    whole = _part(operand)
    if whole.step != 1 or not isinstance(whole.start, int) or not isinstance(whole.stop, int):
        return None
    middle = (whole.start + whole.stop) // 2
    return _Part(whole.source, whole.start, middle), _Part(whole.source, middle, whole.stop)


def _pairs(operand: Operand) -> tuple[_Part, _Part] | None:
    whole = _part(operand)
    if whole.step != 1 or not isinstance(whole.start, int) or not isinstance(whole.stop, int):
        return None
    return tuple(_Part(whole.source, whole.start + offset, whole.stop, 2) for offset in (0, 1))  # type: ignore[return-value]


def _count(part: _Part) -> Dim:
    length = part.stop - part.start
    return -(-length // part.step) if isinstance(length, int) else length


def _same(found: _Part, expected: _Part) -> bool:
    """Equal elements: the end may differ by less than a step."""
    if (found.source, found.start, found.step) != (expected.source, expected.start, expected.step):
        return False
    return _count(found) == _count(expected)


def _fits(x: Operand, cos: Operand, sin: Operand) -> bool:
    """Cosines and sines of one type, one for each element of the last axis, that broadcast to x."""
    if x is None or cos is None or sin is None or cos.type != sin.type or cos.type.shape[-1:] != x.type.shape[-1:]:
        return False
    outer, inner = cos.type.shape[:-1], x.type.shape[:-1]
    aligned = inner[len(inner) - len(outer) :]
    return len(outer) <= len(inner) and all(a in (1, b) for a, b in zip(outer, aligned, strict=True))


def _turn(x: Pattern, rotated: Pattern) -> Pattern:
    return op("add", op("mul", x, any_("cos")), op("mul", rotated, any_("sin")))


_ROTATED_HALVES = op("concat", op("neg", any_("second")), any_("first"), where=on_last_axis)


@rule("rope", _turn(any_("x"), _ROTATED_HALVES))
def _by_halves(at: Rewriter, m: Match) -> Value | None:
    """x cos + (-x2, x1) sin -> rope(x), x = (x1, x2)"""
    halves = _halves(m["x"])
    if halves is None or not _fits(m["x"], m["cos"], m["sin"]):
        return None
    if not _same(_part(m["first"]), halves[0]) or not _same(_part(m["second"]), halves[1]):
        return None
    return at.add("rope", m["x"], m["cos"], m["sin"], style="half")


def _interleaved(even: Pattern, odd: Pattern) -> Pattern:
    """stack((even, odd), -1).flatten(-2)"""
    stacked = op("concat", op("reshape", even, bind="left"), op("reshape", odd, bind="right"), where=on_last_axis)
    return op("reshape", stacked, bind="flat")


def _is_interleaving(flat: Value, left: Value, right: Value) -> bool:
    """[..., n], [..., n] -> [..., n, 1], [..., n, 1] -> [..., 2 n]"""
    inner = [part.op.operands[0].type.shape for part in (left, right) if part.op and part.op.operands[0] is not None]
    if len(inner) != 2 or inner[0] != inner[1] or not inner[0]:
        return False
    return left.shape == right.shape == (*inner[0], 1) and flat.shape == (*inner[0][:-1], inner[0][-1] * 2)


@rule("rope", _turn(any_("x"), _interleaved(op("neg", any_("odd")), any_("even"))))
def _by_pairs(at: Rewriter, m: Match) -> Value | None:
    """x cos + (-x1, x0, -x3, x2, ...) sin -> rope(x), by neighbouring pairs"""
    pairs = _pairs(m["x"])
    if pairs is None or not _fits(m["x"], m["cos"], m["sin"]):
        return None
    if not _is_interleaving(m.value("flat"), m.value("left"), m.value("right")):
        return None
    if not _same(_part(m["even"]), pairs[0]) or not _same(_part(m["odd"]), pairs[1]):
        return None
    return at.add("rope", m["x"], m["cos"], m["sin"], style="interleaved")


def _turned_parts(first: str, second: str) -> tuple[Pattern, Pattern]:
    """(first cos - second sin, second cos + first sin)"""
    a, b, cos, sin = any_(first), any_(second), any_("cos"), any_("sin")
    return op("sub", op("mul", a, cos), op("mul", b, sin)), op("add", op("mul", b, cos), op("mul", a, sin))


@rule("rope", op("concat", *_turned_parts("first", "second"), where=on_last_axis))
def _halves_apart(at: Rewriter, m: Match) -> Value | None:
    """(x1 cos - x2 sin, x2 cos + x1 sin) -> rope(x), cosines and sines of half the width"""
    first, second = _part(m["first"]), _part(m["second"])
    apart = first.source != second.source or first.stop != second.start or not first.step == second.step == 1
    if apart or not _fits(m["first"], m["cos"], m["sin"]) or m["first"].type != m["second"].type:
        return None
    x = _slice(at, first.source, first.start, second.stop)
    axis = m["cos"].type.rank - 1
    wide = [at.add("concat", m[name], m[name], axis=axis) for name in ("cos", "sin")]
    return at.add("rope", x, *wide, style="half")


@rule("rope", _interleaved(*_turned_parts("even", "odd")))
def _pairs_apart(at: Rewriter, m: Match) -> Value | None:
    """(x0 cos - x1 sin, x1 cos + x0 sin, ...) -> rope(x), one cosine and sine for each pair"""
    even, odd = _part(m["even"]), _part(m["odd"])
    whole = _Part(even.source, even.start, odd.stop)
    paired = even.step == 2 and _same(odd, _Part(even.source, even.start + 1, odd.stop, 2))
    if not paired or not _is_interleaving(m.value("flat"), m.value("left"), m.value("right")):
        return None
    if not _fits(m["even"], m["cos"], m["sin"]) or m["even"].type != m["odd"].type:
        return None
    wide = [_each_twice(at, m[name]) for name in ("cos", "sin")]
    return at.add("rope", _slice(at, whole.source, whole.start, whole.stop), *wide, style="interleaved")


def _each_twice(at: Rewriter, x: Operand) -> Value:
    """Every element of the last axis repeated: a, a, b, b, ..."""
    shape = x.type.shape if x is not None else ()
    column = at.add("reshape", x, shape=(*shape, 1))
    return at.add("reshape", at.add("concat", column, column, axis=len(shape)), shape=(*shape[:-1], shape[-1] * 2))


def _slice(at: Rewriter, source: Operand, start: Dim, stop: Dim) -> Operand:
    shape = source.type.shape if source is not None else ()
    if start == 0 and stop == shape[-1]:
        return source
    return at.add("slice", source, axis=len(shape) - 1, start=start, stop=stop)


_TURNED = op("rope", any_("x"), any_("cos"), any_("sin"), bind="rope")


@rule("partial rope", op("concat", _TURNED, any_("rest"), where=on_last_axis))
def _part_of_head(at: Rewriter, m: Match) -> Value | None:
    """rope of the first elements beside the untouched rest -> rope with cosines narrower than x"""
    turned, rest = _part(m["x"]), _part(m["rest"])
    if turned.source != rest.source or turned.stop != rest.start or not turned.step == rest.step == 1:
        return None
    if m["cos"].type.shape[-1] != m["x"].type.shape[-1]:
        return None
    rope: Op = m.op("rope")
    return at.again(rope, _slice(at, turned.source, turned.start, rest.stop), m["cos"], m["sin"])


RULES: tuple[Rule, ...] = (_by_halves, _by_pairs, _halves_apart, _pairs_apart, _part_of_head)


@dataclass(frozen=True)
class RaiseRope(RewritePass):
    """x * cos + concat(-x2, x1) * sin -> rope(x, cos, sin), also of neighbouring pairs and of part of a head."""

    name: ClassVar[str] = "raise-rope"
    rules: ClassVar[Sequence[Rule]] = RULES
