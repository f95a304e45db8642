"""Vector arithmetic as TIR expressions: broadcast, fused multiply-add, and the functions that models need.

`exp` is Cephes' expf (degree 6 after reduction by log 2, relative error below 2e-7); the others are built on it. Every
function takes vectors of any number of lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.backends.tvm.isa import Isa

__all__ = ["activate", "add_all", "broadcast", "exp", "max_all", "multiply_add", "tanh"]


def broadcast(value: Any, lanes: int, element: str = "float32") -> Any:
    """A number in all lanes."""
    from tvm import tirx

    value = tirx.const(value, element) if isinstance(value, int | float) else value
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def multiply_add(isa: Isa, lanes: int, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the instruction set can."""
    from tvm import tirx

    if not isa.fused or lanes == 1:
        return a * b + c
    return tirx.call_llvm_pure_intrin(f"float32x{lanes}", "llvm.fma", a, b, c)


def exp(isa: Isa, lanes: int, x: Any) -> Any:
    """e^x, 0 below -87.3; x is not above 88.3 in what calls this (softmax, or clamped)."""
    from tvm import tirx

    def number(value: float) -> Any:
        return broadcast(value, lanes)

    low, high = number(-87.33654), number(88.37626)
    y = tirx.max(tirx.min(x, high), low)
    kind = "int32" if lanes == 1 else f"int32x{lanes}"
    real = "float32" if lanes == 1 else f"float32x{lanes}"
    scaled = y * number(1.44269504088896341)
    nearest = tirx.Cast(kind, scaled + tirx.Select(y < number(0.0), number(-0.5), number(0.5)))  # truncates
    n = tirx.Cast(real, nearest)
    r = multiply_add(isa, lanes, n, number(-0.693359375), y)
    r = multiply_add(isa, lanes, n, number(2.12194440e-4), r)
    p = number(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = multiply_add(isa, lanes, p, r, number(coefficient))
    p = multiply_add(isa, lanes, p, r * r, r + number(1.0))
    power = tirx.shift_left(nearest + broadcast(127, lanes, "int32"), broadcast(23, lanes, "int32"))
    found = p * tirx.reinterpret(real, power)
    return tirx.Select(x < low, number(0.0), found)


def sigmoid(isa: Isa, lanes: int, x: Any) -> Any:
    """1 / (1 + e^-x)."""
    one = broadcast(1.0, lanes)
    return one / (one + exp(isa, lanes, broadcast(0.0, lanes) - x))


def tanh(isa: Isa, lanes: int, x: Any) -> Any:
    """Hyperbolic tangent: by (1 - e^-2|x|) / (1 + e^-2|x|), and by a polynomial near 0 where that cancels."""
    from tvm import tirx

    zero, one = broadcast(0.0, lanes), broadcast(1.0, lanes)
    size = tirx.max(x, zero - x)
    e = exp(isa, lanes, size * broadcast(-2.0, lanes))
    large = (one - e) / (one + e)
    z = x * x  # Cephes tanhf, |x| < 0.625
    p = broadcast(-5.70498872745e-3, lanes)
    for coefficient in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        p = multiply_add(isa, lanes, p, z, broadcast(coefficient, lanes))
    small = multiply_add(isa, lanes, p * z, x, x)
    signed = tirx.Select(x < zero, zero - large, large)
    return tirx.Select(size < broadcast(0.625, lanes), small, signed)


def erf(isa: Isa, lanes: int, x: Any) -> Any:
    """Error function, absolute error below 4e-7 (Abramowitz and Stegun 7.1.26)."""
    from tvm import tirx

    zero, one = broadcast(0.0, lanes), broadcast(1.0, lanes)
    size = tirx.max(x, zero - x)
    t = one / multiply_add(isa, lanes, size, broadcast(0.3275911, lanes), one)
    p = broadcast(1.061405429, lanes)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = multiply_add(isa, lanes, p, t, broadcast(coefficient, lanes))
    found = one - p * t * exp(isa, lanes, zero - size * size)
    return tirx.Select(x < zero, zero - found, found)


def activate(isa: Isa, lanes: int, name: str | None, x: Any) -> Any:
    """An activation function by its attribute value."""
    from tvm import tirx

    if name is None:
        return x
    if name == "relu":
        return tirx.max(x, broadcast(0.0, lanes))
    if name == "silu":
        return x * sigmoid(isa, lanes, x)
    if name == "sigmoid":
        return sigmoid(isa, lanes, x)
    if name == "tanh":
        return tanh(isa, lanes, x)
    half, one = broadcast(0.5, lanes), broadcast(1.0, lanes)
    if name == "gelu":
        return half * x * (one + erf(isa, lanes, x * broadcast(0.7071067811865476, lanes)))
    inner = x * multiply_add(isa, lanes, x * x, broadcast(0.044715 * 0.7978845608028654, lanes), broadcast(0.7978845608028654, lanes))
    return half * x * (one + tanh(isa, lanes, inner))


def add_all(lanes: int, x: Any) -> Any:
    """The sum of all lanes, as a tree of halves: a fixed order, whatever the compiler would like."""
    return _fold(lanes, x, lambda a, b: a + b)


def max_all(lanes: int, x: Any) -> Any:
    """The largest lane."""
    from tvm import tirx

    return _fold(lanes, x, tirx.max)


def _fold(lanes: int, x: Any, combine: Callable[[Any, Any], Any]) -> Any:
    from tvm import tirx

    while lanes > 1:
        lanes //= 2
        low = tirx.Shuffle([x], list(range(lanes)))
        high = tirx.Shuffle([x], list(range(lanes, 2 * lanes)))
        x = combine(low, high)
    return x
