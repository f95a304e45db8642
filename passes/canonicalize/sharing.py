"""Common subexpressions: what is computed twice from the same operands is computed once."""

from __future__ import annotations

from collections.abc import Hashable

from slmopt.ir.graph import Attribute, Graph, Op, Value
from slmopt.pipeline import Context

__all__ = ["share_subexpressions"]


def share_subexpressions(graph: Graph, context: Context) -> int:
    """Replace every op by an earlier equal one; returns how many. All ops of the IR are pure."""
    first: dict[Hashable, Op] = {}
    shared = 0
    for op in graph.walk():
        earlier = first.setdefault(_identity(op), op)
        if earlier is not op and context.permits("shared", op):
            graph.replace(op, *earlier.results)
            shared += 1
    return shared


def _identity(op: Op) -> Hashable:
    operands = tuple(id(o) if isinstance(o, Value) else o for o in op.operands)
    return op.name, operands, tuple(_typed(value) for value in op.attributes.values())


def _typed(value: Attribute) -> Hashable:
    """An attribute with its Python type, so that 1, 1.0 and True differ."""
    if isinstance(value, tuple):
        return tuple(_typed(item) for item in value)
    return type(value), repr(value)
