"""What an op's `step` rule works with: the graph being derived, the position, and states of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slmopt.errors import IRError
from slmopt.ir.dims import Dim, SymbolicDim, dim_symbols, substitute_dim, symbol
from slmopt.ir.graph import Attribute, Graph, Op, Operand, Value, substitute_attribute
from slmopt.ir.types import DType, Element, TensorType

__all__ = ["CAPACITY", "CHUNK", "POSITION", "TOKENS", "StepBuilder", "step_sizes"]

TOKENS = "t"  # tokens of this step; their positions are position, position + 1, ...
CAPACITY = "c"  # positions a cache has room for
CHUNK = "m"  # the most tokens of one step: what a ring has room for beside its window
POSITION = "position"


def step_sizes(step: Graph, batch: int, capacity: int, chunk: int) -> dict[str, Dim]:
    """What the symbols of @step but for its tokens stand for: sequences, positions, the most tokens of one step.

    The symbol of sequences is that of the first axis of the ids.
    """
    shape = step.inputs[0].shape if step.inputs else ()
    sequences = dim_symbols(shape[0]) if shape else ()
    return {**dict.fromkeys(sequences, batch), CAPACITY: capacity, CHUNK: chunk}


class StepBuilder:
    """Builds a graph @step(ids[b, t], position, state ...) -> (outputs, next state ...).

    A step rule gets (builder, op of the forward graph, its operands in the step graph) and returns the values of the
    step graph that stand for the op's results. It adds ops with `add`, and keeps what it needs between steps with
    `state` and `update`. A fresh state is all zeros.
    """

    def __init__(self, graph: Graph, position: Value, sequence: str, cache: Element = DType.f32) -> None:
        self.graph, self.position, self.sequence, self.cache = graph, position, sequence, cache
        self.op: Op | None = None
        self.states: list[Value] = []
        self._next: dict[int, Value] = {}

    def renamed(self, dim: Attribute) -> Attribute:
        """A dimension or attribute of the forward graph with the sequence length replaced by the step's tokens."""
        return substitute_attribute(dim, {self.sequence: symbol(TOKENS)})

    def renamed_type(self, type: TensorType) -> TensorType:
        """A type of the forward graph as it is in the step graph."""
        return TensorType(type.element, tuple(substitute_dim(d, {self.sequence: symbol(TOKENS)}) for d in type.shape))

    @property
    def capacity(self) -> SymbolicDim:
        """The number of positions a cache has room for."""
        return symbol(CAPACITY)

    @property
    def chunk(self) -> SymbolicDim:
        """The most tokens of one step."""
        return symbol(CHUNK)

    def add(
        self, name: str, operands: Sequence[Operand], attributes: Mapping[str, Attribute] | None = None, hint: str = ""
    ) -> Value:
        """Add an op with one result, placed and named after the op being rewritten."""
        place = self.op.location if self.op is not None else ""
        default = self.op.results[0].name if self.op is not None else name
        return self.graph.add(name, operands, attributes, location=place, hint=hint or default).result

    def state(self, suffix: str, type: TensorType) -> Value:
        """A new state, zeros at the start of a sequence, named after the op being rewritten."""
        base = self.op.results[0].name if self.op is not None else "state"
        value = self.graph.add_input(f"{base}_{suffix}", type)
        self.states.append(value)
        return value

    def update(self, state: Value, following: Value) -> None:
        """`following` is the state after this step; its type must be the state's."""
        if following.type != state.type:
            raise IRError(f"state %{state.name}: {state.type} is updated by a value of type {following.type}")
        self._next[id(state)] = following

    def finish(self, outputs: Sequence[Value]) -> Graph:
        """Return the outputs and every state's next value; IRError where a state was never updated."""
        missing = [state.name for state in self.states if id(state) not in self._next]
        if missing:
            raise IRError(f"state %{missing[0]} is never updated: its step rule must call builder.update")
        self.graph.states = len(self.states)
        self.graph.set_outputs([*outputs, *(self._next[id(state)] for state in self.states)])
        return self.graph
