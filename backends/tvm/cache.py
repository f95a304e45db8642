"""Key and value caches, and how new rows enter them.

    keys    [g][c/16][d][16]   16 positions side by side: a score vector needs no reduction across lanes
    values  [g][c][d]          one row per position

    void k(T *cache, const float *x, int32_t lo, int32_t hi, int32_t position, int32_t x_s0, int32_t x_s1,
           int32_t capacity)

writes tokens lo..hi of a step at positions position + lo...; x is [token][head][d] by strides x_s0, x_s1.
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.packing import GROUP
from slmopt.backends.tvm.row_output import each_chunk
from slmopt.ir.types import DType, Element

__all__ = ["C_TYPES", "KEY_BLOCK", "STORED", "block_size", "cache_bytes", "cache_update", "is_quantized"]

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


def cache_update(isa: Isa, *, layout: str, element: Element, heads: int, head_dim: int) -> Kernel:
    """The kernel that writes new keys or values."""
    name = f"cache_{layout}_{element}_{heads}x{head_dim}"
    numbers = "lo hi position x_s0 x_s1 capacity"

    def build() -> Any:
        from tvm import tirx

        code = Code(name)
        cache, x = code.pointer("cache", STORED[str(element)]), code.pointer("x", "float32")
        lo, hi, position, x_s0, x_s1, capacity = code.numbers(numbers)
        kind = STORED[str(element)]
        with code.loop(hi - lo) as i, code.loop(heads) as head:
            token = code.let(lo + i)
            place, source = code.let(tirx.Cast("int64", position + token)), code.let(token * x_s0 + head * x_s1)
            base = tirx.Cast("int64", head) * tirx.Cast("int64", capacity) * head_dim
            if layout == "keys":
                block, lane = tirx.floordiv(place, KEY_BLOCK), tirx.floormod(place, KEY_BLOCK)
                start = code.let(base + block * (head_dim * KEY_BLOCK) + lane)
                with code.loop(head_dim) as j:
                    value = tirx.Cast(kind, x.load(source + j)) if kind != "float32" else x.load(source + j)
                    cache.store(start + tirx.Cast("int64", j) * KEY_BLOCK, value)
            else:
                start = code.let(base + place * head_dim)

                def copy(at: Any, lanes: int) -> None:
                    value = x.load(source + at, lanes)
                    narrow = kind if lanes == 1 else f"{kind}x{lanes}"
                    value = tirx.Cast(narrow, value) if kind != "float32" else value
                    cache.store(start + (tirx.Cast("int64", at) if not isinstance(at, int) else at), value, lanes)

                each_chunk(code, head_dim, isa.lanes, copy)
        return code.finish()

    parameters = (f"{C_TYPES[str(element)]} *cache", "const float *x", *(f"int32_t {n}" for n in numbers.split()))
    return Kernel(name, parameters, build)
