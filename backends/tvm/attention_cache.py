"""Reads the caches (layouts: cache.py) as float32 vectors, whatever their element type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.tvm.attention_memory import hold, wide
from slmopt.backends.tvm.cache import KEY_BLOCK, block_of, block_size, is_quantized
from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.packing import GROUP
from slmopt.backends.tvm.vector_math import from_half
from slmopt.ir.types import DType, Element

__all__ = ["CacheReader"]


@dataclass(frozen=True)
class CacheReader:
    """A cache of rows of `size` numbers. Places are in elements of `memory`: bytes where codes are stored."""

    code: Code
    isa: Isa
    memory: Memory
    element: Element
    size: int
    kept: int | None = None  # of a ring, blocks that stay
    ahead: int = 0  # positions ahead that are asked for while these are read

    @property
    def quantized(self) -> bool:
        """Whether numbers are codes, to be multiplied by the scale of their group."""
        return is_quantized(self.element)

    def groups(self) -> list[tuple[int, int]]:
        """(first, count) of the numbers of a row that share a scale; all of them where there are no scales."""
        step = GROUP if self.quantized else self.size
        return [(first, min(step, self.size - first)) for first in range(0, self.size, step)]

    def block(self, head: Any, capacity: Any, index: Any) -> Any:
        """The place of a block of 16 positions of a head; all are numbers of their own."""
        from tvm import tirx

        index = block_of(index, capacity, self.kept)
        blocks = wide(head) * tirx.floordiv(wide(capacity), KEY_BLOCK) + wide(index)
        return hold(self.code, blocks * block_size(self.element, self.size))

    def key(self, block: Any, lane: Any, index: Any) -> Any:
        """Number `index` of the keys at positions `lane` .. of a block."""
        return self._load(block + wide(index * KEY_BLOCK + lane), self.isa.lanes)

    def value(self, block: Any, position: Any, at: Any, lanes: int) -> Any:
        """Numbers `at` .. of the value at a position of a block."""
        return self._load(block + wide(position * self.size + at), lanes)

    def scales(self, block: Any, group: Any, lane: Any) -> Any:
        """The scales of a group at positions `lane` .. of a block."""
        place = block + wide((group * KEY_BLOCK + lane) * 4 + KEY_BLOCK * self.size)
        return self.code.let(self.memory.load_as("float32", place, 4, self.isa.lanes))

    def _load(self, place: Any, lanes: int) -> Any:
        from tvm import tirx

        def kind(element: str) -> str:
            return element if lanes == 1 else f"{element}x{lanes}"

        if self.ahead:
            self.memory.prefetch(place + self.ahead // KEY_BLOCK * block_size(self.element, self.size))
        found = self.memory.load(place, lanes)
        if self.quantized:
            codes = tirx.Cast(kind("int32"), tirx.reinterpret(kind("int8"), found))
            found = tirx.Cast(kind("float32"), codes)
        elif self.element == DType.f16:
            found = from_half(self.isa, lanes, tirx.reinterpret(kind("uint16"), found))
        return self.code.let(found)
