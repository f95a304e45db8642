"""The inner products of linear kernels for quantized weights: registers of sums for a tile of tokens x blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.dot_products import dot_product
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.packing import GROUP, code_bits, group_bytes, stored_zero
from slmopt.backends.tvm.vector_math import broadcast, from_half, multiply_add
from slmopt.ir.types import QuantizedType

__all__ = ["QuantizedBody"]


class _Scales(NamedTuple):
    """Of B outputs of a group: float32 scales, minima of asymmetric codes, the bytes that both take when packed."""

    factors: Any
    minima: Any | None
    bytes: int


class QuantizedBody:
    """Integer dot products per group of 32 inputs, scaled in float.

    A q8 row holds int8 codes [32 G], float scales [G], int32 sums of codes [G]. For one group, with c the stored weight
    codes, z their zero, a the activation codes:

        sum += (scale_w scale_x) * (dot(c, a) - z * sum_a)  [+ minimum_w * scale_x * sum_a]

    `dot` - z * sum_a is exact in int32; the order of the float sums is that of the groups, whatever the tile.
    """

    def __init__(self, code: Code, isa: Isa, element: QuantizedType, columns: int, prefetch: int) -> None:
        self.code, self.isa, self.element, self.prefetch = code, isa, element, prefetch
        self.groups = -(-columns // GROUP)
        self.bits = code_bits(element)
        self.dot = dot_product(code, isa, self.bits)

    def products(self, x: Memory, rows: list[Any], w: Memory, blocks: list[Any]) -> list[list[Register]]:
        """Registers [block][token] of sums over all inputs."""
        from tvm import tirx

        code, lanes = self.code, self.isa.lanes
        sums = [[code.register(lanes, start=broadcast(0.0, lanes)) for _ in rows] for _ in blocks]
        size = group_bytes(self.isa, self.element)
        bases = [code.let(tirx.Cast("int64", block) * (self.groups * size)) for block in blocks]
        with code.loop(self.groups) as group:
            places = [code.let(base + tirx.Cast("int64", group) * size) for base in bases]
            if len(rows) > 1:
                self._group(x, rows, w, places, group, sums)
            else:  # nothing is shared: one stream of weights after the other
                for place, registers in zip(places, sums, strict=True):
                    self._group(x, rows, w, [place], group, [registers])
        return sums

    def _group(
        self, x: Memory, rows: list[Any], w: Memory, places: list[Any], group: Any, sums: list[list[Register]]
    ) -> None:
        """Add a group of 32 inputs of some blocks, whose weights lie at `places`.

        Weights are unpacked once for all rows. Inputs are read once for all blocks: with one block there are as many
        reads as products, and a core that can do two of either a cycle has to wait for both.
        """
        code, lanes, groups = self.code, self.isa.lanes, self.groups
        zero = stored_zero(self.isa, self.element)
        for place in places:
            self._fetch(w, place)
        scales = [self._scales(w, place) for place in places]
        totals = [code.let(x.load_as("int32", row + (GROUP + 4) * groups + group * 4, 4)) for row in rows]
        starts = [broadcast(total * -zero if zero else 0, lanes, "int32") for total in totals]
        products = [[self.dot.begin(start) for start in starts] for _ in places]
        vectors = [[self._codes(w, place + scales[0].bytes, quarter) for quarter in range(4)] for place in places]
        for quarter in range(4):
            for half in range(2):
                prepared = [self.dot.prepare(codes[quarter][half]) for codes in vectors]
                for i, row in enumerate(rows):
                    inputs = x.load_as("int32", row + group * GROUP + 16 * half + 4 * quarter, 4)
                    for dots, weights in zip(products, prepared, strict=True):
                        self.dot.add(dots[i], weights, inputs)
        factors = [
            code.let(broadcast(x.load_as("float32", row + GROUP * groups + group * 4, 4), lanes)) for row in rows
        ]
        for scale, dots, registers in zip(scales, products, sums, strict=True):
            for factor, total, dot, register in zip(factors, totals, dots, registers, strict=True):
                self._scale(scale, factor, total, self.dot.total(dot), register)

    def _scale(self, scale: _Scales, factor: Any, total: Any, dot: Any, sum: Register) -> None:
        """Add a group's dot product, scaled, to the sum."""
        from tvm import tirx

        isa, lanes = self.isa, self.isa.lanes
        sum.set(multiply_add(isa, lanes, tirx.Cast(f"float32x{lanes}", dot), scale.factors * factor, sum.value))
        if scale.minima is not None:
            shared = factor * broadcast(tirx.Cast("float32", total), lanes)
            sum.set(multiply_add(isa, lanes, scale.minima, shared, sum.value))

    def _fetch(self, w: Memory, place: Any) -> None:
        """Ask for the group that lies `prefetch` bytes further on."""
        if self.prefetch:
            for line in range(0, group_bytes(self.isa, self.element), 64):
                w.prefetch(place + (self.prefetch + line))

    def _scales(self, w: Memory, place: Any) -> _Scales:
        """The scales of B outputs of a group."""
        code, lanes = self.code, self.isa.lanes
        scale = code.let(from_half(self.isa, lanes, w.load_as("uint16", place, 2, lanes)))
        if self.element.symmetric:
            return _Scales(scale, None, 2 * lanes)
        minimum = code.let(from_half(self.isa, lanes, w.load_as("uint16", place + 2 * lanes, 2, lanes)))
        return _Scales(scale, minimum, 4 * lanes)

    def _codes(self, w: Memory, place: Any, quarter: int) -> tuple[Any, Any]:
        """Vectors of B x 4 stored codes: inputs 4 q .. 4 q + 3 and 16 + 4 q .. 16 + 4 q + 3 of each output."""
        from tvm import tirx

        code, width = self.code, 4 * self.isa.lanes
        first = code.let(w.load(place + quarter * width, width))
        if self.bits == 8:
            return first, code.let(w.load(place + (4 + quarter) * width, width))
        mask, four = broadcast(15, width, "uint8"), broadcast(4, width, "uint8")
        return code.let(tirx.bitwise_and(first, mask)), code.let(tirx.shift_right(first, four))
