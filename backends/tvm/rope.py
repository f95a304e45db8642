"""Rotary position embedding of rows (token, head).

    void k(float *out, const float *x, const float *cos, const float *sin, int32_t lo, int32_t hi, int32_t inner,
           int32_t out_s0, int32_t out_s1, int32_t x_s0, int32_t x_s1, int32_t c_s0)

Row r is (token r / inner, head r % inner). The first `rotary_dim` elements turn, the rest is copied:

    half          out[j]     = x[j]     cos[j]     - x[j + h] sin[j]         h = rotary_dim / 2
                  out[j + h] = x[j + h] cos[j + h] + x[j]     sin[j + h]
    interleaved   the same with pairs (2j, 2j + 1)
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.row_output import each_chunk
from slmopt.backends.tvm.vector_math import broadcast

__all__ = ["rope"]


def rope(isa: Isa, *, head_dim: int, rotary_dim: int, style: str = "half") -> Kernel:
    """The kernel for heads of `head_dim` of which `rotary_dim` elements turn."""
    name = f"rope_{style}_{head_dim}_{rotary_dim}"
    numbers = "lo hi inner out_s0 out_s1 x_s0 x_s1 c_s0"

    def build() -> Any:
        from tvm import tirx

        code = Code(name)
        out, x, cos, sin = (code.pointer(label, "float32") for label in ("out", "x", "cos", "sin"))
        lo, hi, inner, out_s0, out_s1, x_s0, x_s1, c_s0 = code.numbers(numbers)
        with code.loop(hi - lo) as i:
            row = code.let(lo + i)
            token, head = code.let(tirx.floordiv(row, inner)), code.let(tirx.floormod(row, inner))
            source, target = code.let(token * x_s0 + head * x_s1), code.let(token * out_s0 + head * out_s1)
            angle = code.let(token * c_s0)
            if style == "half":
                half = rotary_dim // 2
                each_chunk(code, half, isa.lanes, lambda at, lanes: _turn(
                    code, out, x, cos, sin, target + at, source + at, angle + at, half, lanes
                ))  # fmt: skip
            else:
                each_chunk(code, rotary_dim, isa.lanes, lambda at, lanes: _turn_neighbours(
                    code, out, x, cos, sin, target + at, source + at, angle + at, lanes
                ))  # fmt: skip
            each_chunk(code, head_dim - rotary_dim, isa.lanes, lambda at, lanes: out.store(
                target + rotary_dim + at, x.load(source + rotary_dim + at, lanes), lanes
            ))  # fmt: skip
        return code.finish()

    pointers = ("float *out", "const float *x", "const float *cos", "const float *sin")
    return Kernel(name, (*pointers, *(f"int32_t {number}" for number in numbers.split())), build)


def _turn(
    code: Code, out: Memory, x: Memory, cos: Memory, sin: Memory, target: Any, source: Any, angle: Any, apart: int,
    lanes: int,
) -> None:  # fmt: skip
    """Turn the pairs (x[source], x[source + apart])."""
    a, b = code.let(x.load(source, lanes)), code.let(x.load(source + apart, lanes))
    first = code.let(a * cos.load(angle, lanes) - b * sin.load(angle, lanes))
    second = code.let(b * cos.load(angle + apart, lanes) + a * sin.load(angle + apart, lanes))
    out.store(target, first, lanes)
    out.store(target + apart, second, lanes)


def _turn_neighbours(
    code: Code, out: Memory, x: Memory, cos: Memory, sin: Memory, target: Any, source: Any, angle: Any, lanes: int
) -> None:
    """Turn the pairs of neighbours in one vector: x cos + (x, neighbours exchanged) (-sin, sin, -sin, ...)."""
    from tvm import tirx

    values = code.let(x.load(source, lanes))
    exchanged = tirx.Shuffle([values], [lane ^ 1 for lane in range(lanes)])
    even = tirx.bitwise_and(tirx.Ramp(0, 1, lanes), broadcast(1, lanes, "int32")).equal(broadcast(0, lanes, "int32"))
    sines = code.let(sin.load(angle, lanes))
    signed = tirx.Select(even, broadcast(0.0, lanes) - sines, sines)
    out.store(target, values * cos.load(angle, lanes) + exchanged * signed, lanes)
