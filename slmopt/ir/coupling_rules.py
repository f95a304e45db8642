"""Between which axes each op carries positions: one rule for each kind of op; see `slmopt.ir.coupling`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.ir.coupling import FIXED, Axis, Link
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Graph, Op, Operand, Weight, operand_type
from slmopt.ir.types import QuantizedType

if TYPE_CHECKING:
    from slmopt.ir.coupling import Coupling

__all__ = ["axis_of", "link_graph", "size_of"]

_UNARY = (
    "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "floor", "reciprocal", "erf",
    "neg", "abs", "logical_not", "relu", "silu", "softplus", "gelu", "cast",
)  # fmt: skip
_BROADCASTING = (
    "add", "sub", "mul", "div", "pow", "maximum", "minimum", "remainder", "logical_and", "logical_or", "eq", "ne",
    "lt", "le", "gt", "ge", "where", "expand", "glu",
)  # fmt: skip


def axis_of(operand: Operand, index: int) -> Axis | None:
    """An axis, negative numbers counted from the end; None where there is nothing to cut along it."""
    if operand is None:
        return None
    shape = operand.type.shape
    size = shape[index]
    if not isinstance(size, int) or size < 2:
        return None
    return Axis(operand.key if isinstance(operand, Weight) else operand, index % len(shape))


def size_of(axis: Axis, axes: Any) -> int:
    """The number of positions of an axis."""
    if isinstance(axis.tensor, str):
        size = axes.nodes[axis].get("size", 0)
    else:
        size = axis.tensor.shape[axis.index]
    return int(size)


def link_graph(graph: Graph, coupling: Coupling) -> None:
    """Add the links of every op of a graph; its inputs and outputs, but for states, cannot be cut."""
    plain = len(graph.inputs) - graph.states, len(graph.outputs) - graph.states
    for value in graph.inputs[: plain[0]]:
        _block_all(coupling, value, f"%{value.name} is an input of @{graph.name}")
    for op in graph.walk():
        for operand in op.operands:
            if isinstance(operand, Weight):
                _note_weight(coupling, operand)
        _RULES.get(op.name, _unknown)(_Linker(op, coupling))
    for value in graph.outputs[: plain[1]]:
        _block_all(coupling, value, f"%{value.name} is an output of @{graph.name}")
    for before, after in zip(graph.inputs[plain[0] :], graph.outputs[plain[1] :], strict=True):
        for index in range(len(before.shape)):
            ends = axis_of(before, index), axis_of(after, index)
            if ends[0] is not None and ends[1] is not None:
                coupling.add(Link(None, (ends[0], ends[1])))


def _note_weight(coupling: Coupling, weight: Weight) -> None:
    for index, size in enumerate(weight.type.shape):
        coupling.axes.add_node(Axis(weight.key, index), size=size)
    if isinstance(weight.type.element, QuantizedType):
        _block_all(coupling, weight, f"weight @{weight.key} is quantized ({weight.type}): cut it before that")


def _block_all(coupling: Coupling, operand: Operand, reason: str) -> None:
    for index in range(operand_type(operand).rank):
        axis = axis_of(operand, index)
        if axis is not None:
            coupling.block(axis, reason)


@dataclass(frozen=True)
class _Linker:
    """What a rule works with: an op, and its axes by operand and number."""

    op: Op
    coupling: Coupling

    def link(
        self, left: Operand, i: int, right: Operand, j: int,
        channels: tuple[Sequence[int], Sequence[int]] | None = None, choice: bool = False,
    ) -> None:  # fmt: skip
        """Axis i of one tensor is axis j of another, position by position or channel by channel."""
        ends = axis_of(left, i), axis_of(right, j)
        if ends[0] is not None and ends[1] is not None:
            self.coupling.add(Link(self.op, (ends[0], ends[1]), channels, choice))

    def block(self, operand: Operand, index: int, why: str) -> None:
        """Axis `index` of an operand or result cannot be cut because of what the op does."""
        axis = axis_of(operand, index)
        if axis is not None:
            self.coupling.block(axis, f"{self.op.describe()} {why}")

    def operand(self, index: int) -> Operand:
        """An operand, or None where it is absent."""
        return self.op.operands[index] if index < len(self.op.operands) else None

    @property
    def result(self) -> Operand:
        """The first result."""
        return self.op.results[0]

    def shape(self, operand: Operand) -> tuple[Dim, ...]:
        """The shape of a tensor."""
        return operand_type(operand).shape

    def link_same(self, left: Operand, right: Operand, but: Sequence[int] = ()) -> None:
        """All axes of two tensors of one rank, but for some."""
        for index in range(len(self.shape(left))):
            if index not in but:
                self.link(left, index, right, index)

    def link_broadcast(self, operand: Operand, result: Operand, axes: int | None = None) -> None:
        """The axes of a tensor that broadcasts to another, aligned at the end; of size 1 they are repeated."""
        ranks = len(self.shape(operand)), len(self.shape(result))
        for back in range(1, min(*ranks, ranks[0] if axes is None else axes) + 1):
            if self.shape(operand)[-back] == self.shape(result)[-back]:
                self.link(operand, ranks[0] - back, result, ranks[1] - back)


# --- rules -----------------------------------------------------------------------------------------------------------
def _unknown(at: _Linker) -> None:
    for operand in (*at.op.operands, *at.op.results):
        for index in range(len(at.shape(operand)) if operand is not None else 0):
            at.block(operand, index, "is an op of which nothing says how its axes hang together")


def _nothing(at: _Linker) -> None:
    """What is made of nothing can be made smaller."""


def _counted(at: _Linker) -> None:
    at.block(at.result, 0, "counts positions")


def _elementwise(at: _Linker) -> None:
    for operand in at.op.operands:
        if operand is not None:
            at.link_broadcast(operand, at.result)


def _linear(at: _Linker) -> None:
    x, weight, bias, residual = (at.operand(index) for index in range(4))
    at.link(x, -1, weight, 1)
    at.link(weight, 0, at.result, -1)
    for index in range(len(at.shape(x)) - 1):
        at.link(x, index, at.result, index)
    at.link(bias, 0, at.result, -1)
    if residual is not None:
        at.link_same(residual, at.result)


def _matmul(at: _Linker) -> None:
    left, right = at.op.operands
    at.link(left, -1, right, -2)
    at.link(left, -2, at.result, -2)
    at.link(right, -1, at.result, -1)
    ranks = [len(at.shape(operand)) for operand in (left, right, at.result)]
    for operand, rank in ((left, ranks[0]), (right, ranks[1])):
        for back in range(3, rank + 1):
            if at.shape(operand)[-back] == at.shape(at.result)[-back]:
                at.link(operand, -back, at.result, -back)


def _embedding(at: _Linker) -> None:
    ids, table = at.op.operands
    at.block(table, 0, "picks rows of it by number")
    at.link(table, 1, at.result, -1)
    for index in range(len(at.shape(ids))):
        at.link(ids, index, at.result, index)


def _norm(at: _Linker) -> None:
    at.link_same(at.operand(0), at.result)
    for index in (1, 2):
        at.link(at.operand(index), 0, at.result, -1)


def _rope(at: _Linker) -> None:
    x, *tables = at.op.operands
    last = len(at.shape(x)) - 1
    at.link_same(x, at.result, but=(last,))
    for operand in (*at.op.operands, at.result):
        at.block(operand, -1, "turns its positions in pairs")
    for table in tables:
        rank = len(at.shape(table))
        for back in range(2, rank + 1):
            if at.shape(table)[-back] == at.shape(x)[-back]:
                at.link(table, -back, x, -back)


def _attention(at: _Linker) -> None:
    query, key, value = at.op.operands[:3]
    _link_heads(at, query, key, value)
    bias = at.operand(3)
    if bias is not None and len(at.shape(bias)) > 2 and at.shape(bias)[-3] == at.shape(query)[1]:
        at.link(bias, -3, query, 1)
    for index in (5, 6):
        at.link(at.operand(index), 0, query, 1)


def _linear_attention(at: _Linker) -> None:
    query, key, value = at.op.operands[:3]
    _link_heads(at, query, key, value)
    for state in (*at.op.operands[3:], *at.op.results[1:]):
        at.link(state, 1, key, 1)
        if state is not None:
            at.link(state, 2, key, 3)
            if len(at.shape(state)) > 3:
                at.link(state, 3, value, 3)


def _link_heads(at: _Linker, query: Operand, key: Operand, value: Operand) -> None:
    """Query head i reads head i g / h of key and value: with one of these go all its queries."""
    heads, groups = at.shape(query)[1], at.shape(key)[1]
    if not isinstance(heads, int) or not isinstance(groups, int):
        return
    at.link_same(query, at.result, but=(3,))
    at.link_same(key, value, but=(3,))
    at.link(query, 3, key, 3)
    at.link(value, 3, at.result, 3)
    at.link(query, 1, key, 1, ([head * groups // heads for head in range(heads)], range(groups)))


def _cache_update(at: _Linker) -> None:
    state, new = at.op.operands[:2]
    at.link_same(state, at.result)
    at.link_same(new, at.result, but=(2,))


def _permute(at: _Linker) -> None:
    axes: Any = at.op.attributes["axes"]
    for index, source in enumerate(axes):
        at.link(at.operand(0), source, at.result, index)


def _reshape(at: _Linker) -> None:
    for before, after in _split_alike(at.shape(at.operand(0)), at.shape(at.result)):
        sides = ((at.operand(0), before), (at.result, after))
        for (whole, axes), (parts, factors) in (sides, sides[::-1]):
            if len(axes) == 1 and len(factors) == 1:
                at.link(whole, axes[0], parts, factors[0])
                break
            if len(axes) == 1 and len(factors) > 1 and isinstance(at.shape(whole)[axes[0]], int):
                _link_factors(at, whole, axes[0], parts, factors)
                break
        else:
            for tensor, own in sides:
                for index in own:
                    at.block(tensor, index, "merges it with others that it does not divide")


def _link_factors(at: _Linker, whole: Operand, axis: int, parts: Operand, factors: Sequence[int]) -> None:
    """An axis [h * d] and the axes h and d that it is split into, or was merged from."""
    sizes = [int(at.shape(parts)[index]) for index in factors]  # type: ignore[arg-type]
    inner = int(at.shape(whole)[axis])  # type: ignore[arg-type]
    positions = range(inner)
    for index, size in zip(factors, sizes, strict=True):
        inner //= size
        channels = [position // inner % size for position in positions]
        at.link(whole, axis, parts, index, (channels, range(size)), choice=True)


def _split_alike(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes of equally many elements, in runs of equally many; axes of size 1 are left out."""
    left = [index for index, size in enumerate(before) if size != 1]
    right = [index for index, size in enumerate(after) if size != 1]
    first: list[tuple[list[int], list[int]]] = []
    last: list[tuple[list[int], list[int]]] = []
    while left and right and before[left[0]] == after[right[0]]:
        first.append(([left.pop(0)], [right.pop(0)]))
    while left and right and before[left[-1]] == after[right[-1]]:
        last.insert(0, ([left.pop()], [right.pop()]))
    return [*first, *_static_runs(before, after, left, right), *last]


def _static_runs(
    before: Sequence[Dim], after: Sequence[Dim], left: list[int], right: list[int]
) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of equally many elements; all in one where a size is symbolic."""
    sizes = [[before[index] for index in left], [after[index] for index in right]]
    if not left and not right:
        return []
    if not all(isinstance(size, int) for side in sizes for size in side):
        return [(left, right)]
    runs: list[tuple[list[int], list[int]]] = []
    rows, columns, run = 1, 1, ([], [])  # type: ignore[var-annotated]
    while left or right:
        if rows <= columns and left:
            rows *= int(before[left[0]])  # type: ignore[arg-type]
            run[0].append(left.pop(0))
        else:
            columns *= int(after[right[0]])  # type: ignore[arg-type]
            run[1].append(right.pop(0))
        if rows == columns:
            runs.append(run)
            rows, columns, run = 1, 1, ([], [])
    return runs


def _slice(at: _Linker) -> None:
    from slmopt.ir.ops.shape import slice_bounds

    axis, start, stop, step = slice_bounds(at.op)
    x = at.operand(0)
    at.link_same(x, at.result, but=(axis,))
    size = at.shape(x)[axis]
    if not isinstance(size, int):
        return
    if not isinstance(start, int) or not isinstance(stop, int) or step != 1:
        at.block(x, axis, "takes some of its positions, which are no range of known numbers")
        at.block(at.result, axis, "takes some of its positions, which are no range of known numbers")
        return
    channels = [position - start if start <= position < stop else FIXED for position in range(size)]
    at.link(x, axis, at.result, axis, (channels, range(stop - start)))


def _concat(at: _Linker) -> None:
    axis: Any = at.op.attributes["axis"]
    axis %= len(at.shape(at.result))
    total, start = at.shape(at.result)[axis], 0
    for part in at.op.operands:
        at.link_same(part, at.result, but=(axis,))
        size = at.shape(part)[axis]
        if isinstance(total, int) and isinstance(size, int):
            channels = [p - start if start <= p < start + size else FIXED for p in range(total)]
            at.link(part, axis, at.result, axis, (range(size), channels))
            start += size


def _gather(at: _Linker) -> None:
    table, index = at.op.operands
    axis: Any = at.op.attributes["axis"]
    axis %= len(at.shape(table))
    more = len(at.shape(index)) - 1
    at.block(table, axis, "picks positions of it by number")
    for own in range(len(at.shape(table))):
        if own != axis:
            at.link(table, own, at.result, own if own < axis else own + more)
    for own in range(more + 1):
        at.link(index, own, at.result, axis + own)


def _reduce(at: _Linker) -> None:
    """Along other axes each position is reduced by itself."""
    x = at.operand(0)
    axis: Any = at.op.attributes["axis"]
    axis %= len(at.shape(x))
    gone = len(at.shape(x)) - len(at.shape(at.result))
    at.block(x, axis, "combines its positions")
    for index in range(len(at.shape(x))):
        if index != axis:
            at.link(x, index, at.result, index - gone if index > axis else index)
    if not gone:
        at.block(at.result, axis, "combines its positions")


_RULES: Mapping[str, Callable[[_Linker], None]] = {
    **dict.fromkeys((*_UNARY, *_BROADCASTING), _elementwise),
    **dict.fromkeys(("sum", "mean", "amax", "softmax", "cumsum"), _reduce),
    **dict.fromkeys(("constant", "full", "dimension"), _nothing),
    **dict.fromkeys(("rms_norm", "layer_norm"), _norm),
    "arange": _counted, "linear": _linear, "matmul": _matmul, "embedding": _embedding, "rope": _rope,
    "attention": _attention, "linear_attention": _linear_attention, "cache_update": _cache_update,
    "permute": _permute, "reshape": _reshape, "slice": _slice, "concat": _concat, "gather": _gather,
}  # fmt: skip
