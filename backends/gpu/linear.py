"""Matrix products: a group of threads for each token and block of 32 outputs.

    void k(float *out, const X *x, const uint32_t *w[, const float *bias][, const float *residual], int32_t lo,
           int32_t hi, int32_t out_stride, int32_t x_stride[, int32_t residual_stride])

computes out = activation(x W^T + bias) + residual for tokens lo..hi; X is float, or words of q8 rows (row_output.py).
Thread (s, o) of a group sums slice s of the inputs for output o; then thread (0, o) adds up what the others found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.gpu.activations import activate
from slmopt.backends.gpu.device_code import DeviceCode, DeviceKernel, DeviceMemory, call
from slmopt.backends.gpu.packed import BLOCK, PackedMatrix
from slmopt.backends.tvm import packing
from slmopt.backends.tvm.code import Register
from slmopt.ir.types import DType, Element

__all__ = ["linear"]

_SLICES = 8  # parts of the inputs that are summed at the same time, at most


def linear(
    element: Element, rows: int, columns: int, *, bias: bool, residual: bool, activation: str | None, rounded: bool
) -> DeviceKernel:
    """The kernel for weights [rows, columns] of a type; `rounded`: x is rounded to bfloat16 first."""
    packing.check_element(element)
    quantized = not isinstance(element, DType)
    options = [("bias", bias), ("residual", residual), (activation or "", activation is not None), ("bf16", rounded)]
    name = "_".join(["linear", str(element), f"{rows}x{columns}", *(label for label, on in options if on)])
    parameters = ["float *out", f"const {'uint32_t' if quantized else 'float'} *x", "const uint32_t *w"]
    parameters += ["const float *bias"] if bias else []
    parameters += ["const float *residual"] if residual else []
    numbers = ["lo", "hi", "out_stride", "x_stride", *(["residual_stride"] if residual else [])]
    parameters += [f"int32_t {number}" for number in numbers]
    shape = _Product(element, rows, columns, bias, residual, activation, rounded)
    threads = shape.slices * BLOCK
    return DeviceKernel(name, tuple(parameters), lambda: shape.build(name), threads, threads * -(-rows // BLOCK))


@dataclass(frozen=True)
class _Product:
    """A matrix product, as `linear` has it."""

    element: Element
    rows: int
    columns: int
    bias: bool
    residual: bool
    activation: str | None
    rounded: bool

    @property
    def quantized(self) -> bool:
        return not isinstance(self.element, DType)

    @property
    def slices(self) -> int:
        """Parts of the inputs that are summed at the same time: a power of two, with at least two steps in each."""
        steps = -(-self.columns // packing.GROUP) if self.quantized else self.columns
        return max(1, min(_SLICES, 1 << (steps // 2).bit_length() - 1)) if steps > 1 else 1

    def build(self, name: str) -> Any:
        """The PrimFunc."""
        from tvm import tirx

        code = DeviceCode(name, self.slices * BLOCK)
        out, x = code.pointer("out", "float32"), code.pointer("x", "uint32" if self.quantized else "float32")
        w = code.pointer("w", "uint32")
        bias = code.pointer("bias", "float32") if self.bias else None
        residual = code.pointer("residual", "float32") if self.residual else None
        lo, hi, out_stride, x_stride = code.numbers("lo hi out_stride x_stride")
        residual_stride = code.number("residual_stride") if self.residual else None
        tokens = code.let(hi - lo)
        token = code.let(tirx.Cast("int64", lo + tirx.truncmod(code.group, tokens)))  # neighbours read the same weights
        lane, slice_ = code.let(tirx.truncmod(code.thread, BLOCK)), code.let(tirx.truncdiv(code.thread, BLOCK))
        block = code.let(tirx.truncdiv(code.group, tokens))
        matrix = PackedMatrix(code, w, self.element, self.columns, block, lane)
        total = self._sum(code, matrix, x, code.let(token * x_stride), slice_)
        row = code.let(block * BLOCK + lane)
        with code.when(tirx.And(slice_.equal(0), row < self.rows)):
            value = total.value if bias is None else total.value + bias.load(row)
            value = activate(self.activation, code.let(value))
            value = value if residual is None else value + residual.load(token * residual_stride + row)
            out.store(token * out_stride + row, value)
        return code.finish()

    def _sum(self, code: DeviceCode, matrix: PackedMatrix, x: DeviceMemory, place: Any, slice_: Any) -> Register:
        """The sum of all products, in the threads of slice 0."""
        from tvm import tirx

        total = code.register(1, start=tirx.const(0.0, "float32"))
        if self.quantized:
            _add_codes(code, matrix, x, place, slice_, self.slices, total)
        else:
            _add_numbers(code, matrix, x, place, (slice_, self.slices, self.rounded), total)
        _add_slices(code, slice_, self.slices, total)
        return total


def _add_numbers(
    code: DeviceCode, matrix: PackedMatrix, x: DeviceMemory, place: Any, part: tuple[Any, int, bool], total: Register
) -> None:
    """Products of inputs slice, slice + slices, ..."""
    from tvm import tirx

    slice_, slices, rounded = part
    with code.loop(tirx.truncdiv(matrix.columns - 1 - slice_, slices) + 1) as step:
        column = code.let(slice_ + step * slices)
        number = x.load(place + column)
        total.set(total.value + (_bfloat16(code, number) if rounded else number) * matrix.number(column))


def _bfloat16(code: DeviceCode, number: Any) -> Any:
    """The nearest bfloat16 as float32, ties to even."""
    from tvm import tirx

    from slmopt.backends.tvm.vector_math import bfloat16_bits

    wide = tirx.Cast("uint32", bfloat16_bits(1, code.let(number)))
    return tirx.reinterpret("float32", tirx.shift_left(wide, tirx.const(16, "uint32")))


def _add_codes(
    code: DeviceCode, matrix: PackedMatrix, x: DeviceMemory, place: Any, slice_: Any, slices: int, total: Register
) -> None:
    """Integer products of groups slice, slice + slices, ..., scaled."""
    from tvm import tirx

    element, groups = matrix.quantized, matrix.groups
    with code.loop(tirx.truncdiv(groups - 1 - slice_, slices) + 1) as step:
        group = code.let(slice_ + step * slices)
        start = matrix.group(group)
        found = code.register(1, "int32", tirx.const(0, "int32"))
        for quad in range(4 if packing.code_bits(element) == 4 else 8):
            word = code.let(matrix.codes(start, quad))
            for half in _signed_bytes(element, word):
                inputs = tirx.reinterpret("int32", x.load(place + group * 8 + quad + 4 * half[0]))
                found.set(call("int32", "slm_dot", half[1], inputs, found.value))
        scale = code.let(tirx.reinterpret("float32", x.load(place + groups * 8 + group)))
        sum_ = code.let(tirx.reinterpret("int32", x.load(place + groups * 9 + group)))
        product = tirx.Cast("float32", found.value - sum_ * matrix.zero) * matrix.scale(start)
        if not element.symmetric:
            product = product + tirx.Cast("float32", sum_) * matrix.minimum(start)
        total.set(total.value + product * scale)


def _signed_bytes(element: Any, word: Any) -> list[tuple[int, Any]]:
    """(half of the group, four codes as signed bytes) that a word holds."""
    from tvm import tirx

    if packing.code_bits(element) == 8:
        return [(0, tirx.reinterpret("int32", word))]
    mask, four = tirx.const(0x0F0F0F0F, "uint32"), tirx.const(4, "uint32")
    low, high = tirx.bitwise_and(word, mask), tirx.bitwise_and(tirx.shift_right(word, four), mask)
    return [(0, tirx.reinterpret("int32", low)), (1, tirx.reinterpret("int32", high))]


def _add_slices(code: DeviceCode, slice_: Any, slices: int, total: Register) -> None:
    """Leave the sum over all slices in `total` of the threads of slice 0."""
    if slices == 1:
        return
    parts = code.shared(slices * BLOCK)
    parts.store(code.thread, total.value)
    code.meet()
    with code.when(slice_.equal(0)):
        for other in range(1, slices):
            total.set(total.value + parts.load(code.thread + other * BLOCK))
