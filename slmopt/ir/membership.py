"""What belongs to a graph: errors for ops that were erased, and for ops and values of another graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slmopt.errors import IRError
from slmopt.ir.values import Operand, Value, Weight

if TYPE_CHECKING:
    from slmopt.ir.graph import Graph, Op

__all__ = ["check_member", "check_operand"]


def check_member(graph: Graph, op: Op) -> None:
    """IRError where `op` is not in `graph`."""
    if op.graph is None:
        raise IRError(f"{op.describe()} was erased from its graph: look for what replaced it")
    if op.graph is not graph:
        raise IRError(f"{op.describe()} is an op of {_other(op.graph, graph)}")


def check_operand(graph: Graph, operand: Operand, reader: str) -> None:
    """IRError where a value cannot be read in `graph`, by an op named `reader`."""
    if operand is None or isinstance(operand, Weight):
        return
    if not isinstance(operand, Value):
        hint = "; an op is read through its result" if hasattr(operand, "results") else ""
        raise IRError(f"{reader} cannot read {operand!r}: expected a value, a weight or None{hint}")
    made_by = operand.op
    if made_by is None:
        if not any(value is operand for value in graph.inputs):
            raise IRError(f"{reader} cannot read %{operand.name}: it is an input of another graph than @{graph.name}")
    elif made_by.graph is None:
        raise IRError(f"{reader} cannot read %{operand.name}: {made_by.describe()} was erased; read what replaced it")
    elif made_by.graph is not graph:
        raise IRError(f"{reader} cannot read %{operand.name}: it is a value of {_other(made_by.graph, graph)}")


def _other(found: Graph, wanted: Graph) -> str:
    if found.name == wanted.name:
        return f"a copy of graph @{found.name}: look it up by name in the graph that is edited"
    return f"graph @{found.name}, not of @{wanted.name}"
