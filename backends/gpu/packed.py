"""Reads the packed matrices of backends/tvm/packing.py, in blocks of 32 outputs: thread o of 32 reads word o of 32.

Every piece of a block is then one of whole words, side by side for neighbouring outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.gpu.device_code import DeviceCode, DeviceMemory, call
from slmopt.backends.tvm import packing
from slmopt.backends.tvm.isa import Isa
from slmopt.ir.types import DType, Element, QuantizedType

__all__ = ["BLOCK", "DEVICE", "PackedMatrix"]

BLOCK = 32  # outputs packed side by side: as many as the threads of a warp
# The packing's and the lowering's view of a device: they ask for its lanes, and how bytes are multiplied (signed).
DEVICE = Isa(
    name="gpu", summary="devices", rank=0, cpu="", attributes=(), cpu_features=(), flags=(), lanes=BLOCK, dot="maddwd",
    dot_intrinsic="", half=False, fused=False, registers=1, streams=1, token_tile=1, block_tile=1, prefetch=0,
)  # fmt: skip


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix of `columns` inputs, of which a thread reads one output: number `lane` of a block."""

    code: DeviceCode
    words: DeviceMemory  # uint32
    element: Element
    columns: int
    block: Any
    lane: Any

    @property
    def groups(self) -> int:
        """Groups of 32 inputs."""
        return -(-self.columns // packing.GROUP)

    def number(self, column: Any) -> Any:
        """A weight as float32, whatever its type."""
        if isinstance(self.element, QuantizedType):
            return self._decoded(self.element, column)
        return self._plain(self.element, column)

    def _plain(self, element: DType, column: Any) -> Any:
        from tvm import tirx

        together = packing.inputs_together(element)
        steps = -(-self.columns // together)
        step = column if together == 1 else tirx.truncdiv(column, 2)
        place = (tirx.Cast("int64", self.block) * steps + step) * BLOCK + self.lane
        if element == DType.f32:
            return tirx.reinterpret("float32", self.words.load(place))
        if element == DType.f16:
            return call("float32", "slm_from_half", self.half(place))
        word = self.words.load(place)
        high = tirx.bitwise_and(word, tirx.const(0xFFFF0000, "uint32"))
        low = tirx.shift_left(word, tirx.const(16, "uint32"))
        return tirx.reinterpret("float32", tirx.Select(tirx.truncmod(column, 2).equal(0), low, high))

    def half(self, place: Any) -> Any:
        """Number `place` of those of 16 bits."""
        from tvm import tirx

        word, shift = self.words.load(tirx.truncdiv(place, 2)), tirx.Cast("uint32", tirx.truncmod(place, 2) * 16)
        return tirx.Cast("uint16", tirx.bitwise_and(tirx.shift_right(word, shift), tirx.const(0xFFFF, "uint32")))

    # --- quantized -----------------------------------------------------------------------------------------------
    def group(self, index: Any) -> Any:
        """The word at which a group of 32 inputs of this block begins."""
        from tvm import tirx

        size = packing.group_bytes(DEVICE, self.quantized) // 4
        return self.code.let((tirx.Cast("int64", self.block) * self.groups + index) * size)

    @property
    def quantized(self) -> QuantizedType:
        """The type, which must be a quantized one."""
        if not isinstance(self.element, QuantizedType):
            raise TypeError(f"{self.element} has no groups")
        return self.element

    @property
    def zero(self) -> int:
        """What a stored code has too much."""
        return packing.stored_zero(DEVICE, self.quantized)

    def scale(self, group: Any) -> Any:
        """The scale of a group that begins at a word."""
        return call("float32", "slm_from_half", self.half(group * 2 + self.lane))

    def minimum(self, group: Any) -> Any:
        """The minimum of a group that begins at a word, of an asymmetric type."""
        return call("float32", "slm_from_half", self.half(group * 2 + BLOCK + self.lane))

    def codes(self, group: Any, quad: Any) -> Any:
        """The word of four stored codes (eight of 4 bits) at inputs 4 quad .. of a group that begins at a word."""
        head = BLOCK // 2 if self.quantized.symmetric else BLOCK
        return self.words.load(group + head + quad * BLOCK + self.lane)

    def _decoded(self, element: QuantizedType, column: Any) -> Any:
        from tvm import tirx

        def number(value: int) -> Any:
            return tirx.const(value, "uint32")

        group = self.group(tirx.truncdiv(column, packing.GROUP))
        inside = self.code.let(tirx.truncmod(column, packing.GROUP))
        nibbles = packing.code_bits(element) == 4
        within = self.code.let(tirx.truncmod(inside, 16)) if nibbles else inside
        shift = tirx.truncmod(within, 4) * 8 + (tirx.truncdiv(inside, 16) * 4 if nibbles else 0)
        word = tirx.shift_right(self.codes(group, tirx.truncdiv(within, 4)), tirx.Cast("uint32", shift))
        if nibbles:
            stored = tirx.Cast("int32", tirx.bitwise_and(word, number(15)))
        else:
            stored = tirx.Cast("int32", tirx.Cast("int8", tirx.bitwise_and(word, number(255))))
        value = self.scale(group) * tirx.Cast("float32", stored - self.zero)
        return value if element.symmetric else value + self.minimum(group)
