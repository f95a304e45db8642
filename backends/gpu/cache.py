"""Key and value caches on a device, and how new rows enter them.

    keys    [g][d][c]   positions side by side, so that neighbouring threads read neighbouring keys
    values  [g][c][d]   one row per position

of float, or of float16 bits. A cache of q8g32 has bytes in these places, and in a buffer of their own the float32
scales of groups of 32: [g][ceil(d / 32)][c] of keys, [g][c][ceil(d / 32)] of values.

    void k(T *cache[, float *scales], const float *x, int32_t lo, int32_t hi, int32_t position, int32_t x_s0,
           int32_t x_s1, int32_t slots)

writes tokens lo..hi of a step at positions position + lo...; x is [token][head][d] by strides x_s0, x_s1. A ring keeps
position p in slot p below `sink`, else in slot sink + (p - sink) % (slots - sink).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.gpu.device_code import DeviceCode, DeviceKernel, DeviceMemory, call
from slmopt.backends.gpu.rows import THREADS, each_number, snap_group
from slmopt.backends.tvm.code import Memory
from slmopt.backends.tvm.lower import Cache
from slmopt.backends.tvm.packing import GROUP
from slmopt.backends.tvm.views import Buffer
from slmopt.ir.types import DType, Element

__all__ = ["STORED", "CacheRows", "DeviceCache", "cache_update"]

STORED = {"f32": ("float", "float32"), "f16": ("uint16_t", "uint16"), "q8g32": ("int8_t", "int8")}  # in C, in TVM


@dataclass(frozen=True)
class DeviceCache(Cache):
    """A cache state of so many slots; `scales` is the buffer beside it where it holds codes."""

    slots: int = 0
    scales: Buffer | None = None


@dataclass(frozen=True)
class CacheRows:
    """Reads a cache as float32: number `index` at a slot of a head."""

    layout: str
    element: Element
    size: int
    memory: Memory
    scales: Memory | None
    slots: Any

    def number(self, head: Any, slot: Any, index: Any) -> Any:
        """A number that was kept."""
        from tvm import tirx

        found = self.memory.load(_place(self.layout, self.size, self.slots, head, slot, index))
        if self.element == DType.f16:
            return call("float32", "slm_from_half", found)
        if self.scales is None:
            return found
        group, groups = tirx.truncdiv(index, GROUP), -(-self.size // GROUP)
        scale = self.scales.load(_place(self.layout, groups, self.slots, head, slot, group))
        return tirx.Cast("float32", found) * scale


def _place(layout: str, size: int, slots: Any, head: Any, slot: Any, index: Any) -> Any:
    from tvm import tirx

    wide = tirx.Cast("int64", head)
    return (wide * size + index) * slots + slot if layout == "keys" else (wide * slots + slot) * size + index


def cache_update(layout: str, element: Element, heads: int, size: int, ring: bool, sink: int) -> DeviceKernel:
    """The kernel that writes new keys or values of `heads` heads of `size` numbers."""
    quantized = not isinstance(element, DType)
    kind, stored = STORED[str(element)]
    name = f"cache_{layout}_{element}_{heads}x{size}" + (f"_ring{sink}" if ring else "")
    numbers = "lo hi position x_s0 x_s1 slots"
    parts = -(-size // GROUP) if quantized else size

    def build() -> Any:
        from tvm import tirx

        code = DeviceCode(name, THREADS)
        cache = code.pointer("cache", stored)
        scales = code.pointer("scales", "float32") if quantized else None
        x = code.pointer("x", "float32")
        lo, hi, position, x_s0, x_s1, slots = code.numbers(numbers)
        with each_number(code, lo, hi, heads * parts) as (token, item):
            head, part = code.let(tirx.truncdiv(item, parts)), code.let(tirx.truncmod(item, parts))
            slot = code.let(position + token)
            if ring:
                turned = tirx.truncmod(slot - sink, slots - sink) + sink
                slot = code.let(tirx.Select(slot < sink, slot, turned) if sink else turned)
            source = code.let(tirx.Cast("int64", token) * x_s0 + head * x_s1)
            if scales is not None:
                _write_codes(code, (cache, scales), (layout, size, slots, head, slot), x, source, part)
            else:
                number = x.load(source + part)
                value = number if element == DType.f32 else call("uint16", "slm_to_half", number)
                cache.store(_place(layout, size, slots, head, slot, part), value)
        return code.finish()

    parameters = [f"{kind} *cache", *(["float *scales"] if quantized else []), "const float *x"]
    parameters += [f"int32_t {number}" for number in numbers.split()]
    return DeviceKernel(name, tuple(parameters), build, THREADS, heads * parts)


def _write_codes(
    code: DeviceCode, cache: tuple[DeviceMemory, DeviceMemory], row: tuple[str, int, Any, Any, Any], x: DeviceMemory,
    source: Any, group: Any,
) -> None:  # fmt: skip
    """A group of 32 numbers, snapped as quantize_rows does."""
    from tvm import tirx

    layout, size, slots, head, slot = row
    count = code.let(tirx.min(size - group * GROUP, GROUP))
    scale, codes = snap_group(code, count, lambda index: x.load(source + group * GROUP + index))
    with code.loop(count) as index:
        place = _place(layout, size, slots, head, slot, group * GROUP + index)
        cache[0].store(place, tirx.Cast("int8", codes.load(index)))
    cache[1].store(_place(layout, -(-size // GROUP), slots, head, slot, group), scale)
