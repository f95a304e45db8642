"""The pass `raise-norm`: root-mean-square and layer normalization, however they are spelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Op, Value, Weight
from slmopt.rewrite import Match, Pattern, RewritePass, Rewriter, Rule, any_, constant, either, on_last_axis, op, rule
from slmopt.rewrite import weight as stored

__all__ = ["RULES", "RaiseNorm"]

_X = any_("x")


def _mean(of: Pattern) -> Pattern:
    return op("mean", of, where=on_last_axis, keep=True)


_SQUARED = either(op("pow", _X, constant(2)), op("mul", _X, _X))
_VARIANCE = op("add", _mean(_SQUARED), constant(name="eps"))
_DEVIATION = either(op("sqrt", _VARIANCE), op("pow", _VARIANCE, constant(0.5)))
_INVERSE = either(
    op("rsqrt", _VARIANCE), op("pow", _VARIANCE, constant(-0.5)), op("reciprocal", _DEVIATION),
    op("div", constant(1), _DEVIATION),
)  # fmt: skip


@rule("rms_norm", either(op("mul", _X, _INVERSE), op("div", _X, _DEVIATION)))
def _rms(at: Rewriter, m: Match) -> Value | None:
    """x / sqrt(mean(x^2) + eps) -> rms_norm(x)"""
    return at.add("rms_norm", m["x"], eps=float(m.number("eps")))


@rule("layer_norm", op("rms_norm", op("sub", _X, _mean(_X)), ..., output="f32"))
def _centred(at: Rewriter, m: Match) -> Value | None:
    """rms_norm(x - mean(x)) -> layer_norm(x)"""
    return at.add("layer_norm", m["x"], *m.root.operands[1:], eps=m.root.attributes["eps"])


def _fits(norm: Value, vector: Weight) -> bool:
    return vector.type.shape == norm.shape[-1:]


@rule("norm weight", op("mul", op(("rms_norm", "layer_norm"), _X, bind="norm", output="f32"), stored("w")))
def _weighted(at: Rewriter, m: Match) -> Value | None:
    """norm(x) * w -> norm(x, w)"""
    if not _fits(m.value("norm"), m.weight("w")):
        return None
    return at.again(m.op("norm"), m["x"], m["w"])


def _has_no_bias(norm: Op) -> bool:
    return len(norm.operands) < 3 or norm.operands[2] is None


_UNBIASED = op("layer_norm", _X, ..., bind="norm", output="f32", where=_has_no_bias)


@rule("norm bias", op("add", _UNBIASED, stored("b")))
def _biased(at: Rewriter, m: Match) -> Value | None:
    """layer_norm(x, w) + b -> layer_norm(x, w, b)"""
    norm = m.op("norm")
    if not _fits(norm.result, m.weight("b")):
        return None
    return at.again(norm, m["x"], norm.operands[1] if len(norm.operands) > 1 else None, m["b"])


RULES: tuple[Rule, ...] = (_centred, _rms, _weighted, _biased)


@dataclass(frozen=True)
class RaiseNorm(RewritePass):
    """x * rsqrt(mean(x^2) + eps) * w -> rms_norm(x, w); of x - mean(x), with a bias -> layer_norm(x, w, b)."""

    name: ClassVar[str] = "raise-norm"
    rules: ClassVar[Sequence[Rule]] = RULES
