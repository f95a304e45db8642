"""A graph as a networkx graph: for algorithms and drawing, never for editing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmopt.ir.graph import Graph, Op, Value, Weight

if TYPE_CHECKING:
    import networkx

__all__ = ["graph_view", "node_name"]


def node_name(producer: Op | Value) -> str:
    """The node of an op (its first result's name) or of a graph input (its name)."""
    return producer.name if isinstance(producer, Value) else producer.results[0].name


def graph_view(graph: Graph) -> networkx.MultiDiGraph:
    """Nodes are graph inputs and ops; an edge is one use of a value.

    Node attributes: `op` (the Op, None for an input), `label` (op name or "input"), `types` (results, as text),
    `weights` (keys the op reads), `location`. Edge attributes: `value` (name), `operand` (index at the reader),
    `result` (index at the producer). Graph attributes: `name`, `outputs` (value names in order).
    """
    import networkx

    view = networkx.MultiDiGraph(name=graph.name, outputs=tuple(value.name for value in graph.outputs))
    for value in graph.inputs:
        view.add_node(value.name, op=None, label="input", types=(str(value.type),), weights=(), location="")
    for op in graph.walk():
        keys = tuple(operand.key for operand in op.operands if isinstance(operand, Weight))
        types = tuple(str(result.type) for result in op.results)
        view.add_node(node_name(op), op=op, label=op.name, types=types, weights=keys, location=op.location)
        for index, operand in enumerate(op.operands):
            if isinstance(operand, Value):
                producer = operand.op if operand.op is not None else operand
                view.add_edge(
                    node_name(producer), node_name(op), value=operand.name, operand=index, result=operand.index
                )
    return view
