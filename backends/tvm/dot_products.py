"""Integer dot products of an instruction set: lane o sums weights[o][i] * inputs[i] over four inputs i at a time.

A vector of weights holds 4 stored codes for each of B outputs, a word of inputs 4 signed activation codes. A `Dot`
says how the machine multiplies them; it keeps one accumulator per token.
"""

from __future__ import annotations

from typing import Any, Protocol

from slmopt.backends.tvm.code import Code, Register
from slmopt.backends.tvm.isa import DOTS, Isa
from slmopt.backends.tvm.vector_math import broadcast
from slmopt.errors import InputError

__all__ = ["Dot", "dot_product"]


class Dot(Protocol):
    """One accumulator, from `start` (int32 lanes) on."""

    def begin(self, start: Any) -> Any:
        """A new accumulator."""

    def prepare(self, weights: Any) -> Any:
        """What of the weights is shared by all tokens."""

    def add(self, accumulator: Any, prepared: Any, inputs: Any) -> None:
        """Add the products of one vector of weights with one word of inputs."""

    def total(self, accumulator: Any) -> Any:
        """The int32 sums; called once, at the end of a group of 32 inputs."""


def dot_product(code: Code, isa: Isa, bits: int) -> Dot:
    """The dot product of an instruction set for stored codes of 4 or 8 bits."""
    if isa.dot in ("vpdpbusd", "sdot"):
        return _FourAtOnce(code, isa)
    if isa.dot == "maddubs":
        return _Maddubs4(code, isa) if bits == 4 else _Maddubs8(code, isa)
    if isa.dot == "maddwd":
        return _Maddwd(code, isa, signed=bits == 8)
    if isa.dot == "smull":
        return _Smull(code, isa)
    raise InputError(f"{isa.name}: unknown dot product {isa.dot!r}; expected {', '.join(DOTS)}")


class _Base:
    def __init__(self, code: Code, isa: Isa) -> None:
        self.code, self.isa, self.lanes = code, isa, isa.lanes

    def begin(self, start: Any) -> Any:
        return self.code.register(self.lanes, "int32", start)

    def prepare(self, weights: Any) -> Any:
        return weights

    def total(self, accumulator: Any) -> Any:
        return accumulator.value

    def call(self, intrinsic: str, element: str, lanes: int, *arguments: Any) -> Any:
        from tvm import tirx

        return tirx.call_llvm_pure_intrin(f"{element}x{lanes}", intrinsic, *arguments)

    def spread(self, inputs: Any, element: str, lanes: int) -> Any:
        """The word of inputs in every lane, seen as smaller numbers."""
        from tvm import tirx

        return tirx.reinterpret(f"{element}x{lanes}", tirx.Broadcast(inputs, self.lanes))


class _FourAtOnce(_Base):
    """Weights times signed inputs, summed by fours into 32 bits in one instruction.

    AVX-512 VNNI takes unsigned weights (vpdpbusd), NEON signed ones (sdot); codes of 4 bits are 0..15 in both.
    """

    def add(self, accumulator: Register, prepared: Any, inputs: Any) -> None:
        signed = self.spread(inputs, "int8", 4 * self.lanes)
        accumulator.set(self.call(self.isa.dot_intrinsic, "int32", self.lanes, accumulator.value, prepared, signed))


class _Maddubs4(_Base):
    """AVX2, weights 0..15: pairs are summed into 16 bits, eight times without overflow (8 * 2 * 15 * 127 = 30480)."""

    def begin(self, start: Any) -> Any:
        return start, self.code.register(2 * self.lanes, "int16", broadcast(0, 2 * self.lanes, "int16"))

    def add(self, accumulator: Any, prepared: Any, inputs: Any) -> None:
        pairs = accumulator[1]
        signed = self.spread(inputs, "int8", 4 * self.lanes)
        pairs.set(pairs.value + self.call(self.isa.dot_intrinsic, "int16", 2 * self.lanes, prepared, signed))

    def total(self, accumulator: Any) -> Any:
        ones = broadcast(1, 2 * self.lanes, "int16")
        return accumulator[0] + self.call("llvm.x86.avx2.pmadd.wd", "int32", self.lanes, accumulator[1].value, ones)


class _Maddubs8(_Base):
    """AVX2, weights -128..127: their sign moves to the inputs, since 255 * 127 * 2 would saturate 16 bits and
    128 * 127 * 2 does not; each pair then goes to 32 bits."""

    def prepare(self, weights: Any) -> Any:
        from tvm import tirx

        width = 4 * self.lanes
        signed = self.code.let(tirx.reinterpret(f"int8x{width}", weights))
        size = tirx.max(signed, broadcast(0, width, "int8") - signed)  # 128 wraps to -128, whose bits are 128
        return signed, self.code.let(tirx.reinterpret(f"uint8x{width}", size))

    def add(self, accumulator: Register, prepared: Any, inputs: Any) -> None:
        signed, size = prepared
        width = 4 * self.lanes
        turned = self.call("llvm.x86.avx2.psign.b", "int8", width, self.spread(inputs, "int8", width), signed)
        pairs = self.call(self.isa.dot_intrinsic, "int16", width // 2, size, turned)
        ones = broadcast(1, width // 2, "int16")
        accumulator.set(accumulator.value + self.call("llvm.x86.avx2.pmadd.wd", "int32", self.lanes, pairs, ones))


class _Maddwd(_Base):
    """SSE2, which every x86-64 has: bytes 0, 2 and 1, 3 of each word widened to 16 bits, multiplied and summed."""

    def __init__(self, code: Code, isa: Isa, *, signed: bool) -> None:
        super().__init__(code, isa)
        self.signed = signed

    def prepare(self, weights: Any) -> Any:
        from tvm import tirx

        element = "int16" if self.signed else "uint16"
        even, odd = self._halves(tirx.reinterpret(f"{element}x{2 * self.lanes}", weights), element)
        kind = f"int16x{2 * self.lanes}"
        return self.code.let(tirx.reinterpret(kind, even)), self.code.let(tirx.reinterpret(kind, odd))

    def _halves(self, pairs: Any, element: str) -> tuple[Any, Any]:
        """The low and the high byte of each 16 bits, sign- or zero-extended."""
        from tvm import tirx

        eight = broadcast(8, 2 * self.lanes, element)
        return tirx.shift_right(tirx.shift_left(pairs, eight), eight), tirx.shift_right(pairs, eight)

    def add(self, accumulator: Register, prepared: Any, inputs: Any) -> None:
        halves = self._halves(self.spread(inputs, "int16", 2 * self.lanes), "int16")
        for weights, numbers in zip(prepared, halves, strict=True):
            sums = self.call(self.isa.dot_intrinsic, "int32", self.lanes, weights, numbers)
            accumulator.set(accumulator.value + sums)


class _Smull(_Base):
    """NEON of every 64-bit ARM: products in 16 bits (at most 128 * 127), summed by twos into 32 bits at once.

    Two accumulators hold two sums of each of two outputs; the pairs meet at the end of the group.
    """

    def begin(self, start: Any) -> Any:
        zero = broadcast(0, self.lanes, "int32")
        return start, [self.code.register(self.lanes, "int32", zero) for _ in range(2)]

    def prepare(self, weights: Any) -> Any:
        from tvm import tirx

        signed = self.code.let(tirx.reinterpret(f"int8x{4 * self.lanes}", weights))
        half = 2 * self.lanes
        return [self.code.let(tirx.Shuffle([signed], list(range(at, at + half)))) for at in (0, half)]

    def add(self, accumulator: Any, prepared: Any, inputs: Any) -> None:
        from tvm import tirx

        numbers = self.code.let(tirx.reinterpret(f"int8x{2 * self.lanes}", tirx.Broadcast(inputs, self.lanes // 2)))
        for weights, sums in zip(prepared, accumulator[1], strict=True):
            products = self.call(self.isa.dot_intrinsic, "int16", 2 * self.lanes, weights, numbers)
            sums.set(sums.value + self.call("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32", self.lanes, products))

    def total(self, accumulator: Any) -> Any:
        low, high = (sums.value for sums in accumulator[1])
        return accumulator[0] + self.call("llvm.aarch64.neon.addp.v4i32", "int32", self.lanes, low, high)
