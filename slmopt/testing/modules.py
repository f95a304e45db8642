"""Hypothesis strategy: modules of any ops, names and sizes, such as no frontend makes but every pass must bear."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from slmopt.ir.graph import Graph, Module, Value
from slmopt.ir.types import tensor
from slmopt.testing.any_ops import OP_BYTES, Builder
from slmopt.testing.choices import Choices, chosen
from slmopt.testing.weights import KIND_BYTES, add_numbers, choose_kinds

__all__ = ["choose_module", "modules"]

_GRAPH_BYTES = 40 + 10 * OP_BYTES
_OWN_BYTES = 60


def modules(*, executable: bool = True) -> st.SearchStrategy[Module]:
    """A module of one or two graphs, @forward first, with weights.

    Sizes such as 1 and primes beside symbolic ones, weights that several ops read, several outputs, one of them twice,
    inputs and results that nobody reads, states, absent operands, any characters in names, keys and locations.
    Without `executable`, numbers and quantized types that the IR can say but no one can compute with, too.
    """
    return chosen(_OWN_BYTES + 2 * _GRAPH_BYTES + KIND_BYTES, lambda choices: choose_module(choices, executable))


def choose_module(choices: Choices, executable: bool = True) -> Module:
    """A random module with weights."""
    own, kinds = choices.part(_OWN_BYTES), choices.part(KIND_BYTES)
    builder = Builder(executable, prefix=own.pick("", "layers.0.", own.text()))
    names = dict.fromkeys(["forward", *([f"{own.text()}_other"] if own.seldom() else [])])
    graphs = [_graph(choices.part(_GRAPH_BYTES), name, builder) for name in names]
    metadata = {f"m_{own.text(3)}": _json(own, 2) for _ in range(own.below(3))}
    module = Module(own.text() or "m", graphs, metadata=metadata)
    add_numbers(module, choose_kinds(kinds, module))
    return module


def _graph(choices: Choices, name: str, builder: Builder) -> Graph:
    graph, own = Graph(name), choices.part(40)
    width = own.pick(4, 2, 1, 3, 5, 7, 8)
    values = [graph.add_input(own.text(3) or "x", tensor("f32", "b", "s", width))]
    if own.seldom():
        graph.add_input("unused", own.pick(tensor("f32", "b", 3), tensor("i64", "b", "s"), tensor("f32", "s", 1)))
    if own.pick(False, True):
        values.append(graph.add_input(own.text(3) or "y", tensor("f32", "b", "s", own.pick(width, 1, 4))))
    states = [graph.add_input("state", tensor("f32", "b", own.pick(3, 1))) for _ in range(own.pick(0, 0, 0, 1, 2))]
    for _ in range(own.pick(1, 2, 4, 6, 8, 10)):
        builder.add_op(choices.part(OP_BYTES), graph, values)
    graph.states = len(states)
    outputs = [values[-1], *(values[own.below(len(values))] for _ in range(own.pick(0, 0, 1, 2)))]
    graph.set_outputs([*outputs, *_next_states(own, graph, states)])
    return graph


def _next_states(choices: Choices, graph: Graph, states: list[Value]) -> list[Value]:
    return [graph.add(choices.pick("neg", "tanh"), (s,)).result if choices.pick(False, True) else s for s in states]


def _json(choices: Choices, depth: int) -> Any:
    kind = choices.below(8 if depth else 5)
    if kind > 5:
        return {choices.text(2): _json(choices, depth - 1) for _ in range(choices.below(3))}
    if kind == 5:
        return [_json(choices, depth - 1) for _ in range(choices.below(3))]
    return (None, choices.pick(True, False), choices.below(256) - 2**40, choices.below(256) / 7, choices.text())[kind]
