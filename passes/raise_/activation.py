"""The pass `raise-activation`: activation functions written out in arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Value
from slmopt.rewrite import Match, Pattern, RewritePass, Rewriter, Rule, any_, constant, either, op, replace, rule

__all__ = ["RULES", "RaiseActivation"]

_X = any_("x")


def _half_x_times(factor: Pattern) -> Pattern:
    """0.5 x f in every grouping."""
    half = constant(0.5)
    return either(
        op("mul", op("mul", _X, half), factor),
        op("mul", _X, op("mul", factor, half)),
        op("mul", half, op("mul", _X, factor)),
    )


def _one_plus(x: Pattern) -> Pattern:
    return op("add", x, constant(1))


# The tanh form of Hendrycks and Gimpel (2016): sqrt(2 / pi) (x + 0.044715 x^3), also with x taken out of the bracket.
_ROOT, _CUBIC = constant(math.sqrt(2 / math.pi)), constant(0.044715)
_SQUARE = either(op("pow", _X, constant(2)), op("mul", _X, _X))
_CUBE = either(op("pow", _X, constant(3)), op("mul", _SQUARE, _X))
_SCALED_SQUARE = either(op("mul", _SQUARE, _CUBIC), op("mul", op("mul", _X, _CUBIC), _X))
_SCALED_CUBE = either(
    op("mul", _CUBE, _CUBIC), op("mul", _SCALED_SQUARE, _X), op("mul", op("mul", _X, _CUBIC), _SQUARE),
)  # fmt: skip
_BRACKET = op("add", _X, _SCALED_CUBE)
_INNER = either(
    op("mul", _BRACKET, _ROOT), op("mul", op("mul", _X, _ROOT), _one_plus(_SCALED_SQUARE)),
    op("mul", op("mul", _X, _one_plus(_SCALED_SQUARE)), _ROOT),
)  # fmt: skip
_GELU_TANH = _half_x_times(_one_plus(op("tanh", _INNER)))

_BY_ROOT_TWO = either(op("div", _X, constant(math.sqrt(2))), op("mul", _X, constant(math.sqrt(0.5))))
_GELU = _half_x_times(_one_plus(op("erf", _BY_ROOT_TWO)))


@rule("relu", op("maximum", _X, constant(0)))
def _relu(at: Rewriter, m: Match) -> Value | None:
    """maximum(x, 0) -> relu(x)"""
    return at.add("relu", m["x"]) if m["x"].type == m.root.result.type else None


RULES: tuple[Rule, ...] = (
    replace("gelu_tanh", _GELU_TANH, op("gelu", _X, approximate=True),
            "x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 -> gelu(x), in every grouping"),
    replace("gelu", _GELU, op("gelu", _X, approximate=False), "x (1 + erf(x / sqrt(2))) / 2 -> gelu(x)"),
    replace("silu", op("mul", _X, op("sigmoid", _X)), op("silu", _X)),
    replace("silu", op("div", _X, _one_plus(op("exp", op("neg", _X)))), op("silu", _X)),
    _relu,
)  # fmt: skip


@dataclass(frozen=True)
class RaiseActivation(RewritePass):
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) -> gelu(x), by erf as well; x sigmoid(x) -> silu(x); relu.

    What has no op of its own (x sigmoid(1.702 x), relu(x)^2, x tanh(softplus(x))) stays arithmetic.
    """

    name: ClassVar[str] = "raise-activation"
    ensures: ClassVar[frozenset[str]] = frozenset({"activations"})
    rules: ClassVar[Sequence[Rule]] = RULES
