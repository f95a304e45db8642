"""The inner products of linear kernels: registers of sums for a tile of tokens x blocks."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.packing import GROUP, code_bits, group_bytes, stored_zero
from slmopt.backends.tvm.vector_math import broadcast, multiply_add
from slmopt.ir.types import DType, QuantizedType

__all__ = ["FloatBody", "QuantizedBody"]


class FloatBody:
    """Float weights [k][B] per block: each input is broadcast and multiplied with B weights."""

    def __init__(self, code: Code, isa: Isa, element: DType, columns: int) -> None:
        self.code, self.isa, self.element, self.columns = code, isa, element, columns
        self.streams = 4

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
            return tirx.Cast(f"float32x{lanes}", w.load_as("float16", place, 2, lanes))
        wide = tirx.Cast(f"uint32x{lanes}", w.load_as("uint16", place, 2, lanes))
        return tirx.reinterpret(f"float32x{lanes}", tirx.shift_left(wide, broadcast(16, lanes, "uint32")))


class QuantizedBody:
    """Integer dot products per group of 32 inputs, scaled in float.

    A q8 row holds int8 codes [32 G], float scales [G], int32 sums of codes [G]. For one group, with c the stored weight
    codes, z their zero, a the activation codes:

        sum += (scale_w scale_x) * (dot(c, a) - z * sum_a)  [+ minimum_w * scale_x * sum_a]
    """

    def __init__(self, code: Code, isa: Isa, element: QuantizedType, columns: int) -> None:
        self.code, self.isa, self.element = code, isa, element
        self.groups = -(-columns // GROUP)
        self.bits = code_bits(element)
        self.streams = 4 if self.bits == 4 else 2

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
        from tvm import tirx

        code, lanes, groups = self.code, self.isa.lanes, self.groups
        real = f"float32x{lanes}"
        if self.isa.prefetch:
            for line in range(0, group_bytes(self.isa, self.element), 64):
                code.emit(tirx.Evaluate(_prefetch(w.address(place + (self.isa.prefetch + line)))))
        scale = code.let(tirx.Cast(real, w.load_as("float16", place, 2, lanes)))
        head = 2 * lanes
        minimum = None
        if not self.element.symmetric:
            minimum = code.let(tirx.Cast(real, w.load_as("float16", place + head, 2, lanes)))
            head *= 2
        weights = self._codes(w, place + head)
        zero = stored_zero(self.isa, self.element)
        for row, register in zip(rows, sums, strict=True):
            scale_x = code.let(broadcast(x.load_as("float32", row + GROUP * groups + group * 4, 4), lanes))
            needs_sum = zero or minimum is not None
            total = code.let(x.load_as("int32", row + (GROUP + 4) * groups + group * 4, 4)) if needs_sum else None
            start = broadcast(0, lanes, "int32") if not zero else broadcast(total * (-zero), lanes)
            products = code.register(lanes, "int32", start)
            for j, values in enumerate(weights):
                inputs = x.load_as("int32", row + group * GROUP + 4 * j, 4)
                self._dot(products, values, inputs)
            scaled = tirx.Cast(real, products.value)
            register.set(multiply_add(self.isa, lanes, scaled, scale * scale_x, register.value))
            if minimum is not None:
                shared = scale_x * broadcast(tirx.Cast("float32", total), lanes)
                register.set(multiply_add(self.isa, lanes, minimum, shared, register.value))

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

    def _dot(self, products: Register, weights: Any, inputs: Any) -> None:
        """products[o] += sum over i of weights[o][i] * inputs[i], i = 0..3; inputs packed in an int32."""
        from tvm import tirx

        lanes, dot = self.isa.lanes, self.isa.dot
        integer = f"int32x{lanes}"
        spread = tirx.Broadcast(inputs, lanes)
        if dot == "vpdpbusd":
            signed = tirx.reinterpret(f"int8x{4 * lanes}", spread)
            products.set(tirx.call_llvm_pure_intrin(integer, self.isa.dot_intrinsic, products.value, weights, signed))
        elif dot == "maddubs":
            products.set(products.value + self._maddubs(weights, tirx.reinterpret(f"int8x{4 * lanes}", spread)))
        else:
            products.set(products.value + self._multiply(weights, inputs))

    def _maddubs(self, weights: Any, inputs: Any) -> Any:
        """AVX2: u8 x s8 to pairs of 16 bits, then to 32. Signed 8-bit weights give their sign to the inputs, since
        255 * 127 * 2 would saturate 16 bits and 127 * 127 * 2 does not."""
        from tvm import tirx

        lanes = self.isa.lanes
        if self.bits == 8:
            signed = tirx.reinterpret(f"int8x{4 * lanes}", weights)
            inputs = tirx.call_llvm_pure_intrin(f"int8x{4 * lanes}", "llvm.x86.avx2.psign.b", inputs, signed)
            size = tirx.max(signed, broadcast(0, 4 * lanes, "int8") - signed)
            weights = tirx.reinterpret(f"uint8x{4 * lanes}", size)
        pairs = tirx.call_llvm_pure_intrin(f"int16x{2 * lanes}", self.isa.dot_intrinsic, weights, inputs)
        ones = broadcast(1, 2 * lanes, "int16")
        return tirx.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.x86.avx2.pmadd.wd", pairs, ones)

    def _multiply(self, weights: Any, inputs: Any) -> Any:
        """Without a dot product: byte i of each lane by shifts, four multiplications."""
        from tvm import tirx

        lanes, integer = self.isa.lanes, f"int32x{self.isa.lanes}"
        words = self.code.let(tirx.reinterpret(integer, weights))
        total: Any = None
        for i in range(4):
            left = broadcast(24 - 8 * i, lanes, "int32")
            value = tirx.shift_right(tirx.shift_left(words, left), broadcast(24, lanes, "int32"))  # sign-extended byte i
            number = tirx.shift_right(tirx.shift_left(inputs, 24 - 8 * i), 24)
            term = value * tirx.Broadcast(number, lanes)
            total = term if total is None else total + term
        return total


def _prefetch(address: Any) -> Any:
    from tvm import tirx

    numbers = [tirx.const(value, "int32") for value in (0, 3, 1)]  # read, keep in all caches, data
    return tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, *numbers)
