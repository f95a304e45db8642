"""Rules that write every way to count positions as one `arange`."""

from __future__ import annotations

from slmopt.ir.dims import Dim, SymbolicDim
from slmopt.ir.graph import Module, Op, Value, Weight
from slmopt.ir.ops.shape import slice_bounds
from slmopt.ir.types import DType
from slmopt.rewrite import Match, Rewriter, Rule, constant, either, op, rule, weight

__all__ = ["POSITIONS"]

Found = Value | Weight | None
_ARANGE = op("arange", bind="a")
_COUNTED = either(_ARANGE, op("reshape", _ARANGE))
_EXACT = ("f32", "f64", "i32", "i64")  # element types that hold any position
_LARGEST_TABLE = 1 << 20


def _bounds(found: Op) -> tuple[Dim, Dim]:
    start, stop = found.attributes["start"], found.attributes["stop"]
    return start, stop  # type: ignore[return-value]


def _counted(at: Rewriter, start: Dim, stop: Dim, element: str) -> Value:
    """start, start + 1, ... below stop, in the shape of the matched op's result."""
    found = at.add("arange", start=start, stop=stop, element=element)
    shape = at.root.result.shape
    return found if shape == found.shape else at.add("reshape", found, shape=shape)


@rule("positions", op("cast", _COUNTED))
def _count_in(at: Rewriter, m: Match) -> Found:
    element = str(m.root.attributes["element"])
    return _counted(at, *_bounds(m.op("a")), element) if element in _EXACT else None


@rule("positions", op(("add", "sub"), _COUNTED, constant(name="c")))
def _shift(at: Rewriter, m: Match) -> Found:
    """arange + c -> arange from c, for whole numbers."""
    number, (start, stop) = m.number("c"), _bounds(m.op("a"))
    if number != int(number) or m.root.result.type.elements != stop - start:
        return None
    by = int(number) if m.root.name == "add" else -int(number)
    return _counted(at, start + by, stop + by, str(m.root.result.type.element))


@rule("positions", op("slice", _ARANGE))
def _part(at: Rewriter, m: Match) -> Found:
    (_, first, last, step), (start, _) = slice_bounds(m.root), _bounds(m.op("a"))
    if step != 1:
        return None
    return at.add("arange", start=start + first, stop=start + last, element=m.op("a").attributes["element"])


@rule("positions", op("cumsum", op("full", bind="ones", value=1)))
def _running_count(at: Rewriter, m: Match) -> Found:
    """A running sum of ones counts from one."""
    type, axis = m.root.result.type, int(m.root.attributes["axis"])  # type: ignore[arg-type]
    if str(type.element) not in _EXACT:
        return None
    axis %= type.rank
    counted = at.add("arange", start=1, stop=type.shape[axis] + 1, element=str(type.element))
    row = at.add("reshape", counted, shape=(*(1,) * axis, type.shape[axis], *(1,) * (type.rank - axis - 1)))
    return at.add("expand", row, shape=type.shape)


@rule("positions", op("slice", weight("table", lambda found: found.type.element in (DType.i64, DType.i32))))
def _part_of_table(at: Rewriter, m: Match) -> Found:
    """A slice of a stored 0, 1, 2, ... (a buffer of position ids) counts."""
    (axis, first, last, step), table = slice_bounds(m.root), m.weight("table")
    start = _first_of_count(at.module, table, axis) if isinstance(last - first, SymbolicDim) and step == 1 else None
    if start is None:
        return None
    return _counted(at, first + start, last + start, str(table.type.element))


def _first_of_count(module: Module, table: Weight, axis: int) -> int | None:
    """The first element of a stored row of consecutive numbers; None where it is something else."""
    elements = table.type.elements
    if table.key not in module.weights or not isinstance(elements, int) or not 0 < elements <= _LARGEST_TABLE:
        return None
    if table.type.shape[axis] != elements:
        return None
    stored = module.weights.load(table.key).flatten().tolist()
    return int(stored[0]) if stored == list(range(int(stored[0]), int(stored[0]) + elements)) else None


POSITIONS: tuple[Rule, ...] = (_count_in, _shift, _part, _running_count, _part_of_table)
