"""Kernels for ops without a hand-made one: a thread for each element, by the expressions of tvm/primitive.py.

    void k(T *out, const A *a, const B *b, ..., int32_t tokens, int32_t position, int32_t lo, int32_t hi)
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.gpu.device_code import DeviceCode, DeviceKernel
from slmopt.backends.gpu.rows import THREADS, each_number
from slmopt.backends.tvm.primitive import (
    Expression,
    Leaf,
    compute_element,
    element_of,
    element_place,
    primitive_kernel,
    row_axes,
    stored_type,
)
from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Op, Value, Weight
from slmopt.ir.types import DType

__all__ = ["device_primitive"]


def device_primitive(
    op: Op, leaves: dict[Value | Weight, Leaf], out_strides: tuple[int, ...]
) -> tuple[DeviceKernel, list[Value | Weight]]:
    """The kernel that computes `op` from `leaves`, and the leaves it reads, in the order of its pointers."""
    serial, order = primitive_kernel(op, leaves, out_strides)
    _check_elements(op, leaves)
    shape = op.result.shape
    _, inner = row_axes(shape)
    size = 1 if inner is None else shape[inner]
    width = size if isinstance(size, int) else 1  # a row whose size is not known is the work of one thread

    def build() -> Any:
        code = DeviceCode(serial.name, THREADS)
        out = code.pointer("out", stored_type(element_of(op.result)))
        expression = Expression(leaves)
        for index, key in enumerate(order):
            expression.buffers[key] = code.pointer(f"in{index}", stored_type(leaves[key].stored))
        expression.tokens, expression.position, lo, hi = code.numbers("tokens position lo hi")

        def compute(row: Any, column: Any) -> None:
            indices, place = element_place(expression, shape, out_strides, row, column)
            code.emit(compute_element(expression, op, indices, lambda value: out.statement(place, value)))

        with each_number(code, lo, hi, width) as (row, column):
            if isinstance(size, int):
                compute(row, column)
            else:
                with code.loop(expression.size(size)) as each:
                    compute(row, each)
        return code.finish()

    return DeviceKernel(serial.name, serial.parameters, build, THREADS, width), order


def _check_elements(op: Op, leaves: dict[Value | Weight, Leaf]) -> None:
    """Few devices of OpenCL compute with float16; UnsupportedError where the expression does."""
    if op.result.type.element == DType.f16 or any(leaf.stored == DType.f16 for leaf in leaves.values()):
        raise UnsupportedError(f"{op.describe()}: no kernel computes with f16 on a device; cast to f32")
    for operand in op.operands:
        if isinstance(operand, Value) and operand not in leaves and operand.op is not None:
            _check_elements(operand.op, leaves)
