"""Kernels that have a thread for each number or group of 32: gated units, rotary positions, rows to 8-bit codes.

    void glu(T *out, const float *gate, const float *up, int32_t lo, int32_t hi, int32_t out_stride,
             int32_t gate_stride, int32_t up_stride)
    void quantize_rows(uint32_t *out, const float *x, int32_t lo, int32_t hi, int32_t out_stride, int32_t x_stride)
    void rope(float *out, const float *x, const float *cos, const float *sin, int32_t lo, int32_t hi, int32_t inner,
              int32_t out_s0, int32_t out_s1, int32_t x_s0, int32_t x_s1, int32_t angle_s0)

T is float, or uint32_t: words of q8 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.backends.gpu.activations import activate
from slmopt.backends.gpu.device_code import DeviceCode, DeviceKernel
from slmopt.backends.gpu.rows import THREADS, each_number, find_row, write_codes
from slmopt.backends.tvm.packing import GROUP

__all__ = ["glu", "quantize_rows", "rope"]


def glu(width: int, activation: str | None, quantized: bool) -> DeviceKernel:
    """The kernel for rows of `width`: activation(gate) * up."""
    name = f"glu_{width}_{activation}_{'q8' if quantized else 'f32'}"

    def combine(code: DeviceCode, gate: Any, up: Any) -> Any:
        return activate(activation, code.let(gate)) * up

    return _rows(name, width, ("gate", "up"), quantized, combine)


def quantize_rows(width: int) -> DeviceKernel:
    """The kernel for rows of `width`."""
    return _rows(f"quantize_rows_{width}", width, ("x",), True, lambda code, x: x)


def _rows(
    name: str, width: int, operands: tuple[str, ...], quantized: bool, combine: Callable[..., Any]
) -> DeviceKernel:
    """`combine(code, number of each operand)`, as float32 or as codes."""
    numbers = ["lo", "hi", "out_stride", *(f"{operand}_stride" for operand in operands)]
    parameters = ["uint32_t *out" if quantized else "float *out", *(f"const float *{operand}" for operand in operands)]
    each = -(-width // GROUP) if quantized else width

    def build() -> Any:
        from tvm import tirx

        code = DeviceCode(name, THREADS)
        out = code.pointer("out", "uint32" if quantized else "float32")
        sources = [code.pointer(operand, "float32") for operand in operands]
        lo, hi, out_stride, *strides = code.numbers(" ".join(numbers))
        with each_number(code, lo, hi, each) as (row, index):
            wide = code.let(tirx.Cast("int64", row))
            starts = [code.let(wide * stride) for stride in strides]

            def produce(at: Any) -> Any:
                found = (source.load(start + at) for source, start in zip(sources, starts, strict=True))
                return combine(code, *found)

            if quantized:
                write_codes(code, out, code.let(wide * out_stride), width, index, produce)
            else:
                out.store(wide * out_stride + index, produce(index))
        return code.finish()

    return DeviceKernel(name, (*parameters, *(f"int32_t {n}" for n in numbers)), build, THREADS, each)


def rope(head_dim: int, rotary_dim: int, style: str) -> DeviceKernel:
    """The kernel for heads of `head_dim` of which the first `rotary_dim` numbers are turned."""
    name = f"rope_{head_dim}_{rotary_dim}_{style}"
    numbers = "lo hi inner out_s0 out_s1 x_s0 x_s1 angle_s0"

    def build() -> Any:
        from tvm import tirx

        code = DeviceCode(name, THREADS)
        out, x, cos, sin = (code.pointer(label, "float32") for label in ("out", "x", "cos", "sin"))
        lo, hi, inner, out_s0, out_s1, x_s0, x_s1, angle_s0 = code.numbers(numbers)
        with each_number(code, lo, hi, head_dim) as (row, at):
            source, target = find_row(code, row, inner, x_s0, x_s1), find_row(code, row, inner, out_s0, out_s1)
            angle = code.let(tirx.Cast("int64", tirx.truncdiv(row, inner)) * angle_s0 + at)
            half = rotary_dim // 2
            if style == "half":
                first, step = at < half, half
            else:
                first, step = tirx.truncmod(at, 2).equal(0), 1
            with code.when(at < rotary_dim):
                partner = code.let(tirx.Select(first, at + step, at - step))
                other = x.load(source + partner)
                turned = tirx.Select(first, tirx.const(0.0, "float32") - other, other)
                out.store(target + at, x.load(source + at) * cos.load(angle) + turned * sin.load(angle))
            if rotary_dim < head_dim:
                with code.when(at >= rotary_dim):
                    out.store(target + at, x.load(source + at))
        return code.finish()

    parameters = ["float *out", "const float *x", "const float *cos", "const float *sin"]
    parameters += [f"int32_t {number}" for number in numbers.split()]
    return DeviceKernel(name, tuple(parameters), build, THREADS, head_dim)
