"""Key and value caches, and how new rows enter them.

    keys    [g][c/16][d][16]   16 positions side by side: a score vector needs no reduction across lanes
    values  [g][c/16][16][d]   one row per position

Of f32 and f16 that is all. A cache of q8g32 holds bytes, and behind the codes of each block of 16 positions its scales,
G = ceil(d / 32) float32 for a position, 36 bytes for 32 numbers where d is a multiple of 32:

    keys    [g][c/16] { int8 code[d][16] | float scale[G][16] }
    values  [g][c/16] { int8 code[16][d] | float scale[G][16] }

A cache that is a ring holds the latest positions and the first few. Its blocks are those of positions all the same, so
that kernels see keys in one order wherever they lie: `kept` blocks of the first positions stay, later ones go round.

    positions   0..15 | 16..31 | 32..47 | 48..63 | 64..79 | ...       c = 64, kept = 1
    block       0     | 1      | 2      | 3      | 1      | 2 ...

    void k(T *cache, const float *x, int32_t lo, int32_t hi, int32_t position, int32_t x_s0, int32_t x_s1,
           int32_t capacity)

writes tokens lo..hi of a step at positions position + lo...; x is [token][head][d] by strides x_s0, x_s1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.packing import GROUP
from slmopt.backends.tvm.row_output import chunks, each_chunk, snap_group
from slmopt.backends.tvm.vector_math import broadcast
from slmopt.ir.types import DType, Element

__all__ = [
    "C_TYPES", "KEY_BLOCK", "STORED", "block_of", "block_size", "cache_bytes", "cache_update", "is_quantized",
    "ring_of",
]  # fmt: skip

KEY_BLOCK = 16  # positions side by side in the keys' layout; capacities are a multiple

STORED = {"f32": "float32", "f16": "float16", "q8g32": "uint8"}  # how a kernel reads an element type
C_TYPES = {"f32": "float", "f16": "uint16_t", "q8g32": "uint8_t"}


def is_quantized(element: Element) -> bool:
    """Whether a cache holds codes and scales."""
    return not isinstance(element, DType)


def block_size(element: Element, size: int) -> int:
    """Stored elements (bytes of q8g32) of 16 positions of a head."""
    return KEY_BLOCK * size + (KEY_BLOCK * 4 * -(-size // GROUP) if is_quantized(element) else 0)


def cache_bytes(layout: str, element: Element, heads: int, capacity: int, size: int) -> int:
    """Bytes of a cache."""
    bits = element.bits if isinstance(element, DType) else 8
    return heads * -(-capacity // KEY_BLOCK) * block_size(element, size) * bits // 8


def ring_of(window: int, sink: int, chunk: int) -> tuple[int, int]:
    """Capacity and `kept` blocks of a ring for a window and the first `sink` positions, in steps of up to `chunk`."""
    kept = -(-sink // KEY_BLOCK)
    return (kept + (window + chunk - 2) // KEY_BLOCK + 2) * KEY_BLOCK, kept


def block_of(index: Any, capacity: Any, kept: int | None) -> Any:
    """Where a block of 16 positions lies in a cache that is a ring; with `kept` None, in one of all positions."""
    from tvm import tirx

    if kept is None:
        return index
    turned = kept + tirx.floormod(index - kept, tirx.floordiv(capacity, KEY_BLOCK) - kept)
    return tirx.Select(index < kept, index, turned) if kept else turned


def cache_update(
    isa: Isa, *, layout: str, element: Element, heads: int, head_dim: int, kept: int | None = None
) -> Kernel:  # fmt: skip
    """The kernel that writes new keys or values; `kept`: into a ring."""
    name = f"cache_{layout}_{element}_{heads}x{head_dim}" + ("" if kept is None else f"_ring{kept}")
    numbers = "lo hi position x_s0 x_s1 capacity"

    def build() -> Any:
        from tvm import tirx

        code = Code(name)
        cache, x = code.pointer("cache", STORED[str(element)]), code.pointer("x", "float32")
        lo, hi, position, x_s0, x_s1, capacity = code.numbers(numbers)
        write = _write_codes if is_quantized(element) else _write_numbers
        with code.loop(hi - lo) as i, code.loop(heads) as head:
            token = code.let(lo + i)
            place, source = code.let(position + token), code.let(token * x_s0 + head * x_s1)
            index = code.let(block_of(tirx.floordiv(place, KEY_BLOCK), capacity, kept))
            blocks = tirx.Cast("int64", head) * tirx.Cast("int64", tirx.floordiv(capacity, KEY_BLOCK))
            block = code.let((blocks + tirx.Cast("int64", index)) * block_size(element, head_dim))
            lane = code.let(tirx.Cast("int64", tirx.floormod(place, KEY_BLOCK)))
            write(code, isa, cache, x, _Row(layout, head_dim, block, lane, source))
        return code.finish()

    parameters = (f"{C_TYPES[str(element)]} *cache", "const float *x", *(f"int32_t {n}" for n in numbers.split()))
    return Kernel(name, parameters, build)


@dataclass(frozen=True)
class _Row:
    """A row of `size` numbers at x[source], that goes to a position of a block."""

    layout: str
    size: int
    block: Any
    position: Any
    source: Any

    @property
    def first(self) -> Any:
        """The place of its first number."""
        return self.block + (self.position if self.layout == "keys" else self.position * self.size)

    @property
    def step(self) -> int:
        """From one number to the next."""
        return KEY_BLOCK if self.layout == "keys" else 1


def _write_numbers(code: Code, isa: Isa, cache: Memory, x: Memory, row: _Row) -> None:
    from tvm import tirx

    start = code.let(row.first)

    def copy(at: Any, lanes: int) -> None:
        value = x.load(row.source + at, lanes)
        kind = cache.element if lanes == 1 else f"{cache.element}x{lanes}"
        value = tirx.Cast(kind, value) if cache.element != "float32" else value
        cache.store(start + (at if isinstance(at, int) else tirx.Cast("int64", at)) * row.step, value, lanes)

    if row.step == 1:
        each_chunk(code, row.size, isa.lanes, copy)
    else:
        with code.loop(row.size) as j:
            copy(j, 1)


def _write_codes(code: Code, isa: Isa, cache: Memory, x: Memory, row: _Row) -> None:
    """Snapped as quantize_rows does, 32 numbers at a time."""
    from tvm import tirx

    numbers, codes, lanes = code.local(GROUP), code.local(GROUP, "uint8"), isa.lanes
    start, scales = code.let(row.first), code.let(row.block + KEY_BLOCK * row.size + row.position * 4)
    for group in range(-(-row.size // GROUP)):
        begin, count = group * GROUP, min(GROUP, row.size - group * GROUP)
        for at in range(0, GROUP, lanes):
            numbers.store(at, broadcast(0.0, lanes), lanes)
        for at, part in [*((at, lanes) for at in range(0, count - count % lanes, lanes)), *chunks(count, lanes)]:
            numbers.store(at, x.load(row.source + begin + at, part), part)
        scale, snapped = snap_group(code, isa, [code.let(numbers.load(at, lanes)) for at in range(0, GROUP, lanes)])
        for index, vector in enumerate(snapped):
            codes.store(index * lanes, tirx.reinterpret(f"uint8x{lanes}", tirx.Cast(f"int8x{lanes}", vector)), lanes)
        with code.loop(count) as j:
            cache.store(start + tirx.Cast("int64", begin + j) * row.step, codes.load(j))
        cache.store(scales + group * KEY_BLOCK * 4, tirx.reinterpret("uint8x4", scale), 4)
