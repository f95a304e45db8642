"""From the step graph to a list of kernel calls on views of buffers. What memory they get is planned afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.primitive import INJECTIVE, REDUCTIONS, Leaf, primitive_kernel, row_axes
from slmopt.backends.tvm.views import Buffer, View, allocate_view, dense_view, token_axis
from slmopt.backends.tvm.weight_table import WeightSlot, WeightTable
from slmopt.errors import UnsupportedError
from slmopt.ir.dims import Dim, product
from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.ops.shape import dims_of, slice_bounds
from slmopt.ir.step import POSITION
from slmopt.ir.types import DType

__all__ = ["Argument", "Cache", "Call", "Lowering", "Rule", "find_tail", "joint_rows"]

Argument = View | WeightSlot | Buffer | str
_ALWAYS_VIRTUAL = frozenset({"constant", "full", "arange", "dimension"})
_VIEWS = frozenset({"reshape", "permute", "expand", "slice"})


@dataclass
class Call:
    """One kernel over `count` rows of work (a Dim in t), shared by the threads; `tail`: only rows that need logits.

    `tokens` names a fixed token range instead: the work is then `count` blocks and (t0, t1) are arguments.
    """

    kernel: Kernel
    arguments: list[Argument]
    count: Dim
    tail: bool
    reads: list[Buffer]
    writes: list[Buffer]
    comment: str
    tokens: Dim | None = None


@dataclass(frozen=True)
class Cache:
    """A cache state: keys [g][c/16][d][16] or values [g][c][d], in `buffer`."""

    buffer: Buffer
    layout: str
    element: DType
    heads: int
    size: int


Rule = Callable[["Lowering", Op], None]


@dataclass
class Lowering:
    """What has been lowered so far. `graph` is a step graph with batch and capacity bound; only `t` is symbolic."""

    module: Module
    graph: Graph
    isa: Isa
    chunk: int
    capacity: int
    rules: Mapping[str, Rule]
    calls: list[Call] = field(default_factory=list)
    views: dict[Value, View] = field(default_factory=dict)
    caches: dict[Value, Cache] = field(default_factory=dict)
    states: list[Buffer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = WeightTable(self.module.weights, self.isa)
        self.tail = find_tail(self.graph)

    # --- running -------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Lower every op; afterwards the logits lie in a buffer of space `logits`."""
        ids = self.graph.inputs[0]
        self.views[ids] = View(Buffer("ids", "ids", 0), DType.i64, ids.shape, (0, 1))
        for op in self.graph.walk():
            self._lower(op)
        self._place_logits()

    def _lower(self, op: Op) -> None:
        rule = self.rules.get(op.name)
        if rule is not None:
            rule(self, op)
        elif op.name in INJECTIVE:
            self._lower_injective(op)
        elif op.name in REDUCTIONS:
            self.place(op.result)
        else:
            raise UnsupportedError(f"{op.describe()}: the code generator has no kernel for {op.name!r}")

    def _lower_injective(self, op: Op) -> None:
        if op.name in _VIEWS and (view := self._view(op)) is not None:
            self.views[op.result] = view
            return
        readers = op.result.users
        inlined = len(op.result.uses) == 1 and all(u.name in INJECTIVE and u.name not in self.rules for u in readers)
        if op.name in _ALWAYS_VIRTUAL or (inlined and op.result not in self.graph.outputs):
            return
        self.place(op.result)

    def _view(self, op: Op) -> View | None:
        """The result of a view op as a view of its operand, where that is possible and the operand is in memory."""
        source = self.views.get(op.operands[0]) if isinstance(op.operands[0], Value) else None
        if source is None or not isinstance(source.element, DType):
            return None
        if op.name == "reshape":
            return source.reshape(dims_of(op, "shape"))
        if op.name == "permute":
            return source.permute(op.attributes["axes"])  # type: ignore[arg-type]
        if op.name == "expand":
            return source.expand(dims_of(op, "shape"))
        axis, start, _, step = slice_bounds(op)
        return source.slice(axis, start, op.result.shape[axis], step)

    # --- what rules use --------------------------------------------------------------------------------------------
    def allocate(self, value: Value) -> View:
        """A new buffer for `value`."""
        view = self.views[value] = allocate_view(value.name, value.type, self.chunk)
        return view

    def place(self, value: Value) -> View:
        """Where `value` lies; computed by a primitive kernel now if it was left to be inlined."""
        if value in self.views:
            return self.views[value]
        if value.op is None or value in self.caches:
            raise UnsupportedError(f"%{value.name} is a state and can only be read by the op that keeps it")
        op = value.op
        leaves: dict[Value | Weight, Leaf] = {}
        self._gather_leaves(op, leaves)
        out = self.allocate(value)
        kernel, order = primitive_kernel(op, leaves, out.strides)
        sources = [self.views[key] if isinstance(key, Value) else self.weights.raw(key) for key in order]
        axes, _ = row_axes(value.shape)
        count = product([value.shape[axis] for axis in axes])
        self.call(op, kernel, [out, *sources, "tokens", "position", "lo", "hi"], count, [out], sources)
        return out

    def _gather_leaves(self, op: Op, leaves: dict[Value | Weight, Leaf]) -> None:
        for operand in op.operands:
            if isinstance(operand, Weight):
                slot = self.weights.raw(operand)
                view = dense_view(Buffer(operand.key, "weights", 0), operand.type.with_element(slot.element))
                leaves[operand] = Leaf(slot.element, view.shape, view.strides, slot.element)
            elif isinstance(operand, Value) and operand in self.views:
                view = self.views[operand]
                if not isinstance(view.element, DType):
                    raise UnsupportedError(f"{op.describe()} reads quantized activations %{operand.name}")
                stored = DType.i32 if view.buffer.space == "ids" else view.element
                leaves[operand] = Leaf(view.element, view.shape, view.strides, stored)
            elif isinstance(operand, Value) and operand.op is not None:
                if operand.op.name not in INJECTIVE or operand.op.name in self.rules:
                    raise UnsupportedError(f"{op.describe()} reads %{operand.name}, which has not been lowered")
                self._gather_leaves(operand.op, leaves)
            elif isinstance(operand, Value) and operand.name != POSITION:
                raise UnsupportedError(f"{op.describe()} reads the state %{operand.name}, which only its own op can")

    def rows(self, value: Value) -> View:
        """Where `value` lies, its last axis contiguous."""
        view = self.place(value)
        return view if view.strides[-1:] in ((1,), ()) or view.shape[-1] == 1 else self.place(self.copy(value))

    def copy(self, value: Value, element: str | None = None) -> Value:
        """A new value with the same content (cast where `element` is given), stored with the token axis outermost."""
        at = value.op
        if element is not None:
            hint = f"{value.name}_{element}"
            return self.graph.add("cast", [value], {"element": element}, after=at, hint=hint).result
        return self.graph.add("reshape", [value], {"shape": value.shape}, after=at, hint=f"{value.name}_copy").result

    def call(
        self, op: Op, kernel: Kernel, arguments: Sequence[Argument], count: Dim, writes: Sequence[View | Buffer],
        reads: Sequence[Argument], tokens: Dim | None = None,
    ) -> None:  # fmt: skip
        """Append a call."""
        tail = bool(op.results) and all(result in self.tail for result in op.results)
        has_tokens = token_axis((count if tokens is None else tokens,)) is not None
        self.calls.append(Call(
            kernel, list(arguments), count, tail and has_tokens, _buffers(reads), _buffers(writes), op.describe(),
            tokens,
        ))  # fmt: skip

    # --- the end -----------------------------------------------------------------------------------------------------
    def _place_logits(self) -> None:
        output = self.graph.outputs[0]
        if output.type.element != DType.f32 or output.type.rank != 3:
            raise UnsupportedError(f"%{output.name} is returned as {output.type}; logits must be f32[b, s, vocab]")
        view = self.place(output)
        owners = [v for v, other in self.views.items() if other.buffer is view.buffer]
        plain = view.offset == 0 and view.buffer.space == "arena" and view.strides[1:] == (output.shape[2], 1)
        if not plain or any(owner is not output for owner in owners):
            view = self.place(self.copy(output))
            self.calls[-1].tail = True
        view.buffer.space = "logits"


def _buffers(items: Sequence[Argument]) -> list[Buffer]:
    found = [item.buffer if isinstance(item, View) else item for item in items]
    return [item for item in found if isinstance(item, Buffer)]


def find_tail(graph: Graph) -> set[Value]:
    """Values of which only the rows that need logits are read: those that reach the logits alone, never a state."""
    needed: set[Value] = set()  # all rows
    for value in graph.outputs[1:]:
        needed.add(value)
    ops = list(graph.walk())
    for op in reversed(ops):
        mixes = op.name not in _ROWWISE and op.name not in INJECTIVE  # cache_update among them
        if mixes or any(result in needed for result in op.results):
            needed.update(operand for operand in op.operands if isinstance(operand, Value))
    return {result for op in ops for result in op.results if result not in needed}


# Ops whose result rows of a token depend on the same token's rows of their operands (attention: of the query).
_ROWWISE = frozenset({
    "linear", "rms_norm", "layer_norm", "rope", "glu", "quantize_rows", "embedding", "attention", "sum", "amax",
    "matmul",
})  # fmt: skip


def joint_rows(shape: Sequence[Dim], views: Sequence[View]) -> tuple[Dim, int, list[tuple[int, int]]] | None:
    """Rows over the leading axes `shape` shared by several views: (outer count, inner count, (s0, s1) of each view).

    Row r of a view begins at (r / inner) * s0 + (r % inner) * s1. None where two levels are not enough. A view may
    have size 1 where the shape has more: its stride counts as 0 there.
    """
    levels: list[tuple[Dim, list[int]]] = []
    token = token_axis(shape)
    order = [axis for axis in range(len(shape)) if axis != token]
    for axis in order if token is None else [token, *order]:
        if shape[axis] == 1:
            continue
        strides = [view.strides[axis] if view.shape[axis] != 1 else 0 for view in views]
        size = shape[axis]
        if levels and isinstance(size, int) and all(a == b * size for a, b in zip(levels[-1][1], strides, strict=True)):
            levels[-1] = (levels[-1][0] * size, strides)
        else:
            levels.append((size, strides))
    if len(levels) > 2 or (len(levels) == 2 and not isinstance(levels[1][0], int)):
        return None
    outer = levels[0] if levels else (1, [0] * len(views))
    inner = levels[1] if len(levels) == 2 else (1, [0] * len(views))
    return outer[0], int(inner[0]), list(zip(outer[1], inner[1], strict=True))  # type: ignore[arg-type]

