"""The pass `raise-linear`: products with a stored matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Value
from slmopt.rewrite import Match, RewritePass, Rewriter, Rule, any_, op, rule, weight

__all__ = ["RULES", "RaiseLinear"]

_X = any_("x", lambda operand: isinstance(operand, Value))
_MATRIX = weight("w", lambda operand: operand.type.rank == 2)


@rule("linear", op("matmul", _X, op("permute", _MATRIX, axes=(1, 0))))
def _by_transposed(at: Rewriter, m: Match) -> Value | None:
    """matmul(x, permute(w)) -> linear(x, w)"""
    return at.add("linear", m["x"], m["w"])


@rule("linear", op("matmul", _X, _MATRIX))
def _by_columns(at: Rewriter, m: Match) -> Value | None:
    """matmul(x, w) -> linear(x, transposed w)

    An outer product (k = 1) is no linear layer.
    """
    rows, columns = m["w"].type.shape
    if rows == 1:
        return None
    turned = m["w"].type.with_shape(columns, rows)
    derived = at.derive(m.weight("w"), "transposed", lambda w: w.transpose(0, 1).contiguous(), type=turned)
    return None if derived is None else at.add("linear", m["x"], derived)


_VECTOR = weight("bias", lambda operand: operand.type.rank == 1)


@rule("linear bias", op("add", op("linear", _X, _MATRIX, once=True, activation=None, act=None), _VECTOR))
def _with_bias(at: Rewriter, m: Match) -> Value | None:
    """linear(x, w) + b -> linear(x, w, b)"""
    if m["bias"].type.shape != m["w"].type.shape[:1]:
        return None
    return at.add("linear", m["x"], m["w"], m["bias"])


RULES: tuple[Rule, ...] = (_by_transposed, _by_columns, _with_bias)


@dataclass(frozen=True)
class RaiseLinear(RewritePass):
    """matmul(x, permute(W)) + b -> linear(x, W, b); a matrix stored [k, n] is transposed once."""

    name: ClassVar[str] = "raise-linear"
    unties: ClassVar[bool] = True  # a matrix that is read as it is stored, and transposed
    rules: ClassVar[Sequence[Rule]] = RULES
