"""Where each weight lies in weights.bin, and how it is packed: every tensor once, in the order of first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.backends.tvm import packing
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.views import ALIGNMENT
from slmopt.errors import IRError
from slmopt.ir.graph import Weight
from slmopt.ir.types import DType, TensorType
from slmopt.ir.weights import WeightStore

if TYPE_CHECKING:
    from slmopt.artifact import WeightsWriter

__all__ = ["WeightSlot", "WeightTable"]


@dataclass(frozen=True)
class WeightSlot:
    """A tensor of weights.bin: packed for `linear` and `embedding`, or raw row-major (floats as f32)."""

    key: str
    packed: bool
    type: TensorType
    offset: int
    bytes: int

    @property
    def element(self) -> DType:
        """The element type of a raw tensor in memory."""
        return _raw_element(self.type)


def _raw_element(type: TensorType) -> DType:
    element = type.element
    return element if isinstance(element, DType) and not element.is_float else DType.f32


class WeightTable:
    """Slots by (key, packed or raw); asking twice gives the same slot, so aliased weights are stored once."""

    def __init__(self, store: WeightStore, isa: Isa) -> None:
        self.store, self.isa = store, isa
        self.slots: dict[tuple[str, bool], WeightSlot] = {}
        self.size = 0

    def block(self, type: TensorType) -> int:
        """Outputs per block of a packed matrix: the unit in which threads share a linear."""
        return packing.block_rows(self.isa, type.element)

    def linear(self, weight: Weight) -> WeightSlot:
        """The slot of a matrix [n, k] packed for `linear` and `embedding`."""
        rows, columns = (int(d) for d in weight.type.shape)  # type: ignore[arg-type]
        return self._slot(weight, True, packing.packed_bytes(self.isa, weight.type.element, rows, columns))

    def raw(self, weight: Weight) -> WeightSlot:
        """The slot of a tensor stored row-major."""
        size = int(weight.type.elements) * (_raw_element(weight.type).bits // 8)  # type: ignore[arg-type]
        return self._slot(weight, False, size)

    def _slot(self, weight: Weight, packed: bool, size: int) -> WeightSlot:
        known = self.slots.get((weight.key, packed))
        if known is not None:
            if known.type != weight.type:
                raise IRError(f"weight @{weight.key} is used as {known.type} and as {weight.type}")
            return known
        stored = self.store.type(weight.key)
        if stored != weight.type:
            raise IRError(f"weight @{weight.key} is {stored} in the store but used as {weight.type}")
        slot = WeightSlot(weight.key, packed, weight.type, self.size, size)
        self.slots[weight.key, packed] = slot
        self.size = -(-(self.size + size) // ALIGNMENT) * ALIGNMENT
        return slot

    def write(self, writer: WeightsWriter, report: Callable[[int, int], None]) -> None:
        """Pack and append every slot, one weight in memory at a time; `report(bytes done, bytes in all)`."""
        for slot in self.slots.values():
            offset: int | None = None
            written = 0
            for chunk in self._chunks(slot):
                place = writer.append(chunk, ALIGNMENT if offset is None else 1)
                offset = place if offset is None else offset
                written += len(chunk)
            if offset != slot.offset or written != slot.bytes:
                raise IRError(
                    f"weight @{slot.key}: {written} bytes at {offset} were written, planned were {slot.bytes} "
                    f"at {slot.offset}"
                )  # fmt: skip
            report(slot.offset + slot.bytes, self.size)

    def _chunks(self, slot: WeightSlot) -> Iterator[Any]:
        if slot.packed:
            yield from packing.pack_chunks(self.isa, slot.type.element, self.store.load(slot.key))
        else:
            values = self.store.float(slot.key).contiguous()
            yield memoryview(values.numpy().tobytes())


