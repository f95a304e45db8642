"""Vector arithmetic as TIR expressions: broadcast, fused multiply-add, and the functions that models need.

`exp` and `tanh` follow Cephes (Moshier); the others are built on them. Every function takes vectors of any number of
lanes. Errors are against exact arithmetic on float32 inputs. NaN stays NaN: comparisons are written so that it falls
through, since a damaged model should not look healthy.

`let` names an intermediate value (Code.let): it compiles far faster than one expression with all of it written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.backends.tvm.isa import Isa

__all__ = ["activate", "add_all", "bfloat16_bits", "broadcast", "exp", "from_half", "max_all", "multiply_add", "tanh"]


Let = Callable[[Any], Any]


def _inline(value: Any) -> Any:
    return value


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


def from_half(isa: Isa, lanes: int, bits: Any) -> Any:
    """float32 of float16 bits (uint16 lanes), exact for every finite number."""
    from tvm import tirx

    def kind(element: str) -> str:
        return element if lanes == 1 else f"{element}x{lanes}"

    if isa.half:
        return tirx.Cast(kind("float32"), tirx.reinterpret(kind("float16"), bits))
    # Exponent and fraction moved into place are the number times 2^-112, subnormal numbers too.
    wide = tirx.Cast(kind("uint32"), bits)
    size = tirx.shift_left(tirx.bitwise_and(wide, broadcast(0x7FFF, lanes, "uint32")), broadcast(13, lanes, "uint32"))
    scaled = tirx.reinterpret(kind("float32"), size) * broadcast(2.0**112, lanes)
    sign = tirx.shift_left(tirx.bitwise_and(wide, broadcast(0x8000, lanes, "uint32")), broadcast(16, lanes, "uint32"))
    return tirx.reinterpret(kind("float32"), tirx.bitwise_or(tirx.reinterpret(kind("uint32"), scaled), sign))


def bfloat16_bits(lanes: int, x: Any) -> Any:
    """The bits (uint16 lanes) of the bfloat16 nearest to float32 numbers, ties to even; NaN stays NaN."""
    from tvm import tirx

    def kind(element: str) -> str:
        return element if lanes == 1 else f"{element}x{lanes}"

    def number(value: int) -> Any:
        return broadcast(value, lanes, "uint32")

    bits = tirx.reinterpret(kind("uint32"), x)
    odd = tirx.bitwise_and(tirx.shift_right(bits, number(16)), number(1))
    rounded = tirx.shift_right(bits + number(0x7FFF) + odd, number(16))
    is_number = tirx.bitwise_and(bits, number(0x7FFFFFFF)) <= number(0x7F800000)  # x == x would be simplified away
    return tirx.Cast(kind("uint16"), tirx.Select(is_number, rounded, number(0x7FC0)))


def exp(isa: Isa, lanes: int, x: Any, let: Let = _inline) -> Any:
    """e^x, relative error below 2e-7; 0 below -87.3, and above 88.37 what it is there (2.4e38)."""
    from tvm import tirx

    def number(value: float) -> Any:
        return broadcast(value, lanes)

    low, high = number(-87.33654), number(88.37626)
    x = let(x)
    y = let(tirx.Select(x < low, low, tirx.Select(x > high, high, x)))
    kind = "int32" if lanes == 1 else f"int32x{lanes}"
    real = "float32" if lanes == 1 else f"float32x{lanes}"
    scaled = y * number(1.44269504088896341)
    nearest = let(tirx.Cast(kind, scaled + tirx.Select(y < number(0.0), number(-0.5), number(0.5))))  # truncates
    n = let(tirx.Cast(real, nearest))
    r = multiply_add(isa, lanes, n, number(-0.693359375), y)
    r = let(multiply_add(isa, lanes, n, number(2.12194440e-4), r))
    p = number(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = multiply_add(isa, lanes, p, r, number(coefficient))
    p = multiply_add(isa, lanes, p, r * r, r + number(1.0))
    power = tirx.shift_left(nearest + broadcast(127, lanes, "int32"), broadcast(23, lanes, "int32"))
    found = p * tirx.reinterpret(real, power)
    return let(tirx.Select(x < low, number(0.0), found))


def sigmoid(isa: Isa, lanes: int, x: Any, let: Let = _inline) -> Any:
    """1 / (1 + e^-x), relative error below 4e-7 for x above -87; below it stays under 1e-38."""
    one = broadcast(1.0, lanes)
    return one / (one + exp(isa, lanes, broadcast(0.0, lanes) - x, let))


def tanh(isa: Isa, lanes: int, x: Any, let: Let = _inline) -> Any:
    """Hyperbolic tangent, relative error below 4e-7: (1 - e^-2|x|) / (1 + e^-2|x|), a polynomial where that cancels."""
    from tvm import tirx

    zero, one = broadcast(0.0, lanes), broadcast(1.0, lanes)
    x = let(x)
    size = let(tirx.Select(x < zero, zero - x, x))
    e = exp(isa, lanes, size * broadcast(-2.0, lanes), let)
    large = let((one - e) / (one + e))
    z = x * x  # Cephes tanhf, |x| < 0.625
    p = broadcast(-5.70498872745e-3, lanes)
    for coefficient in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        p = multiply_add(isa, lanes, p, z, broadcast(coefficient, lanes))
    small = multiply_add(isa, lanes, p * z, x, x)
    signed = tirx.Select(x < zero, zero - large, large)
    return let(tirx.Select(size < broadcast(0.625, lanes), small, signed))


def erf(isa: Isa, lanes: int, x: Any, let: Let = _inline) -> Any:
    """Error function, absolute error below 4e-7, relative below 1e-6 (Abramowitz and Stegun 7.1.26; near 0 7.1.5)."""
    from tvm import tirx

    zero, one = broadcast(0.0, lanes), broadcast(1.0, lanes)
    x = let(x)
    size = let(tirx.Select(x < zero, zero - x, x))
    t = let(one / multiply_add(isa, lanes, size, broadcast(0.3275911, lanes), one))
    p = broadcast(1.061405429, lanes)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = multiply_add(isa, lanes, p, t, broadcast(coefficient, lanes))
    large = let(one - p * t * exp(isa, lanes, zero - size * size, let))
    z = x * x  # the series, |x| < 0.5
    p = broadcast(-1 / 1320, lanes)
    for coefficient in (1 / 216, -1 / 42, 1 / 10, -1 / 3, 1.0):
        p = multiply_add(isa, lanes, p, z, broadcast(coefficient, lanes))
    small = x * p * broadcast(1.1283791670955126, lanes)
    signed = tirx.Select(x < zero, zero - large, large)
    return let(tirx.Select(size < broadcast(0.5, lanes), small, signed))


def activate(isa: Isa, lanes: int, name: str | None, x: Any, let: Let = _inline) -> Any:
    """An activation function by its attribute value; absolute or relative error below 1e-6."""
    from tvm import tirx

    if name is None:
        return x
    x = let(x)
    if name == "relu":
        return tirx.Select(x < broadcast(0.0, lanes), broadcast(0.0, lanes), x)
    if name == "silu":
        return x * sigmoid(isa, lanes, x, let)
    if name == "sigmoid":
        return sigmoid(isa, lanes, x, let)
    if name == "tanh":
        return tanh(isa, lanes, x, let)
    half, one = broadcast(0.5, lanes), broadcast(1.0, lanes)
    if name == "gelu":
        return half * x * (one + erf(isa, lanes, x * broadcast(0.7071067811865476, lanes), let))
    cubic, linear = broadcast(0.044715 * 0.7978845608028654, lanes), broadcast(0.7978845608028654, lanes)
    inner = x * multiply_add(isa, lanes, x * x, cubic, linear)
    return half * x * (one + tanh(isa, lanes, inner, let))


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
