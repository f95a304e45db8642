"""The inner products of linear kernels for float weights: registers of sums for a tile of tokens x blocks."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.packing import inputs_together, packed_bytes
from slmopt.backends.tvm.vector_math import broadcast, from_half, multiply_add
from slmopt.ir.types import DType

__all__ = ["FloatBody"]


_LINE = 64  # bytes of a cache line
_STEP = 4  # inputs of one token per round of the loop, at least


class FloatBody:
    """Float weights [k][B], or [k/2][B][2], per block: each input is broadcast and multiplied with B weights.

        sum[token][block] += x[token][k] * w[block][k]        k = 0, 1, ...: this order whatever the tile

    One token is bound by memory, many by the products. The weights of each block are fetched `prefetch` bytes ahead:
    the first tile of tokens finds them in memory, the others in the cache. Conversion to float32 serves a whole tile.
    """

    def __init__(self, code: Code, isa: Isa, element: DType, columns: int, prefetch: int) -> None:
        self.code, self.isa, self.element, self.columns, self.prefetch = code, isa, element, columns, prefetch
        self.together = inputs_together(element)
        self.size = isa.lanes * self.together * (element.bits // 8)  # bytes of these inputs' weights of a block

    def products(self, x: Memory, rows: list[Any], w: Memory, blocks: list[Any]) -> list[list[Register]]:
        """Registers [block][token] of sums over all inputs."""
        from tvm import tirx

        code, lanes, together = self.code, self.isa.lanes, self.together
        sums = [[code.register(lanes, start=broadcast(0.0, lanes)) for _ in rows] for _ in blocks]
        whole = packed_bytes(self.isa, self.element, lanes, self.columns)
        bases = [code.let(tirx.Cast("int64", block) * whole) for block in blocks]
        step = max(_LINE // self.size, _STEP // together if len(rows) == 1 else 1)
        rounds = self.columns // together // step
        with code.loop(rounds) as i:
            places = [code.let(base + tirx.Cast("int64", i) * (step * self.size)) for base in bases]
            self._fetch(w, places, step)
            for j in range(step):
                inputs = [row + (i * step + j) * together for row in rows]
                self._add(x, inputs, w, [place + j * self.size for place in places], sums, together)
        for column in range(rounds * step * together, self.columns, together):
            places = [base + column // together * self.size for base in bases]
            self._add(x, [row + column for row in rows], w, places, sums, min(together, self.columns - column))
        return sums

    def _fetch(self, w: Memory, places: list[Any], step: int) -> None:
        """Prefetch what the loop reads `prefetch` bytes later."""
        if self.prefetch:
            for place in places:
                for line in range(0, step * self.size, _LINE):
                    w.prefetch(place + (self.prefetch + line))

    def _add(
        self, x: Memory, inputs: list[Any], w: Memory, places: list[Any], sums: list[list[Register]], count: int
    ) -> None:
        """Add the products of `count` inputs of each token, whose weights lie together, in each block."""
        code, lanes = self.code, self.isa.lanes
        stored = [self._load(w, place) for place in places]
        for index in range(count):
            values = [code.let(broadcast(x.load(place + index), lanes)) for place in inputs]
            for part, registers in zip(stored, sums, strict=True):
                weights = code.let(self._convert(part, index))
                for value, register in zip(values, registers, strict=True):
                    register.set(multiply_add(self.isa, lanes, value, weights, register.value))

    def _load(self, w: Memory, place: Any) -> Any:
        """The weights of the inputs that lie together, as they are stored."""
        lanes = self.isa.lanes
        if self.element == DType.f32:
            return w.load_as("float32", place, 4, lanes)
        if self.element == DType.f16:
            return w.load_as("uint16", place, 2, lanes)
        return self.code.let(w.load_as("uint32", place, 4, lanes))

    def _convert(self, stored: Any, index: int) -> Any:
        """B weights of one of these inputs as float32.

        bfloat16 is its upper half; of a pair, the first number is the lower half of the word.
        """
        from tvm import tirx

        lanes = self.isa.lanes
        if self.element == DType.f32:
            return stored
        if self.element == DType.f16:
            return from_half(self.isa, lanes, stored)
        first = tirx.shift_left(stored, broadcast(16, lanes, "uint32"))
        second = tirx.bitwise_and(stored, broadcast(0xFFFF0000, lanes, "uint32"))
        return tirx.reinterpret(f"float32x{lanes}", second if index else first)
