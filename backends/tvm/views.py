"""Where values lie in memory: buffers, and strided views of them, so that reshape, permute and slice cost nothing.

A value with a token axis is stored with that axis outermost: `f32[1, 8, t, 64]` lies as t x 8 x 64. All strides are
then plain numbers, a permute between `[b, s, h, d]` and `[b, h, s, d]` is free, and a range of tokens is one of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from slmopt.errors import UnsupportedError
from slmopt.ir.dims import Dim, SymbolicDim, dim_symbols, product, substitute_dim
from slmopt.ir.step import TOKENS
from slmopt.ir.types import DType, QuantizedType, TensorType

__all__ = ["Buffer", "View", "allocate_view", "dense_view", "element_bytes", "quantized_row_bytes", "token_axis"]

ALIGNMENT = 64  # bytes; the alignment of every buffer, and of every row of quantized activations


@dataclass(eq=False)
class Buffer:
    """A piece of memory. `space` says which: arena, state, weights, ids, logits. `offset` is set by the planner."""

    name: str
    space: str
    bytes: int
    offset: int | None = None


@dataclass(frozen=True)
class View:
    """A tensor in a buffer: element (i, j, ...) lies at offset + i*strides[0] + j*strides[1] + ...

    Offsets and strides count elements. Quantized rows (element type q8g32) count bytes instead, and their last axis is
    a packed row.
    """

    buffer: Buffer
    element: DType | QuantizedType
    shape: tuple[Dim, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def type(self) -> TensorType:
        """The tensor's type."""
        return TensorType(self.element, self.shape)

    def permute(self, axes: Sequence[int]) -> View:
        """Axes in another order."""
        return replace(
            self, shape=tuple(self.shape[a] for a in axes), strides=tuple(self.strides[a] for a in axes)
        )  # fmt: skip

    def slice(self, axis: int, start: Dim, length: Dim, step: int) -> View | None:
        """A part of an axis; None where its start is not a number."""
        if not isinstance(start, int):
            return None
        shape, strides = list(self.shape), list(self.strides)
        shape[axis] = length
        offset = self.offset + start * strides[axis]
        strides[axis] *= step
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=offset)

    def expand(self, shape: tuple[Dim, ...]) -> View:
        """Axes of size 1 repeated: their stride becomes 0."""
        extra = len(shape) - len(self.shape)
        strides = [0] * extra
        for size, own, stride in zip(shape[extra:], self.shape, self.strides, strict=True):
            strides.append(stride if own == size else 0)
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def reshape(self, shape: tuple[Dim, ...]) -> View | None:
        """The same elements under another shape, or None where that needs a copy."""
        old = [(d, s) for d, s in zip(self.shape, self.strides, strict=True) if d != 1]
        new = [d for d in shape if d != 1]
        strides = _reshaped_strides(old, new)
        if strides is None:
            return None
        rest = iter(strides)
        return replace(self, shape=tuple(shape), strides=tuple(next(rest) if d != 1 else 0 for d in shape))


def _reshaped_strides(old: list[tuple[Dim, int]], new: list[Dim]) -> list[int] | None:
    """Strides of `new` over axes `old` (size, stride), in groups of equal products."""
    strides: list[int] = []
    i = j = 0
    while i < len(old) and j < len(new):
        start, first = i, j
        have, want = old[i][0], new[j]
        while have != want:
            if _divides(have, want) and i + 1 < len(old):
                i += 1
                have = have * old[i][0]
            elif _divides(want, have) and j + 1 < len(new):
                j += 1
                want = want * new[j]
            else:
                return None
        for (_, outer), (size, inner) in zip(old[start:i], old[start + 1 : i + 1], strict=True):
            if not isinstance(size, int) or outer != inner * size:
                return None
        stride, group = old[i][1], []
        for index in range(j, first - 1, -1):
            group.append(stride)
            size = new[index]
            if index > first:
                if not isinstance(size, int):
                    return None
                stride *= size
        strides += reversed(group)
        i, j = i + 1, j + 1
    return strides if i == len(old) and j == len(new) else None


def _divides(small: Dim, large: Dim) -> bool:
    if isinstance(large, int):
        return isinstance(small, int) and large % small == 0
    return isinstance(large, SymbolicDim) and large.divide(small) is not None


def token_axis(shape: Sequence[Dim]) -> int | None:
    """The first axis whose size depends on the number of tokens."""
    return next((axis for axis, dim in enumerate(shape) if TOKENS in dim_symbols(dim)), None)


def quantized_row_bytes(columns: int) -> int:
    """Bytes of one row of q8g32 activations: codes, float scale and int sum per 32 inputs, padded to 64."""
    groups = -(-columns // 32)
    return -(-groups * (32 + 4 + 4) // ALIGNMENT) * ALIGNMENT


def element_bytes(element: DType | QuantizedType) -> int:
    """Bytes of one element in a buffer (a byte of a packed row for quantized rows)."""
    return 1 if isinstance(element, QuantizedType) else element.bits // 8


def allocate_view(name: str, type: TensorType, chunk: int) -> View:
    """A new arena buffer for a value, token axis outermost, room for `chunk` tokens."""
    sizes = [_size(dim, chunk, name) for dim in type.shape]
    if isinstance(type.element, QuantizedType):
        sizes[-1] = quantized_row_bytes(sizes[-1])
    axis = token_axis(type.shape)
    order = [a for a in range(len(sizes)) if a != axis]
    order = order if axis is None else [axis, *order]
    strides, stride = [0] * len(sizes), 1
    for a in reversed(order):
        strides[a] = stride
        stride *= sizes[a]
    return View(Buffer(name, "arena", stride * element_bytes(type.element)), type.element, type.shape, tuple(strides))


def dense_view(buffer: Buffer, type: TensorType) -> View:
    """A row-major view of a static tensor (a weight)."""
    sizes = [_size(dim, 0, buffer.name) for dim in type.shape]
    strides = [int(product(sizes[axis + 1 :])) for axis in range(len(sizes))]  # type: ignore[arg-type]
    return View(buffer, type.element, type.shape, tuple(strides))


def _size(dim: Dim, chunk: int, name: str) -> int:
    size = substitute_dim(dim, {TOKENS: chunk})
    if not isinstance(size, int):
        raise UnsupportedError(f"%{name} has an axis of size {dim}, which is not known when compiling")
    return size
