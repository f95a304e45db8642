"""The pass `canonicalize`: one way to write each thing, nothing computed twice or for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Module
from slmopt.passes.canonicalize.broadcasting import BROADCASTING
from slmopt.passes.canonicalize.constants import fold_constants
from slmopt.passes.canonicalize.flattening import FLATTENING
from slmopt.passes.canonicalize.identities import IDENTITIES
from slmopt.passes.canonicalize.positions import POSITIONS
from slmopt.passes.canonicalize.sharing import share_subexpressions
from slmopt.pipeline import Context, Pass
from slmopt.rewrite import Rule, rewrite

__all__ = ["Canonicalize", "canonicalize"]


@dataclass(frozen=True)
class Canonicalize(Pass):
    """reshape(reshape(x)) -> reshape(x), x * 1 -> x, cos(a), cos(a) -> one cos, ...: one way to write each thing.

    Drops ops that change nothing; merges consecutive reshapes, permutes, slices, casts and scalings; lets broadcasting
    do the work of expand; writes counted positions as arange; moves reshapes that merge leading axes behind token-wise
    ops; computes what depends on weights alone once, as a derived weight; shares equal ops; erases dead ones. Repeats
    until nothing changes.
    """

    name: ClassVar[str] = "canonicalize"
    ensures: ClassVar[frozenset[str]] = frozenset({"canonical"})
    takes_rules: ClassVar[bool] = True
    rules: ClassVar[Sequence[Rule]] = (*IDENTITIES, *BROADCASTING, *POSITIONS, *FLATTENING)
    unties: ClassVar[bool] = True  # a weight that is read as it is stored, and in an expression that is folded

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return canonicalize(module, context)


def canonicalize(module: Module, context: Context | None = None) -> dict[str, int]:
    """Bring every graph into canonical form, by the rules of plugins too; returns what changed, by kind."""
    counts: dict[str, int] = {}
    while changed := _once(module, context or Context()):
        for kind, count in changed.items():
            counts[kind] = counts.get(kind, 0) + count
    return counts


def _once(module: Module, context: Context) -> dict[str, int]:
    graphs = module.graphs.values()
    counts = {"dead": sum(graph.erase_dead() for graph in graphs)}
    counts["shared"] = sum(share_subexpressions(graph, context) for graph in graphs)
    counts.update(rewrite(module, (*Canonicalize.rules, *context.rules(Canonicalize.name))))
    counts["folded"] = sum(fold_constants(module, graph, context) for graph in graphs)
    return {kind: count for kind, count in counts.items() if count}
