"""Gated units by rows: out = activation(gate) * up.

void k(T *out, const float *gate, const float *up, int32_t lo, int32_t hi, int32_t out_stride, int32_t gate_stride,
       int32_t up_stride)
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.row_output import output_pointer, write_row
from slmopt.backends.tvm.vector_math import activate

__all__ = ["glu"]


def glu(isa: Isa, *, width: int, activation: str | None, output: str = "f32") -> Kernel:
    """The kernel for rows of `width` numbers; `out` is float32 or q8 rows."""
    name = f"glu_{activation}_{width}_{output}"
    numbers = "lo hi out_stride gate_stride up_stride"

    def build() -> Any:
        code = Code(name)
        out, _ = output_pointer(code, output)
        gate, up = code.pointer("gate", "float32"), code.pointer("up", "float32")
        lo, hi, out_stride, gate_stride, up_stride = code.numbers(numbers)
        with code.loop(hi - lo) as i:
            row = code.let(lo + i)
            first, second = code.let(row * gate_stride), code.let(row * up_stride)

            def produce(at: Any, lanes: int) -> Any:
                gated = activate(isa, lanes, activation, gate.load(first + at, lanes), code.let)
                return gated * up.load(second + at, lanes)

            write_row(code, isa, width, output, out, code.let(row * out_stride), produce)
        return code.finish()

    out_type = "uint8_t *out" if output == "q8" else "float *out"
    parameters = (out_type, "const float *gate", "const float *up", *(f"int32_t {n}" for n in numbers.split()))
    return Kernel(name, parameters, build)
