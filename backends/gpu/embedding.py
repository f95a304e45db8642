"""Rows of a packed matrix by token ids: a thread for each number.

    void k(float *out, const uint32_t *w, const int32_t *ids, int32_t lo, int32_t hi, int32_t out_stride)
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.gpu.device_code import DeviceCode, DeviceKernel
from slmopt.backends.gpu.packed import BLOCK, PackedMatrix
from slmopt.backends.gpu.rows import THREADS, each_number
from slmopt.backends.tvm import packing
from slmopt.ir.types import Element

__all__ = ["embedding"]


def embedding(element: Element, rows: int, columns: int) -> DeviceKernel:
    """The kernel for a table [rows, columns] of a type."""
    packing.check_element(element)
    name = f"embedding_{element}_{rows}x{columns}"
    numbers = ("int32_t lo", "int32_t hi", "int32_t out_stride")

    def build() -> Any:
        from tvm import tirx

        code = DeviceCode(name, THREADS)
        out, w, ids = code.pointer("out", "float32"), code.pointer("w", "uint32"), code.pointer("ids", "int32")
        lo, hi, out_stride = code.numbers("lo hi out_stride")
        with each_number(code, lo, hi, columns) as (token, column):
            row = code.let(ids.load(token))
            block, lane = code.let(tirx.truncdiv(row, BLOCK)), code.let(tirx.truncmod(row, BLOCK))
            value = PackedMatrix(code, w, element, columns, block, lane).number(column)
            out.store(tirx.Cast("int64", token) * out_stride + column, value)
        return code.finish()

    parameters = ("float *out", "const uint32_t *w", "const int32_t *ids", *numbers)
    return DeviceKernel(name, parameters, build, THREADS, columns)
