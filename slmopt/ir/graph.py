"""The graph: values in SSA form, ops in a linked list that is safe to edit while walking, modules of graphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from slmopt.errors import IRError
from slmopt.ir.dims import Dim
from slmopt.ir.membership import check_member, check_operand
from slmopt.ir.types import TensorType
from slmopt.ir.values import Attribute, Operand, Use, Value, Weight, operand_type, substitute_attribute
from slmopt.ir.weights import WeightStore

if TYPE_CHECKING:
    from slmopt.ir.cursor import Cursor
    from slmopt.ir.spec import OpSpec

__all__ = [
    "Attribute", "Graph", "Module", "Op", "Operand", "Use", "Value", "Weight", "operand_type", "substitute_attribute",
]  # fmt: skip


class Op:
    """One operation: a name, ordered operands, attributes, results, and where in the source model it came from."""

    def __init__(self, name: str, attributes: Mapping[str, Attribute], location: str = "") -> None:
        self.name, self.attributes, self.location = name, dict(attributes), location
        self.results: tuple[Value, ...] = ()
        self.graph: Graph | None = None
        self._operands: list[Operand] = []
        self._previous: Op | None = None
        self._next: Op | None = None

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Values, weights, or None for an absent optional operand."""
        return tuple(self._operands)

    @property
    def result(self) -> Value:
        """The only result."""
        if len(self.results) != 1:
            raise IRError(f"{self.describe()} has {len(self.results)} results, not one")
        return self.results[0]

    @property
    def spec(self) -> OpSpec:
        """What this op means."""
        from slmopt.ir.ops import registry

        return registry.lookup(self.name, self.location)

    def value(self, index: int) -> Value:
        """Operand `index`, which must be a value."""
        operand = self._operands[index] if index < len(self._operands) else None
        if not isinstance(operand, Value):
            raise IRError(f"{self.describe()}: operand {index} is {operand!r}, expected a value")
        return operand

    def set_operand(self, index: int, operand: Operand) -> None:
        """Read `operand` at `index` instead of what was read there."""
        if self.graph is not None:
            check_operand(self.graph, operand, self.name)
        elif self.results and operand is not None:
            raise IRError(f"{self.describe()} was erased: it reads nothing any more")
        old = self._operands[index]
        if isinstance(old, Value):
            old.uses.remove(Use(self, index))
        self._operands[index] = operand
        if isinstance(operand, Value):
            operand.uses.append(Use(self, index))

    def append_operand(self, operand: Operand) -> None:
        """Read one more operand."""
        if self.graph is not None:
            check_operand(self.graph, operand, self.name)
        self._operands.append(None)
        self.set_operand(len(self._operands) - 1, operand)

    def describe(self) -> str:
        """How messages quote the op: `%name = op (at module.path)`."""
        names = ", ".join(f"%{value.name}" for value in self.results)
        place = f" (at {self.location})" if self.location else ""
        return f"{names} = {self.name}{place}"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"


class Graph:
    """A function in SSA form. The last `states` inputs and outputs are paired: each step returns its next state."""

    def __init__(self, name: str, states: int = 0) -> None:
        self.name, self.states = name, states
        self.inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._first: Op | None = None
        self._last: Op | None = None
        self._names: dict[str, int] = {}

    # --- reading ---------------------------------------------------------------------------------------------------
    @property
    def outputs(self) -> tuple[Value, ...]:
        """What the graph returns."""
        return tuple(self._outputs)

    def walk(self) -> Iterator[Op]:
        """Every op in order. Ops may be added, replaced and erased while walking; erased ones are not visited."""
        op = self._first
        while op is not None:
            if op.graph is self:
                yield op
            op = op._next

    def values(self) -> Iterator[Value]:
        """Every value: the inputs, then all results in order."""
        yield from self.inputs
        for op in self.walk():
            yield from op.results

    def value(self, name: str) -> Value:
        """The value named `name` (without `%`)."""
        for value in self.values():
            if value.name == name:
                return value
        raise IRError(f"graph @{self.name} has no value %{name}")

    def view(self) -> Any:
        """A `networkx.MultiDiGraph` whose nodes are ops and inputs (by value name), edges uses; see `ir.view`."""
        from slmopt.ir.view import graph_view

        return graph_view(self)

    # --- writing ---------------------------------------------------------------------------------------------------
    def fresh_name(self, hint: str) -> str:
        """A name no value of this graph has: `hint` itself where free, else `hint_2`, `hint_3`, ..."""
        name = hint
        if not (hint.isascii() and hint.isidentifier()):
            name = re.sub(r"\W", "_", hint) or "v"
            name = f"_{name}" if name[0].isdigit() else name
        count = self._names.get(name, 0) + 1
        self._names[name] = count
        return name if count == 1 else self.fresh_name(f"{name}_{count}")

    def add_input(self, name: str, type: TensorType) -> Value:
        """Append an input."""
        value = Value(self.fresh_name(name), type)
        self.inputs.append(value)
        return value

    def set_outputs(self, outputs: Iterable[Value]) -> None:
        """Return `outputs`."""
        self._outputs = list(outputs)

    def add(
        self,
        name: str,
        operands: Sequence[Operand],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        before: Op | None = None,
        after: Op | None = None,
        hint: str | Sequence[str] = "",
        location: str = "",
        types: Sequence[TensorType] | None = None,
    ) -> Op:
        """Add an op at the end, or before/after another one; result types are inferred by its spec.

        `hint` names the result(s); `types` overrides inference (the parser passes what was written, the verifier
        compares). Raises IRError where the operands or attributes do not fit the op.
        """
        from slmopt.ir.ops import registry

        spec = registry.lookup(name, location)
        for anchor in (before, after):
            if anchor is not None:
                check_member(self, anchor)
        for operand in operands:
            check_operand(self, operand, name)
        op = Op(name, spec.complete_attributes(attributes or {}, location), location)
        for operand in operands:
            op.append_operand(operand)
        try:
            found = tuple(types) if types is not None else spec.infer_types(op)
        except IRError:
            for index in range(len(op._operands)):
                op.set_operand(index, None)
            raise
        hints = [hint] * len(found) if isinstance(hint, str) else list(hint)
        op.results = tuple(
            Value(self.fresh_name(own or name), type, op, index)
            for index, (own, type) in enumerate(zip(hints, found, strict=True))
        )
        self._link(op, after if after is not None else (before._previous if before is not None else self._last))
        return op

    def before(self, op: Op) -> Cursor:
        """A cursor that adds ops directly before `op`."""
        from slmopt.ir.cursor import Cursor

        return Cursor(self, before=op)

    def after(self, op: Op) -> Cursor:
        """A cursor that adds ops directly after `op`, in order."""
        from slmopt.ir.cursor import Cursor

        return Cursor(self, after=op)

    def end(self) -> Cursor:
        """A cursor that adds ops after all others; the outputs stay what they are until `set_outputs`."""
        from slmopt.ir.cursor import Cursor

        return Cursor(self)

    def _link(self, op: Op, anchor: Op | None) -> None:
        following = anchor._next if anchor is not None else self._first
        op._previous, op._next, op.graph = anchor, following, self
        if anchor is None:
            self._first = op
        else:
            anchor._next = op
        if following is None:
            self._last = op
        else:
            following._previous = op

    def _unlink(self, op: Op) -> None:
        if op._previous is None:
            self._first = op._next
        else:
            op._previous._next = op._next
        if op._next is None:
            self._last = op._previous
        else:
            op._next._previous = op._previous

    def replace_uses(self, old: Value, new: Value, *, but: Op | None = None) -> None:
        """Read `new` wherever `old` was read, graph outputs included; `but` keeps reading `old`.

        Whether `new` is defined early enough is for the verifier to say.
        """
        check_operand(self, new, f"what read %{old.name}")
        for use in list(old.uses):
            if use.op is not but:
                use.op.set_operand(use.index, new)
        self._outputs = [new if value is old else value for value in self._outputs]

    def replace(self, op: Op, *new: Value) -> None:
        """Read a value instead of each result of `op`, and erase `op`."""
        check_member(self, op)
        if len(new) != len(op.results):
            raise IRError(f"{op.describe()} has {len(op.results)} results, replaced by {len(new)}")
        for old, value in zip(op.results, new, strict=True):
            self.replace_uses(old, value)
        self.erase(op)

    def rename(self, value: Value, name: str) -> None:
        """Give `value` another (fresh) name."""
        value.name = self.fresh_name(name)

    def erase(self, op: Op) -> None:
        """Remove an op whose results nobody reads."""
        check_member(self, op)
        for value in op.results:
            if value.uses or value in self._outputs:
                raise IRError(f"{op.describe()} cannot be erased: %{value.name} is still read")
        for index in range(len(op._operands)):
            op.set_operand(index, None)
        self._unlink(op)
        op.graph = None

    def move(self, op: Op, *, before: Op) -> None:
        """Move `op` directly before another op; the verifier checks that definitions still precede uses."""
        check_member(self, op)
        check_member(self, before)
        if op is before:
            return
        self._unlink(op)
        self._link(op, before._previous)

    def erase_dead(self) -> int:
        """Erase every op without effect on the outputs; returns how many."""
        erased = 0
        kept = set(map(id, self._outputs))
        op = self._last
        while op is not None:
            previous = op._previous
            if not any(value.uses or id(value) in kept for value in op.results):
                self.erase(op)
                erased += 1
            op = previous
        return erased

    def copy(self, name: str | None = None, dims: Mapping[str, Dim] | None = None) -> Graph:
        """A deep copy (values and ops are new, weights are shared by key), symbols in types and attributes replaced."""
        values = dims or {}
        graph = Graph(name or self.name, self.states)
        mapping: dict[int, Value] = {}
        for value in self.inputs:
            mapping[id(value)] = graph.add_input(value.name, value.type.substitute(values))
        for op in self.walk():
            operands = [mapping[id(o)] if isinstance(o, Value) else o for o in op.operands]
            copied = graph.add(
                op.name, operands, {k: substitute_attribute(v, values) for k, v in op.attributes.items()},
                location=op.location, hint=[r.name for r in op.results],
                types=[r.type.substitute(values) for r in op.results],
            )  # fmt: skip
            mapping.update({id(old): new for old, new in zip(op.results, copied.results, strict=True)})
        graph.set_outputs(mapping[id(value)] for value in self._outputs)
        return graph

    def __eq__(self, other: object) -> bool:
        from slmopt.ir.text import print_graph

        return isinstance(other, Graph) and print_graph(self) == print_graph(other)

    __hash__ = object.__hash__

    def __str__(self) -> str:
        from slmopt.ir.text import print_graph

        return print_graph(self)


class Module:
    """Graphs, the weights they name, and what a tokenizer or runtime must know (`metadata`, JSON values).

    Equality compares what the text shows: name, metadata and graphs. Weights are compared by key and type only.
    `ledger` is what pipelines measured while they made the module (`slmopt.ledger.Ledger`), None where none ran.
    """

    def __init__(
        self, name: str, graphs: Iterable[Graph] = (), weights: WeightStore | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.graphs = {graph.name: graph for graph in graphs}
        self.weights = weights if weights is not None else WeightStore()
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.ledger: Any = None

    def graph(self, name: str = "forward") -> Graph:
        """The graph named `name`."""
        if name not in self.graphs:
            raise IRError(f"module @{self.name} has no graph @{name}; it has {', '.join(self.graphs) or 'none'}")
        return self.graphs[name]

    def weight_types(self) -> dict[str, TensorType]:
        """Every weight some op names, with its type, in order of first use."""
        found: dict[str, TensorType] = {}
        for graph in self.graphs.values():
            for op in graph.walk():
                for operand in op.operands:
                    if isinstance(operand, Weight):
                        found.setdefault(operand.key, operand.type)
        return found

    def derive(
        self, sources: Weight | Sequence[Weight], what: str, compute: Callable[..., Any], *,
        type: TensorType | None = None, suffix: str = "",
    ) -> Weight:  # fmt: skip
        """A weight that `compute` makes of other weights' tensors, each time it is asked for.

            op.set_operand(1, module.derive(weight, f"times {factor}", lambda w: w * factor))

        `what` says in words everything that `compute` depends on: one source and the same words are one weight, so
        that ops which shared a weight still do. `type` is the result's, where it is not the (first) source's. The key
        is the source's with `suffix`, or the words, behind. `compute` gets a torch tensor per source (a QuantizedTensor
        where it is quantized) and must not write into it. IRError where the module lacks the numbers of a source.
        """
        from slmopt.ir.derivation import derive

        return derive(self, [sources] if isinstance(sources, Weight) else sources, what, compute, type, suffix)

    def copy(self) -> Module:
        """Graphs are copied; the weight store is branched: it shares tensors, and new keys stay in the copy."""
        graphs, metadata = [graph.copy() for graph in self.graphs.values()], deepcopy(self.metadata)
        copied = Module(self.name, graphs, self.weights.branch(), metadata)
        copied.ledger = self.ledger
        return copied

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Module) and str(self) == str(other)

    __hash__ = object.__hash__

    def __str__(self) -> str:
        from slmopt.ir.text import print_module

        return print_module(self)
