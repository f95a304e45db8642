"""Writes a row of results: as float32, or quantized to 8 bits with a scale and a sum per group of 32 (a q8 row).

    q8 row of k numbers, G = ceil(k / 32):  int8 code[32 G] | float scale[G] | int32 sum[G], padded to 64 bytes
    scale = amax / 127;  code = round_half_even(x / scale);  a group of zeros has scale 0 and codes 0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.packing import GROUP
from slmopt.backends.tvm.vector_math import add_all, broadcast, max_all
from slmopt.errors import UnsupportedError

__all__ = ["chunks", "each_chunk", "output_pointer", "snap_group", "write_row"]

_ROUNDER, _ROUNDER_BITS = 12582912.0, 0x4B400000

Produce = Callable[[Any, int], Any]  # (first column, lanes) -> the numbers of these columns


def chunks(width: int, lanes: int) -> list[tuple[int, int]]:
    """(first, lanes) of the parts of `width` that do not fill a vector: powers of two, largest first."""
    start, parts = width - width % lanes, []
    while start < width:
        lanes //= 2
        if width - start >= lanes:
            parts.append((start, lanes))
            start += lanes
    return parts


def each_chunk(code: Code, width: int, lanes: int, body: Callable[[Any, int], None]) -> None:
    """`body(first column, lanes)` over a row: a loop of whole vectors, then the rest."""
    if width >= lanes:
        with code.loop(width // lanes) as i:
            body(i * lanes, lanes)
    for start, part in chunks(width, lanes):
        body(start, part)


def output_pointer(code: Code, output: str) -> tuple[Memory, str]:
    """The `out` parameter and its C declaration."""
    if output == "f32":
        return code.pointer("out", "float32"), "float *out"
    if output == "q8":
        return code.pointer("out", "uint8"), "uint8_t *out"
    raise UnsupportedError(f"rows are written as f32 or q8, not {output!r}")


def write_row(code: Code, isa: Isa, width: int, output: str, out: Memory, place: Any, produce: Produce) -> None:
    """Write one row of `width` numbers at `place` (elements, or bytes of a q8 row)."""
    if output == "f32":
        each_chunk(code, width, isa.lanes, lambda at, lanes: out.store(place + at, produce(at, lanes), lanes))
        return
    whole = width // GROUP
    if whole:
        with code.loop(whole) as group:
            vectors = [
                code.let(produce(group * GROUP + start, isa.lanes)) for start in range(0, GROUP, isa.lanes)
            ]  # fmt: skip
            _write_group(code, isa, width, out, place, group, vectors)
    if width % GROUP:
        padded = code.local(GROUP)
        for start in range(0, GROUP, isa.lanes):
            padded.store(start, broadcast(0.0, isa.lanes), isa.lanes)
        rest = width % GROUP
        for start in range(0, rest - rest % isa.lanes, isa.lanes):
            padded.store(start, produce(whole * GROUP + start, isa.lanes), isa.lanes)
        for start, lanes in chunks(rest, isa.lanes):
            padded.store(start, produce(whole * GROUP + start, lanes), lanes)
        vectors = [code.let(padded.load(start, isa.lanes)) for start in range(0, GROUP, isa.lanes)]
        _write_group(code, isa, width, out, place, whole, vectors)


def snap_group(code: Code, isa: Isa, vectors: list[Any]) -> tuple[Any, list[Any]]:
    """The scale of the numbers of a group, and their codes as int32 vectors."""
    from tvm import tirx

    lanes = isa.lanes
    zero = broadcast(0.0, lanes)
    largest = zero
    for vector in vectors:
        size = code.let(tirx.Select(vector < zero, zero - vector, vector))
        largest = code.let(tirx.Select(largest >= size, largest, size))  # a row of NaN has the scale NaN
    scale = code.let(max_all(lanes, code.let(largest)) / tirx.const(127.0, "float32"))
    divisor = code.let(broadcast(tirx.Select(scale > 0.0, scale, tirx.const(1.0, "float32")), lanes))
    codes = []
    for vector in vectors:
        # Added to 1.5 2^23, the quotient lies in the lowest bits, rounded to even: no call of libm on old processors.
        shifted = code.let(vector / divisor + broadcast(_ROUNDER, lanes))
        rounded = tirx.reinterpret(f"int32x{lanes}", shifted) - broadcast(_ROUNDER_BITS, lanes, "int32")
        limit = broadcast(127, lanes, "int32")  # passed where the scale is subnormal and so inexact
        codes.append(code.let(tirx.max(tirx.min(rounded, limit), broadcast(-127, lanes, "int32"))))
    return scale, codes


def _write_group(code: Code, isa: Isa, width: int, out: Memory, place: Any, group: Any, vectors: list[Any]) -> None:
    from tvm import tirx

    lanes, groups = isa.lanes, -(-width // GROUP)
    scale, snapped = snap_group(code, isa, vectors)
    total: Any = None
    for index, codes in enumerate(snapped):
        total = codes if total is None else total + codes
        narrow = tirx.reinterpret(f"uint8x{lanes}", tirx.Cast(f"int8x{lanes}", codes))
        out.store(place + group * GROUP + index * lanes, narrow, lanes)
    _store_word(out, place + groups * GROUP + group * 4, scale)
    _store_word(out, place + groups * (GROUP + 4) + group * 4, add_all(lanes, code.let(total)))


def _store_word(out: Memory, place: Any, value: Any) -> None:
    from tvm import tirx

    out.store(place, tirx.reinterpret("uint8x4", value), 4)
