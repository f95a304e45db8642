"""The pass `raise-embedding`: rows of a stored table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.dims import SymbolicDim
from slmopt.ir.graph import Value
from slmopt.ir.ops.shape import slice_bounds
from slmopt.rewrite import Match, RewritePass, Rewriter, Rule, any_, op, rule, weight

__all__ = ["RULES", "RaiseEmbedding"]

_TABLE = weight("table", lambda operand: operand.type.rank == 2 and operand.type.element.is_float)


@rule("embedding", op("gather", _TABLE, any_("index"), where=lambda found: found.attributes["axis"] in (0, -2)))
def _rows(at: Rewriter, m: Match) -> Value | None:
    """gather(table, ids) -> embedding(ids, table)"""
    return at.add("embedding", m["index"], m["table"])


@rule("embedding", op("slice", _TABLE))
def _first_rows(at: Rewriter, m: Match) -> Value | None:
    """table[:s] -> embedding(arange(s), table): learned positions"""
    axis, start, stop, step = slice_bounds(m.root)
    if axis != 0 or step != 1 or not isinstance(stop - start, SymbolicDim):
        return None
    return at.add("embedding", at.add("arange", start=start, stop=stop, element="i64"), m["table"])


RULES: tuple[Rule, ...] = (_rows, _first_rows)


@dataclass(frozen=True)
class RaiseEmbedding(RewritePass):
    """gather(table, ids) -> embedding(ids, table); table[:s] -> embedding(arange(s), table)"""

    name: ClassVar[str] = "raise-embedding"
    rules: ClassVar[Sequence[Rule]] = RULES
