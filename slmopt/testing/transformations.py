"""Modules written otherwise that compute the same: names, order, dead code and outputs that no pass may depend on."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from slmopt.ir.graph import Graph, Module, Op, Value
from slmopt.ir.weights import WeightStore

__all__ = ["TRANSFORMATIONS", "all_at_once", "with_weights_reordered"]

_SEED = 11


def renamed(graph: Graph) -> Graph:
    """The values that ops give have other names."""
    return _rebuilt(graph, list(graph.walk()), lambda name, index: f"v{index}_{'xyz'[index % 3]}")


def reordered(graph: Graph) -> Graph:
    """Ops that do not need each other stand in another order."""
    draw = random.Random(_SEED)
    waiting = list(graph.walk())
    known: set[Value] = set(graph.inputs)
    order: list[Op] = []
    while waiting:
        ready = [op for op in waiting if all(o in known for o in op.operands if isinstance(o, Value))]
        op = ready[draw.randrange(len(ready))]
        waiting.remove(op)
        order.append(op)
        known.update(op.results)
    return _rebuilt(graph, order, lambda name, index: name)


def with_dead_code(graph: Graph) -> Graph:
    """Some values are read by ops whose results nobody needs."""
    copied = graph.copy()
    for index, value in enumerate(list(copied.values())):
        if index % 3 == 0 and value.type.element.is_float and str(value.type.element).startswith("f"):
            after = value.op or next(copied.walk(), None)
            place = {"after": after} if value.op is not None else {"before": after}
            dead = copied.add("abs", (value,), hint="dead", **place)  # type: ignore[arg-type]
            copied.add("neg", (dead.result,), hint="dead", after=dead)
    return copied


def with_more_outputs(graph: Graph) -> Graph:
    """Some values on the way are outputs, too: whoever does away with them must see that."""
    copied, draw = graph.copy(), random.Random(_SEED)
    shown = [value for value in copied.values() if draw.random() < 0.5 and str(value.type.element) == "f32"]
    states = len(copied.outputs) - copied.states
    copied.set_outputs([*copied.outputs[:states], *shown, *copied.outputs[states:]])
    return copied


TRANSFORMATIONS: Mapping[str, Callable[[Graph], Graph]] = {
    "other names of values": renamed,
    "another order of ops": reordered,
    "dead code": with_dead_code,
    "more outputs": with_more_outputs,
}


def all_at_once(graph: Graph, *but: str) -> Graph:
    """Every transformation but some."""
    for name, transform in TRANSFORMATIONS.items():
        graph = graph if name in but else transform(graph)
    return graph


def with_weights_reordered(module: Module) -> Module:
    """A copy whose store has the same weights, added in the opposite order as far as derivations allow."""
    store = WeightStore()

    def add(key: str) -> None:
        if key not in store:
            for source in module.weights.source(key).inputs:
                add(source)
            store.add(key, module.weights.source(key))

    for key in reversed(list(module.weights)):
        add(key)
    metadata = dict(reversed(list(module.metadata.items())))
    return Module(module.name, [graph.copy() for graph in module.graphs.values()], store, metadata)


def _rebuilt(graph: Graph, order: list[Op], name: Callable[[str, int], str]) -> Graph:
    built = Graph(graph.name, graph.states)
    mapping: dict[Value, Value] = {value: built.add_input(value.name, value.type) for value in graph.inputs}
    count = 0
    for op in order:
        operands = [mapping[o] if isinstance(o, Value) else o for o in op.operands]
        hints = [name(value.name, count + i) for i, value in enumerate(op.results)]
        types = [value.type for value in op.results]
        made = built.add(op.name, operands, op.attributes, hint=hints, location=op.location, types=types)
        mapping.update(zip(op.results, made.results, strict=True))
        count += len(hints)
    built.set_outputs(mapping[value] for value in graph.outputs)
    return built
