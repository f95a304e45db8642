"""Rows of float32 to q8 rows (see row_output.py).

void k(uint8_t *out, const float *x, int32_t lo, int32_t hi, int32_t out_stride, int32_t x_stride)
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.row_output import write_row

__all__ = ["quantize_rows"]


def quantize_rows(isa: Isa, *, width: int) -> Kernel:
    """The kernel for rows of `width` numbers."""
    name = f"quantize_rows_{width}"
    numbers = "lo hi out_stride x_stride"

    def build() -> Any:
        code = Code(name)
        out, x = code.pointer("out", "uint8"), code.pointer("x", "float32")
        lo, hi, out_stride, x_stride = code.numbers(numbers)
        with code.loop(hi - lo) as i:
            row = code.let(lo + i)
            source = code.let(row * x_stride)
            write_row(
                code, isa, width, "q8", out, code.let(row * out_stride), lambda at, lanes: x.load(source + at, lanes)
            )
        return code.finish()

    parameters = ("uint8_t *out", "const float *x", *(f"int32_t {number}" for number in numbers.split()))
    return Kernel(name, parameters, build)
