"""TIR expressions of the elementwise ops. Transcendental functions are libm's, exact to an ulp or so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.ir.graph import Op

__all__ = ["ELEMENTWISE"]


def _libm(name: str) -> Callable[..., Any]:
    return lambda tir, op, x: tir.call_pure_extern("float32", f"{name}f", x)


def _constant(tir: Any, value: float) -> Any:
    return tir.const(value, "float32")


def _sigmoid(tir: Any, op: Op, x: Any) -> Any:
    return _constant(tir, 1.0) / (_constant(tir, 1.0) + tir.call_pure_extern("float32", "expf", -x))


def _gelu(tir: Any, op: Op, x: Any) -> Any:
    if op.attributes["approximate"]:
        inner = _constant(tir, 0.7978845608028654) * (x + _constant(tir, 0.044715) * x * x * x)
        curve = tir.call_pure_extern("float32", "tanhf", inner)
    else:
        curve = tir.call_pure_extern("float32", "erff", x * _constant(tir, 0.7071067811865476))
    return _constant(tir, 0.5) * x * (_constant(tir, 1.0) + curve)


def _softplus(tir: Any, op: Op, x: Any) -> Any:
    curved = tir.call_pure_extern("float32", "log1pf", tir.call_pure_extern("float32", "expf", x))
    return tir.Select(x > _constant(tir, 20.0), x, curved)


def _power(tir: Any, op: Op, a: Any, b: Any) -> Any:
    return tir.call_pure_extern("float32", "powf", a, b)


def _divide(tir: Any, op: Op, a: Any, b: Any) -> Any:
    return a / b if op.result.type.element.is_float else tir.floordiv(a, b)


def _remainder(tir: Any, op: Op, a: Any, b: Any) -> Any:
    if not op.result.type.element.is_float:
        return tir.floormod(a, b)
    return a - b * tir.call_pure_extern("float32", "floorf", a / b)


def _zero(tir: Any, op: Op) -> Any:
    return _constant(tir, 0.0) if op.result.type.element.is_float else tir.const(0, "int64")


# name -> (tir, op, operands...) -> expression
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": lambda tir, op, a, b: a + b,
    "sub": lambda tir, op, a, b: a - b,
    "mul": lambda tir, op, a, b: a * b,
    "div": _divide,
    "pow": _power,
    "remainder": _remainder,
    "maximum": lambda tir, op, a, b: tir.max(a, b),
    "minimum": lambda tir, op, a, b: tir.min(a, b),
    "logical_and": lambda tir, op, a, b: tir.all(a, b),
    "logical_or": lambda tir, op, a, b: tir.any(a, b),
    "logical_not": lambda tir, op, x: tir.Not(x),
    "eq": lambda tir, op, a, b: a.equal(b),
    "ne": lambda tir, op, a, b: tir.Not(a.equal(b)),
    "lt": lambda tir, op, a, b: a < b,
    "le": lambda tir, op, a, b: a <= b,
    "gt": lambda tir, op, a, b: a > b,
    "ge": lambda tir, op, a, b: a >= b,
    "where": lambda tir, op, c, a, b: tir.Select(c, a, b),
    "neg": lambda tir, op, x: -x,
    "abs": lambda tir, op, x: tir.abs(x),
    "relu": lambda tir, op, x: tir.max(x, _zero(tir, op)),
    "exp": _libm("exp"),
    "expm1": _libm("expm1"),
    "log": _libm("log"),
    "log1p": _libm("log1p"),
    "sqrt": _libm("sqrt"),
    "sin": _libm("sin"),
    "cos": _libm("cos"),
    "tanh": _libm("tanh"),
    "erf": _libm("erf"),
    "floor": _libm("floor"),
    "rsqrt": lambda tir, op, x: _constant(tir, 1.0) / tir.call_pure_extern("float32", "sqrtf", x),
    "reciprocal": lambda tir, op, x: _constant(tir, 1.0) / x,
    "sigmoid": _sigmoid,
    "silu": lambda tir, op, x: x * _sigmoid(tir, op, x),
    "softplus": _softplus,
    "gelu": _gelu,
}
