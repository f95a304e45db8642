"""The inner products of linear kernels for float weights: registers of sums for a tile of tokens x blocks."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.vector_math import broadcast, from_half, multiply_add
from slmopt.ir.types import DType

__all__ = ["FloatBody"]


_LINE = 64  # bytes of a cache line
_STEP = 4  # inputs of one token per round of the loop, at least


class FloatBody:
    """Float weights [k][B] per block: each input is broadcast and multiplied with B weights.

        sum[token][block] += x[token][k] * w[block][k]        k = 0, 1, ...: this order whatever the tile

    One token is bound by memory, many by the products. The weights of each block are fetched `prefetch` bytes ahead:
    the first tile of tokens finds them in memory, the others in the cache. Conversion to float32 serves a whole tile.
    """

    def __init__(self, code: Code, isa: Isa, element: DType, columns: int, prefetch: int) -> None:
        self.code, self.isa, self.element, self.columns, self.prefetch = code, isa, element, columns, prefetch
        self.size = isa.lanes * (element.bits // 8)  # bytes of one input's weights of a block

    def products(self, x: Memory, rows: list[Any], w: Memory, blocks: list[Any]) -> list[list[Register]]:
        """Registers [block][token] of sums over all inputs."""
        from tvm import tirx

        code, lanes = self.code, self.isa.lanes
        sums = [[code.register(lanes, start=broadcast(0.0, lanes)) for _ in rows] for _ in blocks]
        bases = [code.let(tirx.Cast("int64", block) * (self.columns * self.size)) for block in blocks]
        step = max(_LINE // self.size, _STEP if len(rows) == 1 else 1)
        whole = self.columns // step * step
        with code.loop(whole // step) as i:
            places = [code.let(base + tirx.Cast("int64", i) * (step * self.size)) for base in bases]
            self._fetch(w, places, step)
            for j in range(step):
                self._add(x, [row + i * step + j for row in rows], w, [place + j * self.size for place in places], sums)
        for column in range(whole, self.columns):
            self._add(x, [row + column for row in rows], w, [base + column * self.size for base in bases], sums)
        return sums

    def _fetch(self, w: Memory, places: list[Any], step: int) -> None:
        """Prefetch what the loop reads `prefetch` bytes later."""
        if self.prefetch:
            for place in places:
                for line in range(0, step * self.size, _LINE):
                    w.prefetch(place + (self.prefetch + line))

    def _add(self, x: Memory, inputs: list[Any], w: Memory, places: list[Any], sums: list[list[Register]]) -> None:
        """Add the products of one input of each token with its weights of each block."""
        code, lanes = self.code, self.isa.lanes
        values = [code.let(broadcast(x.load(place), lanes)) for place in inputs]
        for place, registers in zip(places, sums, strict=True):
            weights = code.let(self._load(w, place))
            for value, register in zip(values, registers, strict=True):
                register.set(multiply_add(self.isa, lanes, value, weights, register.value))

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
