"""A module as it is without dead ops, which would hide that its layers are the same, and tie what they read."""

from __future__ import annotations

from slmopt.ir.graph import Module

__all__ = ["without_dead_ops"]


def without_dead_ops(module: Module) -> Module:
    """A copy, in which values have the names that they have in the module."""
    live = module.copy()
    for graph in live.graphs.values():
        graph.erase_dead()
    return live
