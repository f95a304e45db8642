"""Cut a module on which a check fails down to the ops that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from slmopt.ir.graph import Graph, Module, Op, Value
from slmopt.testing.failures import Failure

__all__ = ["reduce"]

Look = Callable[[Module], Failure | None]
Edit = Callable[[Graph, list[Op]], bool]


def reduce(failure: Failure, look: Look, seconds: float) -> Failure:
    """The failure on a smaller module: fewer graphs, outputs and ops; what was computed may become an input.

    `look` gives the failure of a module, None where it holds. Takes at most about `seconds` of processor time.
    """
    return _Reduction(failure, look, time.process_time() + seconds).run()


class _Reduction:
    """Tries smaller modules and keeps those that fail; first what halves the module, then one op after the other."""

    def __init__(self, failure: Failure, look: Look, until: float) -> None:
        self.failure, self._look, self._until = failure, look, until

    def run(self) -> Failure:
        for name in [name for name in self.failure.module.graphs if name != "forward"]:
            self._try_without_graph(name)
        if set(self.failure.module.graphs) != {"forward"}:
            return self.failure
        self._halve_outputs()
        self._end_early()
        self._begin_late()
        for change in (_take_as_input, _bypass, _drop_output):
            for index in reversed(range(max(self._count, len(self.failure.module.graph().outputs)))):
                self._try(lambda graph, ops, index=index, change=change: change(graph, ops, index))  # type: ignore[misc]
        return self.failure

    @property
    def _count(self) -> int:
        return sum(1 for _ in self.failure.module.graph().walk())

    def _keep(self, module: Module) -> bool:
        found = self._look(module) if time.process_time() < self._until else None
        self.failure = found or self.failure
        return found is not None

    def _try_without_graph(self, name: str) -> None:
        copied = self.failure.module.copy()
        del copied.graphs[name]
        self._keep(copied)

    def _try(self, edit: Edit) -> bool:
        """Whether the module that `edit` makes fails, too; it is kept then."""
        copied = self.failure.module.copy()
        graph = copied.graph("forward")
        if not edit(graph, list(graph.walk())):
            return False
        graph.erase_dead()
        first = len(graph.inputs) - graph.states
        graph.inputs = [v for i, v in enumerate(graph.inputs) if v.uses or v in graph.outputs or i == 0 or i >= first]
        return self._keep(copied)

    def _halve_outputs(self) -> None:
        """Return one half of the outputs or the other, while one of them fails."""
        smaller = True
        while smaller:
            half = _plain(self.failure.module.graph()) // 2
            smaller = half > 0 and (self._try_outputs(0, half) or self._try_outputs(half, 2 * half + 1))

    def _try_outputs(self, start: int, stop: int) -> bool:
        def edit(graph: Graph, ops: list[Op]) -> bool:
            count = _plain(graph)
            graph.set_outputs([*graph.outputs[:count][start:stop], *graph.outputs[count:]])
            return True

        return self._try(edit)

    def _end_early(self) -> None:
        """Return a value on the way: the first that shows the fault, if all that follow do."""
        low, high = 0, self._count - 1
        while low < high:
            middle = (low + high) // 2

            def edit(graph: Graph, ops: list[Op], middle: int = middle) -> bool:
                value = ops[middle].results[0]
                graph.set_outputs([value, *graph.outputs[_plain(graph) :]])
                return str(value.type.element) == "f32"

            # Shorter modules have other indices: what is dead goes. Begin anew with what is left.
            if self._try(edit):
                low, high = 0, min(middle, self._count - 1)
            else:
                low = middle + 1

    def _begin_late(self) -> None:
        """Keep the last ops; what they read of others becomes an input."""
        kept = 1
        while kept < self._count:
            if self._try(lambda graph, ops, kept=kept: _cut(graph, ops, kept)):  # type: ignore[misc]
                return
            kept *= 2


def _plain(graph: Graph) -> int:
    return len(graph.outputs) - graph.states


def _cut(graph: Graph, ops: list[Op], kept: int) -> bool:
    """Take what ops before the last `kept` make as inputs; numbers and the like stay."""
    if graph.states:
        return False
    cut = False
    for op in ops[: len(ops) - kept]:
        made_of_values = any(isinstance(operand, Value) for operand in op.operands)
        if made_of_values and str(op.results[0].type.element) == "f32":
            graph.replace_uses(op.results[0], graph.add_input(op.results[0].name, op.results[0].type))
            cut = True
    return cut


def _take_as_input(graph: Graph, ops: list[Op], index: int) -> bool:
    """Take a value as an input."""
    value = ops[index].results[0] if index < len(ops) else None
    if value is None or str(value.type.element) != "f32" or graph.states or not ops[index].operands:
        return False
    graph.replace_uses(value, graph.add_input(value.name, value.type))
    return True


def _bypass(graph: Graph, ops: list[Op], index: int) -> bool:
    """Read an operand instead of a result that has its type."""
    if index >= len(ops):
        return False
    value = ops[index].results[0]
    same = [operand for operand in ops[index].operands if isinstance(operand, Value) and operand.type == value.type]
    if same:
        graph.replace_uses(value, same[0])
    return bool(same)


def _drop_output(graph: Graph, ops: list[Op], index: int) -> bool:
    """Leave one of several outputs out."""
    if index >= _plain(graph) or _plain(graph) == 1:
        return False
    graph.set_outputs([value for i, value in enumerate(graph.outputs) if i != index])
    return True
