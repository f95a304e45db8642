"""From the step graph to a list of kernel calls on views of buffers. What memory they get is planned afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.lowerings import Lowerings
from slmopt.backends.tvm.primitive import INJECTIVE, REDUCTIONS, Leaf, primitive_kernel, row_axes
from slmopt.backends.tvm.rows import Rows, joint_rows
from slmopt.backends.tvm.views import Buffer, View, allocate_view, dense_view, element_bytes, token_axis
from slmopt.backends.tvm.weight_table import WeightSlot, WeightTable
from slmopt.errors import InputError, IRError, SlmError, UnsupportedError
from slmopt.ir.dims import Dim, product, symbol
from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.ops.shape import dims_of, slice_bounds
from slmopt.ir.step import POSITION, TOKENS
from slmopt.ir.types import DType, Element, TensorType

__all__ = ["Argument", "Cache", "Call", "Lowering", "find_tail"]

Argument = View | WeightSlot | Buffer | str
_ALWAYS_VIRTUAL = frozenset({"constant", "full", "arange", "dimension"})
_VIEWS = frozenset({"reshape", "permute", "expand", "slice"})
_DESCRIBED = re.compile(r"%.+ = \w+")  # how a message begins that names its op


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
    """A cache state: "keys" or "values" (layouts: cache.py), in `buffer`."""

    buffer: Buffer
    layout: str
    element: Element
    heads: int
    size: int


@dataclass
class Lowering:
    """What has been lowered so far. `graph` is a step graph with batch and capacity bound; only `t` is symbolic.

    `problems` says what could not be lowered; where there are any, the calls make no program.
    """

    module: Module
    graph: Graph
    isa: Isa
    chunk: int
    capacity: int
    lowerings: Lowerings
    calls: list[Call] = field(default_factory=list)
    views: dict[Value, View] = field(default_factory=dict)
    caches: dict[Value, Cache] = field(default_factory=dict)
    states: list[Buffer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = WeightTable(self.module.weights, self.isa)
        self.tail: set[Value] = set()
        self._lost: set[Value] = set()  # results of ops that could not be lowered, which nothing can stand in for

    # --- running -------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Lower every op; afterwards the logits lie in a buffer of space `logits`, and `problems` is complete."""
        self.problems += _check_inputs(self.graph)
        if self.problems:
            return
        self.problems += _check_logits(self.module, self.graph)
        ids = self.graph.inputs[0]
        self.views[ids] = View(Buffer("ids", "ids", 0), DType.i64, ids.shape, (0, 1))
        refused = dict(self.lowerings.expand(self.graph))
        self.tail = find_tail(self.graph)
        for op in self.graph.walk():
            try:
                if op in refused:
                    raise refused[op]
                self._lower(op)
            except (IRError, UnsupportedError) as error:
                self._report(op, error)
        if self.problems:
            return
        try:
            self._place_logits()
            self._place_states()
        except (IRError, UnsupportedError) as error:
            self.problems.append(str(error))

    def _lower(self, op: Op) -> None:
        primitive = op.name in INJECTIVE or op.name in REDUCTIONS
        if op.name not in self.lowerings and not primitive:
            raise self.lowerings.refuse(op)
        if any(operand in self._lost for operand in op.operands):
            self._stand_in(op)
        elif op.name in self.lowerings:
            self.lowerings.lower(self, op)
        elif op.name in INJECTIVE:
            self._lower_injective(op)
        else:
            self.place(op.result)

    def _report(self, op: Op, error: SlmError) -> None:
        """Keep what cannot be lowered, and go on as if it could, to find what else cannot."""
        text = str(error) if _DESCRIBED.match(str(error)) else f"{op.describe()}: {error}"
        if text not in self.problems:
            self.problems.append(text)
        self._stand_in(op)

    def _stand_in(self, op: Op) -> None:
        for result in op.results:
            if self.is_placed(result):
                continue
            try:
                if result in self.graph.outputs[1:]:
                    raise UnsupportedError("a state")
                self.allocate(result)
            except UnsupportedError:
                self._lost.add(result)

    def _lower_injective(self, op: Op) -> None:
        if op.name in _VIEWS and (view := self._view(op)) is not None:
            self.views[op.result] = view
            return
        readers = op.result.users
        inlined = len(op.result.uses) == 1 and all(self._is_inlined(reader) for reader in readers)
        if op.name in _ALWAYS_VIRTUAL or (inlined and op.result not in self.graph.outputs):
            return
        self.place(op.result)

    def _is_inlined(self, op: Op) -> bool:
        return op.name in INJECTIVE and op.name not in self.lowerings

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

    # --- what lowerings use ------------------------------------------------------------------------------------------
    def is_placed(self, value: Value) -> bool:
        """Whether it has been said where `value` lies."""
        return value in self.views or value in self.caches

    def allocate(self, value: Value) -> View:
        """A new buffer for `value`, token axis outermost, which a kernel then fills."""
        view = self.views[value] = allocate_view(value.name, value.type, self.chunk)
        return view

    def place(self, value: Value) -> View:
        """Where `value` lies; computed by a primitive kernel now if it was left to be inlined."""
        if value in self.views:
            return self.views[value]
        if value.op is None:
            return self.state(value)
        if value in self.caches:
            raise UnsupportedError(f"%{value.name} is a cache and can only be read by attention")
        return self._compute(value.op, self.allocate(value))

    def rows(self, value: Value) -> View:
        """Where `value` lies, its last axis contiguous."""
        view = self.place(value)
        return view if view.strides[-1:] in ((1,), ()) or view.shape[-1] == 1 else self.place(self.copy(value))

    def joint_rows(self, op: Op, out: View, *values: Value, even: bool = False) -> Rows:
        """Rows over the leading axes of `out` and of each of `values`, whose last axes are contiguous.

        Operands whose strides do not fit are copied first. `even`: the rows of each are evenly spaced. UnsupportedError
        where that cannot be had.
        """
        shape = out.shape[:-1]
        found = joint_rows(shape, [out, *(self.rows(value) for value in values)])
        if found is None:
            found = joint_rows(shape, [out, *(self.place(self.copy(value)) for value in values)])
        if found is None:
            raise UnsupportedError(f"{op.describe()}: {out.type} has too many leading axes for a kernel of rows")
        if even and found.inner != 1:
            raise UnsupportedError(f"{op.describe()}: rows of {out.type} and its operands are not evenly spaced")
        return found

    def copy(self, value: Value, element: str | None = None) -> Value:
        """A new value with the same content (cast where `element` is given), stored with the token axis outermost."""
        at = value.op
        if element is not None:
            hint = f"{value.name}_{element}"
            return self.graph.add("cast", [value], {"element": element}, after=at, hint=hint).result
        return self.graph.add("reshape", [value], {"shape": value.shape}, after=at, hint=f"{value.name}_copy").result

    def state(self, value: Value) -> View:
        """Where a state lies from step to step, row-major; all zeros when a sequence begins."""
        if value not in self.graph.inputs[len(self.graph.inputs) - self.graph.states :] or value in self.caches:
            raise UnsupportedError(f"%{value.name} is no state, or one that only its own op can read")
        if value not in self.views:
            view = dense_view(Buffer(value.name, "state", 0), value.type)
            view.buffer.bytes = int(value.type.elements) * element_bytes(view.element)  # type: ignore[arg-type]
            self.states.append(view.buffer)
            self.views[value] = view
        return self.views[value]

    def keep(self, result: Value, state: Value) -> View:
        """`result` is the next value of `state`, which the kernel of its op updates in place.

        UnsupportedError where another op reads the state too: it might see the new value.
        """
        if any(user is not result.op for user in state.users):
            raise UnsupportedError(f"%{state.name} is updated in place as %{result.name}, and read by another op")
        view = self.views[result] = self.state(state)
        return view

    def call(
        self, op: Op, kernel: Kernel, arguments: Sequence[Argument], count: Dim, *, tokens: Dim | None = None
    ) -> None:
        """Call a kernel over rows lo..hi of `count`, shared by the threads; or with `tokens`, over blocks of outputs.

        An argument is a View, a Buffer, a WeightSlot or C text; one for each parameter. The kernel reads what it
        declares const, and writes the rest. Texts it may use: "lo", "hi", "tokens", "position", with `tokens` also
        "t0", "t1", and numbers.
        """
        if len(arguments) != len(kernel.parameters):
            raise InputError(f"{op.describe()}: {kernel.name} takes ({', '.join(kernel.parameters)}), "
                             f"got {len(arguments)} arguments")  # fmt: skip
        tail = bool(op.results) and all(result in self.tail for result in op.results)
        has_tokens = token_axis((count if tokens is None else tokens,)) is not None
        reads: list[Buffer] = []
        writes: list[Buffer] = []
        for argument, parameter in zip(arguments, kernel.parameters, strict=True):
            buffer = argument.buffer if isinstance(argument, View) else argument
            if isinstance(buffer, Buffer):
                (reads if parameter.startswith("const ") else writes).append(buffer)
        self.calls.append(
            Call(kernel, list(arguments), count, tail and has_tokens, reads, writes, op.describe(), tokens)
        )

    def _compute(self, op: Op, out: View) -> View:
        """A primitive kernel that writes the result of `op`, and what it inlines, to `out`."""
        leaves: dict[Value | Weight, Leaf] = {}
        self._gather_leaves(op, leaves)
        kernel, order = self.primitive(op, leaves, out.strides)
        sources = [self.views[key] if isinstance(key, Value) else self.weights.raw(key) for key in order]
        axes, _ = row_axes(out.shape)
        count = product([out.shape[axis] for axis in axes])
        self.call(op, kernel, [out, *sources, "tokens", "position", "lo", "hi"], count)
        return out

    def primitive(
        self, op: Op, leaves: dict[Value | Weight, Leaf], out_strides: tuple[int, ...]
    ) -> tuple[Kernel, list[Value | Weight]]:
        """The kernel that computes `op` from `leaves`, and the leaves in the order of its pointers."""
        return primitive_kernel(op, leaves, out_strides)

    def _gather_leaves(self, op: Op, leaves: dict[Value | Weight, Leaf]) -> None:
        for operand in op.operands:
            if isinstance(operand, Weight):
                slot = self.weights.raw(operand)
                view = dense_view(Buffer(operand.key, "weights", 0), operand.type.with_element(slot.element))
                leaves[operand] = Leaf(slot.element, view.shape, view.strides, slot.element)
            elif isinstance(operand, Value) and (operand in self.views or self._is_free_state(operand)):
                view = self.place(operand)
                if not isinstance(view.element, DType):
                    raise UnsupportedError(f"{op.describe()} reads quantized activations %{operand.name}")
                stored = DType.i32 if view.buffer.space == "ids" else view.element
                leaves[operand] = Leaf(view.element, view.shape, view.strides, stored)
            elif isinstance(operand, Value) and operand.op is not None:
                if not self._is_inlined(operand.op):
                    raise UnsupportedError(f"{op.describe()} reads %{operand.name}, which has not been lowered")
                self._gather_leaves(operand.op, leaves)
            elif isinstance(operand, Value) and operand.name != POSITION:
                raise UnsupportedError(f"{op.describe()} reads the state %{operand.name}, which only its own op can")

    def _is_free_state(self, value: Value) -> bool:
        return value.op is None and value.name != POSITION and value not in self.caches

    # --- the end -----------------------------------------------------------------------------------------------------
    def _place_states(self) -> None:
        """Write the next value of each state where the next step finds it, unless its op did so."""
        first, last = len(self.graph.inputs) - self.graph.states, len(self.graph.outputs) - self.graph.states
        kept = [(s, f) for s, f in zip(self.graph.inputs[first:], self.graph.outputs[last:], strict=True)
                if s not in self.caches]  # fmt: skip
        sources: list[Value] = []
        for state, following in kept:
            source = self.place(following)
            stays = source == self.state(state)
            moved = source.buffer.space == "state" and not stays  # it may be overwritten before it is read
            sources.append(self.copy(following) if moved else following)
            self.place(sources[-1])
        for (state, _), source_value in zip(kept, sources, strict=True):
            view = self.views[state]
            if self.views[source_value] != view:
                hint = f"{state.name}_next"
                self._compute(self.graph.add("reshape", [source_value], {"shape": state.shape}, hint=hint), view)

    def _place_logits(self) -> None:
        output = self.graph.outputs[0]
        view = self.place(output)
        owners = [v for v, other in self.views.items() if other.buffer is view.buffer]
        plain = view.offset == 0 and view.buffer.space == "arena" and view.strides[1:] == (output.shape[2], 1)
        whole = any(view.buffer in call.writes and not call.tail for call in self.calls)  # logits are only a few rows
        if not plain or whole or any(owner is not output for owner in owners):
            view = self.place(self.copy(output))
            self.calls[-1].tail = True
        view.buffer.space = "logits"


def _check_inputs(graph: Graph) -> list[str]:
    """The runtime calls the graph with tokens and a position."""
    wanted = [TensorType(DType.i64, (1, symbol(TOKENS))), TensorType(DType.i64, ())]
    if [value.type for value in graph.inputs[:2]] == wanted:
        return []
    given = ", ".join(f"%{value.name}: {value.type}" for value in graph.inputs[:2])
    return [f"@{graph.name} takes ({given}); the runtime gives token ids i64[1, t] and a position i64[]"]


def _check_logits(module: Module, graph: Graph) -> list[str]:
    """The runtime has room for a number for each token of the vocabulary."""
    vocab = module.metadata.get("vocab")
    if not graph.outputs or type(vocab) is not int:
        return [f"@{graph.name} returns nothing, or the module's metadata does not say its `vocab`, a whole number"]
    output, logits = graph.outputs[0], TensorType(DType.f32, (1, symbol(TOKENS), vocab))
    if output.type == logits:
        return []
    return [f"@{graph.name} returns %{output.name}: {output.type}; a vocabulary of {vocab} tokens has logits {logits}"]


def find_tail(graph: Graph) -> set[Value]:
    """Values of which only the rows that need logits are read: those that reach the logits alone, never a state."""
    needed: set[Value] = set()  # all rows
    for value in graph.outputs[1:]:
        needed.add(value)
    ops = list(graph.walk())
    for op in reversed(ops):
        if any(result in needed for result in op.results) or not op.spec.is_rowwise(op, TOKENS):
            needed.update(operand for operand in op.operands if isinstance(operand, Value))
    return {result for op in ops for result in op.results if result not in needed}
