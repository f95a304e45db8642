"""The inner products of linear kernels for float weights: registers of sums for a tile of tokens x blocks."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.vector_math import broadcast, from_half, multiply_add
from slmopt.ir.types import DType

__all__ = ["FloatBody"]


class FloatBody:
    """Float weights [k][B] per block: each input is broadcast and multiplied with B weights."""

    def __init__(self, code: Code, isa: Isa, element: DType, columns: int) -> None:
        self.code, self.isa, self.element, self.columns = code, isa, element, columns

    def products(self, x: Memory, rows: list[Any], w: Memory, blocks: list[Any]) -> list[list[Register]]:
        """Registers [block][token] of sums over all inputs."""
        from tvm import tirx

        code, lanes, size = self.code, self.isa.lanes, self.element.bits // 8
        sums = [[code.register(lanes, start=broadcast(0.0, lanes)) for _ in rows] for _ in blocks]
        bases = [code.let(tirx.Cast("int64", block) * (self.columns * lanes * size)) for block in blocks]
        with code.loop(self.columns) as column:
            inputs = [code.let(broadcast(x.load(row + column), lanes)) for row in rows]
            for base, registers in zip(bases, sums, strict=True):
                weights = code.let(self._load(w, base + tirx.Cast("int64", column) * (lanes * size)))
                for value, register in zip(inputs, registers, strict=True):
                    register.set(multiply_add(self.isa, lanes, value, weights, register.value))
        return sums

    def _load(self, w: Memory, place: Any) -> Any:
        """B weights as float32."""
        from tvm import tirx

        lanes = self.isa.lanes
        if self.element == DType.f32:
            return w.load_as("float32", place, 4, lanes)
        if self.element == DType.f16:
            return from_half(self.isa, lanes, w.load_as("uint16", place, 2, lanes))
        wide = tirx.Cast(f"uint32x{lanes}", w.load_as("uint16", place, 2, lanes))
        return tirx.reinterpret(f"float32x{lanes}", tirx.shift_left(wide, broadcast(16, lanes, "uint32")))
