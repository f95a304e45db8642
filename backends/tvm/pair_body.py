"""The inner products of linear kernels where one instruction multiplies pairs of bfloat16 numbers."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.float_body import FloatBody
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.vector_math import broadcast
from slmopt.ir.types import DType

__all__ = ["PairBody"]

_NAME = "slm_add_products"
# TVM has no vectors of bfloat16 that keep their type on the way to LLVM: there they appear, and the call is inlined.
_FUNCTION = """
declare <{B} x float> @{intrinsic}(<{B} x float>, <{pairs} x bfloat>, <{pairs} x bfloat>)
define linkonce_odr <{B} x float> @{name}(<{B} x float> %sum, <{B} x i32> %a, <{B} x i32> %b) alwaysinline {{
  %x = bitcast <{B} x i32> %a to <{pairs} x bfloat>
  %y = bitcast <{B} x i32> %b to <{pairs} x bfloat>
  %found = call <{B} x float> @{intrinsic}(<{B} x float> %sum, <{pairs} x bfloat> %x, <{pairs} x bfloat> %y)
  ret <{B} x float> %found
}}
"""


class PairBody(FloatBody):
    """Weights [k/2][B][2] of bfloat16 per block, and rows of bfloat16: a pair of inputs is broadcast as one word.

        sum[token][block] += x[token][2j] * w[block][2j] + x[token][2j+1] * w[block][2j+1]        j = 0, 1, ...

    Products are exact in float32, and added one after the other, in the order of the instruction, whatever the tile.
    """

    def __init__(self, code: Code, isa: Isa, columns: int, prefetch: int) -> None:
        from tvm import ir, tirx

        super().__init__(code, isa, DType.bf16, columns, prefetch)
        text = _FUNCTION.format(name=_NAME, intrinsic=isa.bf16_dot, B=isa.lanes, pairs=2 * isa.lanes)
        imported = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", ir.StringImm(text), tirx.Evaluate(0))
        code.emit(imported)

    def _add(
        self, x: Memory, inputs: list[Any], w: Memory, places: list[Any], sums: list[list[Register]], count: int
    ) -> None:
        """Add the products of two inputs of each token; the last of an odd number is paired with 0."""
        from tvm import tirx

        code, lanes = self.code, self.isa.lanes
        words = [x.load_as("int32", at, 2) if count == 2 else tirx.Cast("int32", x.load(at)) for at in inputs]
        values = [code.let(broadcast(word, lanes, "int32")) for word in words]
        for place, registers in zip(places, sums, strict=True):
            weights = code.let(w.load_as("int32", place, 4, lanes))
            for value, register in zip(values, registers, strict=True):
                found = tirx.call_pure_extern(f"float32x{lanes}", _NAME, register.value, weights, value)
                register.set(found)
