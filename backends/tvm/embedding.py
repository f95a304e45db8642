"""Rows of a packed matrix by token ids: the embedding, which may share its matrix with the head.

    void k(float *out, const uint8_t *w, const int32_t *ids, int32_t lo, int32_t hi, int32_t out_stride)

writes row ids[i] to out + i * out_stride for i in lo..hi. It reads the blocks that `linear` reads (packing.py), one
lane of each: a row is short next to the matrix.
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.packing import (
    GROUP,
    check_element,
    code_bits,
    group_bytes,
    inputs_together,
    packed_bytes,
    stored_zero,
)
from slmopt.backends.tvm.vector_math import from_half
from slmopt.ir.types import DType, Element, QuantizedType

__all__ = ["embedding"]


def embedding(isa: Isa, element: Element, rows: int, columns: int) -> Kernel:
    """The kernel for a table [rows, columns] of a type."""
    check_element(element)
    name = f"embedding_{element}_{rows}x{columns}"
    numbers = ("int32_t lo", "int32_t hi", "int32_t out_stride")
    parameters = ("float *out", "const uint8_t *w", "const int32_t *ids", *numbers)
    return Kernel(name, parameters, lambda: _build(name, isa, element, columns))


def _build(name: str, isa: Isa, element: Element, columns: int) -> Any:
    from tvm import tirx

    code = Code(name)
    out, w, ids = code.pointer("out", "float32"), code.pointer("w", "uint8"), code.pointer("ids", "int32")
    lo, hi, out_stride = code.numbers("lo hi out_stride")
    with code.loop(hi - lo) as i:
        token = code.let(lo + i)
        row = code.let(ids.load(token))
        block, lane = code.let(tirx.floordiv(row, isa.lanes)), code.let(tirx.floormod(row, isa.lanes))
        if isinstance(element, DType):
            _copy_floats(code, isa, element, columns, w, block, lane, out, token * out_stride)
        else:
            _copy_codes(code, isa, element, columns, w, block, lane, out, token * out_stride)
    return code.finish()


def _copy_floats(
    code: Code, isa: Isa, element: DType, columns: int, w: Memory, block: Any, lane: Any, out: Memory, place: Any
) -> None:
    from tvm import tirx

    size, together = element.bits // 8, inputs_together(element)
    whole = packed_bytes(isa, element, isa.lanes, columns)
    base = code.let(tirx.Cast("int64", block) * whole + tirx.Cast("int64", lane) * (together * size))
    with code.loop(columns) as column:
        at = base + tirx.Cast("int64", tirx.floordiv(column, together)) * (isa.lanes * together * size)
        at = at + tirx.Cast("int64", tirx.floormod(column, together)) * size
        if element == DType.f32:
            value = w.load_as("float32", at, 4)
        elif element == DType.f16:
            value = from_half(isa, 1, w.load_as("uint16", at, 2))
        else:
            wide = tirx.Cast("uint32", w.load_as("uint16", at, 2))
            value = tirx.reinterpret("float32", tirx.shift_left(wide, tirx.const(16, "uint32")))
        out.store(place + column, value)


def _copy_codes(
    code: Code, isa: Isa, element: QuantizedType, columns: int, w: Memory, block: Any, lane: Any, out: Memory,
    place: Any,
) -> None:  # fmt: skip
    from tvm import tirx

    lanes, bits, size = isa.lanes, code_bits(element), group_bytes(isa, element)
    base = code.let(tirx.Cast("int64", block) * (-(-columns // GROUP) * size))
    wide_lane = code.let(tirx.Cast("int64", lane))
    signed = bits == 8 and not isa.unsigned
    with code.loop(columns) as column:
        group = code.let(base + tirx.Cast("int64", tirx.floordiv(column, GROUP)) * size)
        scale = from_half(isa, 1, w.load_as("uint16", group + wide_lane * 2, 2))
        head = lanes * (2 if element.symmetric else 4)
        inside = tirx.floormod(column, GROUP)
        within = tirx.floormod(inside, 16) if bits == 4 else inside
        quad = tirx.Cast("int64", tirx.floordiv(within, 4)) * (4 * lanes) + wide_lane * 4
        byte = code.let(w.load(group + head + quad + tirx.Cast("int64", tirx.floormod(within, 4))))
        if bits == 4:
            high = tirx.shift_right(byte, tirx.const(4, "uint8"))
            stored = tirx.Cast("int32", tirx.Select(inside < 16, tirx.bitwise_and(byte, tirx.const(15, "uint8")), high))
        else:
            stored = tirx.Cast("int32", tirx.reinterpret("int8", byte) if signed else byte)
        value = scale * tirx.Cast("float32", stored - stored_zero(isa, element))
        if not element.symmetric:
            value = value + from_half(isa, 1, w.load_as("uint16", group + 2 * lanes + wide_lane * 2, 2))
        out.store(place + column, value)
