"""A graph as it is without dead ops, which would hide that its layers are the same."""

from __future__ import annotations

from slmopt.ir.graph import Graph

__all__ = ["without_dead_ops"]


def without_dead_ops(graph: Graph) -> Graph:
    """A copy, in which values have the names that they have in the graph."""
    live = graph.copy()
    live.erase_dead()
    return live
