"""Hybrids: a module with some definitions of values from after a pass and the others from before it."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from slmopt.bisection.trail import freeze
from slmopt.errors import SlmError
from slmopt.ir.graph import Graph, Op, Value
from slmopt.ir.text import print_graph, print_op
from slmopt.ir.verify import verify

if TYPE_CHECKING:
    from slmopt.ir.graph import Module, Operand

__all__ = ["Hybrids"]


class Hybrids:
    """What differs between two modules, by value, and modules that have some of the differences.

    names: "@graph/%value" for a value that both have, with the same type, defined otherwise; "@graph/output 0" where
    another value is returned; "@graph" where a graph is new, gone or takes other inputs.
    """

    def __init__(self, before: Module, after: Module) -> None:
        self.before, self.after = before, after
        self.names: list[str] = []
        for name in dict.fromkeys([*before.graphs, *after.graphs]):
            old, new = before.graphs.get(name), after.graphs.get(name)
            if old is None or new is None or _signature(old) != _signature(new):
                if old is None or new is None or print_graph(old) != print_graph(new):
                    self.names.append(f"@{name}")
            else:
                self.names += _differences(old, new)

    def build(self, chosen: Container[str]) -> Module | None:
        """The module with the chosen differences; None where they make none without the others."""
        module = freeze(self.after)  # its weights are all that both name
        module.graphs = {}
        try:
            for name in dict.fromkeys([*self.before.graphs, *self.after.graphs]):
                old, new = self.before.graphs.get(name), self.after.graphs.get(name)
                if old is None or new is None or _signature(old) != _signature(new):
                    whole = new if f"@{name}" in chosen else old
                    if whole is not None:
                        module.graphs[name] = whole.copy()
                else:
                    module.graphs[name] = _Mixer(old, new, chosen).mix()
            verify(module, weights=True)
        except SlmError:
            return None
        return module


def _signature(graph: Graph) -> object:
    return [(value.name, value.type) for value in graph.inputs], graph.states, [v.type for v in graph.outputs]


def _values(graph: Graph) -> dict[str, Value]:
    return {value.name: value for value in graph.values()}


def _differences(old: Graph, new: Graph) -> list[str]:
    mine, found = _values(old), []
    for op in new.walk():
        for value in op.results:
            other = mine.get(value.name)
            if other is None or other.op is None or other.type != value.type:
                continue
            if print_op(other.op) != print_op(op) or other.index != value.index:
                found.append(f"@{new.name}/%{value.name}")
    for index, (one, other) in enumerate(zip(old.outputs, new.outputs, strict=True)):
        if one.name != other.name:
            found.append(f"@{new.name}/output {index}")
    return found


class _CycleError(SlmError):
    """Definitions of before and after, mixed, need each other."""


class _Mixer:
    """Builds one graph from its outputs: each value by the definition that was chosen for its name."""

    def __init__(self, old: Graph, new: Graph, chosen: Container[str]) -> None:
        self.old, self.new, self.chosen = old, new, chosen
        self.values = {id(old): _values(old), id(new): _values(new)}
        self.graph = Graph(old.name, old.states)
        self.made: dict[int, Value] = {}  # by the value it is made after
        self.open: set[int] = set()

    def mix(self) -> Graph:
        """The graph."""
        for mine, theirs in zip(self.old.inputs, self.new.inputs, strict=True):
            self.made[id(mine)] = self.made[id(theirs)] = self.graph.add_input(mine.name, mine.type)
        outputs = [
            theirs if f"@{self.new.name}/output {index}" in self.chosen else mine
            for index, (mine, theirs) in enumerate(zip(self.old.outputs, self.new.outputs, strict=True))
        ]
        read = self._reached(outputs)
        for op in self.old.walk():  # in the old order as far as that goes, for people who compare the two
            for value in op.results:
                if id(self._definition(value)) in read:
                    self._value(value)
        self.graph.set_outputs([self._value(value) for value in outputs])
        return self.graph

    def _reached(self, outputs: list[Value]) -> set[int]:
        """The values that outputs are computed from."""
        found: set[int] = set()
        pending = [self._definition(value) for value in outputs]
        while pending:
            value = pending.pop()
            if id(value) not in found:
                found.add(id(value))
                operands = [] if value.op is None else self._operands(value.op)
                pending += [operand for operand in operands if isinstance(operand, Value)]
        return found

    def _value(self, wanted: Value) -> Value:
        """Iterative: graphs are deeper than Python's stack."""
        target = self._definition(wanted)
        pending = [target]
        while pending:
            value = pending[-1]
            if id(value) in self.made or value.op is None:
                pending.pop()
                continue
            missing = [o for o in self._operands(value.op) if isinstance(o, Value) and id(o) not in self.made]
            if missing:
                if any(id(o) in self.open for o in missing):
                    raise _CycleError(f"%{value.name} needs itself")
                self.open.add(id(value))
                pending += missing[:1]
                continue
            self.open.discard(id(value))
            self._add(value.op)
            pending.pop()
        return self.made[id(target)]

    def _definition(self, value: Value) -> Value:
        """The value that stands for the one of this name: of the other side, where that was chosen."""
        name, key = value.name, f"@{self.old.name}/%{value.name}"
        mine, theirs = self.values[id(self.old)].get(name), self.values[id(self.new)].get(name)
        if mine is None or theirs is None or mine.type != theirs.type or (mine.op is None) != (theirs.op is None):
            return value
        return theirs if key in self.chosen else mine

    def _operands(self, op: Op) -> list[Operand]:
        return [self._definition(operand) if isinstance(operand, Value) else operand for operand in op.operands]

    def _add(self, op: Op) -> None:
        operands = [self.made[id(o)] if isinstance(o, Value) else o for o in self._operands(op)]
        added = self.graph.add(op.name, operands, op.attributes, location=op.location,
                               hint=[result.name for result in op.results])  # fmt: skip
        self.made.update({id(old): new for old, new in zip(op.results, added.results, strict=True)})
