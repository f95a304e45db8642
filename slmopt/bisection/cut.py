"""Cutting a module down: a few ops around a place, with inputs where values were cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from slmopt.errors import SlmError
from slmopt.ir.graph import Graph, Module, Op, Value
from slmopt.ir.verify import verify

if TYPE_CHECKING:
    import torch

__all__ = ["Activations", "cut_graph", "cut_module", "shrink"]

_RADII = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 2), (5, 3), (8, 5), (13, 8), (24, 16), (48, 32))
_KEPT = ("batch", "sequence", "vocab", "context", "facts")  # metadata that passes and probes look at
_SHRUNK = 60  # ops of a region that are tried one by one


def cut_graph(graph: Graph, region: Iterable[Op]) -> Graph:
    """The ops of a region as a graph: what they read from outside is an input, what is read outside is an output.

    Values keep their names and types, so that a rewrite has the same place as before.
    """
    kept = set(region)
    found = Graph(graph.name)
    made: dict[int, Value] = {}
    for op in graph.walk():
        if op not in kept:
            continue
        for operand in op.operands:
            if isinstance(operand, Value) and operand.op not in kept and id(operand) not in made:
                made[id(operand)] = found.add_input(operand.name, operand.type)
    for op in graph.walk():
        if op in kept:
            operands = [made[id(o)] if isinstance(o, Value) else o for o in op.operands]
            added = found.add(op.name, operands, op.attributes, location=op.location,
                              types=[r.type for r in op.results], hint=[r.name for r in op.results])  # fmt: skip
            made.update({id(old): new for old, new in zip(op.results, added.results, strict=True)})
    results = [value for op in graph.walk() if op in kept for value in op.results]
    read = [v for v in results if v in graph.outputs or any(use.op not in kept for use in v.uses)]
    found.set_outputs(made[id(value)] for value in read)
    return found


def cut_module(module: Module, graph: Graph) -> Module:
    """A module of one graph, without the tokenizer and whatever else no pass looks at."""
    metadata = {key: value for key, value in module.metadata.items() if key in _KEPT}
    return Module(module.name, [graph], module.weights.branch(), metadata)


def _around(roots: Iterable[Op], up: int, down: int) -> set[Op]:
    """The ops at most `up` steps before and `down` steps behind roots."""
    found = set(roots)
    edge = set(found)
    for _ in range(up):
        edge = {o.op for op in edge for o in op.operands if isinstance(o, Value) and o.op is not None} - found
        found |= edge
    edge = set(found)
    for _ in range(down):
        edge = {use.op for op in edge for value in op.results for use in value.uses} - found
        found |= edge
    return found


def _regions(graph: Graph, roots: Iterable[Op]) -> Iterator[set[Op]]:
    """Regions around roots, from small to the whole graph."""
    everything, last, start = set(graph.walk()), set[Op](), list(roots)
    for up, down in _RADII:
        found = _around(start, up, down)
        if found and found != last and found != everything:
            yield found
        last = found
    yield everything


def shrink(module: Module, name: str, roots: Iterable[Op], fails: Callable[[Module], bool]) -> Module | None:
    """The smallest part of graph `name` around roots that fails, as a module; None where not even the whole graph does.

    Grows a region until it fails, then leaves out one op after the other.
    """
    graph = module.graph(name)

    def test(region: set[Op]) -> Module | None:
        found = cut_module(module, cut_graph(graph, region))
        try:
            verify(found)
        except SlmError:  # such as a size that no input has any more
            return None
        return found if found.graph(name).outputs and fails(found) else None

    for region in _regions(graph, roots):
        best = test(region)
        if best is None:
            continue
        if len(region) <= _SHRUNK:
            for op in [op for op in graph.walk() if op in region]:
                smaller = test(region - {op}) if len(region) > 1 else None
                if smaller is not None:
                    region, best = region - {op}, smaller
        return best
    return None


class Activations:
    """The numbers that values of a graph have on the probe, computed when they are asked for."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.graph = module, module.graph(name)
        self._inputs = _probe_inputs(module, self.graph)
        self._known: dict[str, torch.Tensor] = {}

    def of(self, graph: Graph) -> dict[str, Any]:
        """Numbers for the inputs of a graph that was cut out of this one, by name."""
        import torch

        from slmopt.interpreter import run

        if any(value.name not in self._known for value in graph.inputs):
            # all of its values, as parts of this part are asked for next
            missing = [value.name for value in graph.values() if value.name not in self._known]
            part = self.graph.copy()
            part.states = 0
            part.set_outputs([part.value(name) for name in missing])
            part.erase_dead()
            with torch.no_grad():
                found = run(self.module, part, self._inputs)
            self._known.update(zip(missing, found, strict=True))
        return {value.name: self._known[value.name] for value in graph.inputs}


def _probe_inputs(module: Module, graph: Graph) -> list[Any]:
    """@forward's probe; for @step all positions at once, from empty states."""
    import torch

    from slmopt.interpreter import initial_states
    from slmopt.probe import make_probe

    inputs = make_probe(module).inputs
    if not graph.states:
        return list(inputs)
    batch, length = inputs[0].shape[:2]
    return [inputs[0], torch.tensor(0), *initial_states(graph, batch, length)]
