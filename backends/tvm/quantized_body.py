"""The inner products of linear kernels for quantized weights: registers of sums for a tile of tokens x blocks."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.dot_products import dot_product
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.packing import GROUP, code_bits, group_bytes, stored_zero
from slmopt.backends.tvm.vector_math import broadcast, from_half, multiply_add
from slmopt.ir.types import QuantizedType

__all__ = ["QuantizedBody"]


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
            for base, registers in zip(bases, sums, strict=True):
                self._group(x, rows, w, code.let(base + tirx.Cast("int64", group) * size), group, registers)
        return sums

    def _group(self, x: Memory, rows: list[Any], w: Memory, place: Any, group: Any, sums: list[Register]) -> None:
        """Add a group of 32 inputs of a block, whose weights lie at `place`; they are unpacked once for all rows."""
        from tvm import tirx

        code, lanes, groups = self.code, self.isa.lanes, self.groups
        real = f"float32x{lanes}"
        if self.prefetch:
            for line in range(0, group_bytes(self.isa, self.element), 64):
                code.emit(tirx.Evaluate(_prefetch(w.address(place + (self.prefetch + line)))))
        scale, minimum, head = self._scales(w, place)
        zero = stored_zero(self.isa, self.element)
        totals = [code.let(x.load_as("int32", row + (GROUP + 4) * groups + group * 4, 4)) for row in rows]
        products = [self.dot.begin(broadcast(total * -zero if zero else 0, lanes, "int32")) for total in totals]
        for j, values in enumerate(self._codes(w, place + head)):
            prepared = self.dot.prepare(values)
            for row, product in zip(rows, products, strict=True):
                self.dot.add(product, prepared, x.load_as("int32", row + group * GROUP + 4 * j, 4))
        for row, total, product, register in zip(rows, totals, products, sums, strict=True):
            scale_x = code.let(broadcast(x.load_as("float32", row + GROUP * groups + group * 4, 4), lanes))
            scaled = tirx.Cast(real, self.dot.total(product))
            register.set(multiply_add(self.isa, lanes, scaled, scale * scale_x, register.value))
            if minimum is not None:
                shared = scale_x * broadcast(tirx.Cast("float32", total), lanes)
                register.set(multiply_add(self.isa, lanes, minimum, shared, register.value))

    def _scales(self, w: Memory, place: Any) -> tuple[Any, Any, int]:
        """(scales, minima or None, bytes they take) of B outputs."""
        code, lanes = self.code, self.isa.lanes
        scale = code.let(from_half(self.isa, lanes, w.load_as("uint16", place, 2, lanes)))
        if self.element.symmetric:
            return scale, None, 2 * lanes
        return scale, code.let(from_half(self.isa, lanes, w.load_as("uint16", place + 2 * lanes, 2, lanes))), 4 * lanes

    def _codes(self, w: Memory, place: Any) -> list[Any]:
        """Eight vectors of B x 4 stored codes: vector j has inputs 4j .. 4j+3 of each output."""
        from tvm import tirx

        code, width = self.code, 4 * self.isa.lanes
        if self.bits == 8:
            return [code.let(w.load(place + j * width, width)) for j in range(8)]
        pairs = [code.let(w.load(place + j * width, width)) for j in range(4)]
        mask, four = broadcast(15, width, "uint8"), broadcast(4, width, "uint8")
        low = [code.let(tirx.bitwise_and(pair, mask)) for pair in pairs]
        return low + [code.let(tirx.shift_right(pair, four)) for pair in pairs]


def _prefetch(address: Any) -> Any:
    from tvm import tirx

    numbers = [tirx.const(value, "int32") for value in (0, 3, 1)]  # read, keep in all caches, data
    return tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, *numbers)
