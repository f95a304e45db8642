"""Rows of float32 rounded to bfloat16, stored as such or as float32.

void k(T *out, const float *x, int32_t lo, int32_t hi, int32_t out_stride, int32_t x_stride)
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.row_output import each_chunk
from slmopt.backends.tvm.vector_math import bfloat16_bits, broadcast
from slmopt.ir.types import DType

__all__ = ["round_rows"]


def round_rows(isa: Isa, *, width: int, stored: DType) -> Kernel:
    """The kernel for rows of `width` numbers, stored as bf16 or f32."""
    name = f"round_rows_{stored}_{width}"
    kind, declared = ("uint16", "uint16_t") if stored == DType.bf16 else ("float32", "float")
    numbers = "lo hi out_stride x_stride"

    def build() -> Any:
        from tvm import tirx

        code = Code(name)
        out, x = code.pointer("out", kind), code.pointer("x", "float32")
        lo, hi, out_stride, x_stride = code.numbers(numbers)
        with code.loop(hi - lo) as i:
            source, place = code.let((lo + i) * x_stride), code.let((lo + i) * out_stride)

            def write(at: Any, lanes: int) -> None:
                bits = bfloat16_bits(lanes, code.let(x.load(source + at, lanes)))
                if stored == DType.bf16:
                    out.store(place + at, bits, lanes)
                    return
                wide = tirx.Cast("uint32" if lanes == 1 else f"uint32x{lanes}", bits)
                moved = tirx.shift_left(wide, broadcast(16, lanes, "uint32"))
                out.store(place + at, tirx.reinterpret("float32" if lanes == 1 else f"float32x{lanes}", moved), lanes)

            each_chunk(code, width, isa.lanes, write)
        return code.finish()

    parameters = (f"{declared} *out", "const float *x", *(f"int32_t {number}" for number in numbers.split()))
    return Kernel(name, parameters, build)
