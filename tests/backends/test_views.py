"""Views say the same as numpy: reshape, permute, slice and expand without moving an element."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from slmopt.backends.tvm.rows import joint_rows
from slmopt.backends.tvm.views import Buffer, View, allocate_view, quantized_row_bytes
from slmopt.ir import symbol, tensor
from slmopt.ir.types import DType

T = symbol("t")


def materialize(view: View, memory: np.ndarray, tokens: int = 0) -> np.ndarray:
    shape = [dim if isinstance(dim, int) else tokens for dim in view.shape]
    return as_strided(memory[view.offset :], shape, [s * memory.itemsize for s in view.strides])


def contiguous(shape: tuple[int, ...]) -> View:
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return View(Buffer("x", "arena", 4 * math.prod(shape)), DType.f32, shape, strides)


def test_the_token_axis_is_outermost_in_memory() -> None:
    view = allocate_view("x", tensor("f32", 1, 8, "t", 64), 16)
    assert view.strides[2] == 8 * 64 and view.strides[1] == 64 and view.strides[3] == 1
    assert view.buffer.bytes == 16 * 8 * 64 * 4


def test_heads_are_split_and_moved_for_free() -> None:
    view = allocate_view("x", tensor("f32", 1, "t", 64), 16)
    heads = view.reshape((1, T, 8, 8))
    assert heads is not None
    moved = heads.permute((0, 2, 1, 3))
    assert (moved.shape, moved.strides[1:]) == ((1, 8, T, 8), (8, 64, 1))
    back = moved.permute((0, 2, 1, 3)).reshape((1, T, 64))
    assert back is not None and back.strides[1:] == (64, 1)


def test_merging_heads_that_are_not_neighbours_needs_a_copy() -> None:
    view = allocate_view("x", tensor("f32", 1, "t", 8, 8), 16).permute((0, 2, 1, 3))
    assert view.reshape((1, 8 * T, 8)) is None


def test_a_row_of_quantized_activations_has_scales_and_sums() -> None:
    assert quantized_row_bytes(64) == 128  # 2 groups of 32 + 4 + 4 bytes, padded to 64
    assert quantized_row_bytes(33) == quantized_row_bytes(64)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_views_agree_with_numpy(shape: list[int], data: st.DataObject) -> None:
    memory = np.arange(math.prod(shape), dtype=np.float32)
    view, array = contiguous(tuple(shape)), memory.reshape(shape)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["permute", "slice", "reshape"]))
        if kind == "permute":
            axes = data.draw(st.permutations(range(array.ndim)))
            view, array = view.permute(axes), array.transpose(axes)
        elif kind == "slice":
            axis = data.draw(st.integers(0, array.ndim - 1))
            start = data.draw(st.integers(0, array.shape[axis] - 1))
            length = data.draw(st.integers(1, array.shape[axis] - start))
            part = view.slice(axis, start, length, 1)
            assert part is not None
            view, array = part, array[(slice(None),) * axis + (slice(start, start + length),)]
        else:
            flat = data.draw(st.booleans())
            target = (array.size,) if flat else (1, *array.shape)
            reshaped = view.reshape(target)
            if reshaped is None:
                continue
            view, array = reshaped, array.reshape(target)
        np.testing.assert_array_equal(materialize(view, memory), array)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
def test_joint_rows_reach_every_row(heads: int, tokens: int, width: int) -> None:
    out = allocate_view("out", tensor("f32", 1, heads, "t", width), tokens)
    source = allocate_view("x", tensor("f32", 1, "t", heads, width), tokens).permute((0, 2, 1, 3))
    found = joint_rows(out.shape[:-1], [out, source])
    assert found is not None
    rows, inner = tokens * heads, found.inner
    for view, (outer_stride, inner_stride) in zip((out, source), found.strides, strict=True):
        memory = np.arange(tokens * heads * width, dtype=np.float32)
        whole = materialize(view, memory, tokens)[0]  # [heads, tokens, width]
        expected = whole.transpose(1, 0, 2).reshape(rows, width)
        starts = [(row // inner) * outer_stride + (row % inner) * inner_stride for row in range(rows)]
        np.testing.assert_array_equal(memory[starts], expected[:, 0])
    assert found.outer in (T, T * heads) and found.count == T * heads
