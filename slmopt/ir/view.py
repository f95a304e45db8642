"""A networkx view of a graph, where graph algorithms earn it; and Graphviz text for drawing."""

from __future__ import annotations

import json
from typing import Any

from slmopt.ir.graph import Graph, Value, Weight

__all__ = ["graph_view", "to_dot"]


def graph_view(graph: Graph) -> Any:
    """A `networkx.MultiDiGraph`: nodes are inputs and ops, edges the values between them.

    A node is named by its (first) value. It has `op` (None for an input), `kind` (the op's name, or "input"),
    `weights` (the keys it reads), `location` and `output` (whether the graph returns a result of it). An edge has
    `value` (its name), `type` and `index` (of the operand). It is a copy: editing it leaves the graph as it is.
    """
    import networkx

    view = networkx.MultiDiGraph(name=graph.name)
    returned = {id(value) for value in graph.outputs}
    for value in graph.inputs:
        view.add_node(value.name, op=None, kind="input", weights=(), location="", output=id(value) in returned)
    for op in graph.walk():
        name = _node(op.results[0])
        weights = tuple(operand.key for operand in op.operands if isinstance(operand, Weight))
        output = any(id(value) in returned for value in op.results)
        view.add_node(name, op=op, kind=op.name, weights=weights, location=op.location, output=output)
        for index, operand in enumerate(op.operands):
            if isinstance(operand, Value):
                view.add_edge(_node(operand), name, value=operand.name, type=operand.type, index=index)
    return view


def to_dot(graph: Graph) -> str:
    """The graph as Graphviz text: `dot -Tsvg` draws it."""
    lines = [f"digraph {json.dumps(graph.name)} {{", "  node [shape=box, fontname=monospace]"]
    for value in graph.inputs:
        lines.append(f"  {json.dumps(value.name)} [label={json.dumps(f'%{value.name}: {value.type}')}, shape=oval]")
    for op in graph.walk():
        weights = [f"@{operand.key}" for operand in op.operands if isinstance(operand, Weight)]
        label = "\n".join([op.name, *weights])
        lines.append(f"  {json.dumps(_node(op.results[0]))} [label={json.dumps(label)}]")
        for operand in op.operands:
            if isinstance(operand, Value):
                edge = f"{json.dumps(_node(operand))} -> {json.dumps(_node(op.results[0]))}"
                lines.append(f"  {edge} [label={json.dumps(str(operand.type))}]")
    return "\n".join([*lines, "}"]) + "\n"


def _node(value: Value) -> str:
    """The node that gives a value: named by the first result of its op."""
    return value.name if value.op is None else value.op.results[0].name
