"""A ring in place of a cache of all positions: the same bytes, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slmopt.backends.tvm.attention import attention
from slmopt.backends.tvm.cache import KEY_BLOCK, cache_bytes, cache_update, ring_of
from slmopt.backends.tvm.isa import Isa
from slmopt.ir import Graph, tensor
from slmopt.ir.ops.language import QUANTIZED_ROWS, quantize_rows
from slmopt.ir.types import DType, Element
from tests.backends.native import Kernels, aligned, host_isas

WIDTHS = list({isa.lanes: isa for isa in host_isas()}.values())  # those of one width differ in products of codes alone
ISAS = pytest.mark.parametrize("isa", WIDTHS, ids=lambda isa: isa.name)
HEADS, KV_HEADS, SIZE, TOKENS, CHUNK = 6, 2, 20, 300, 33


class Stepping:
    """A random sequence that goes through cache and attention kernels in parts."""

    def __init__(self, isa: Isa, element: Element, window: int, sink: int, ring: tuple[int, int | None]) -> None:
        random = np.random.default_rng(8)
        self.q, self.k, self.v = (
            random.normal(size=(TOKENS, heads, SIZE)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        self.element, (self.capacity, kept) = element, ring
        self.kernel = attention(
            isa, heads=HEADS, kv_heads=KV_HEADS, head_dim=SIZE, value_dim=SIZE, scale=0.2, window=window, sink=sink,
            element=element, kept=kept,
        )  # fmt: skip
        self.writers = [cache_update(isa, layout=layout, element=element, heads=KV_HEADS, head_dim=SIZE, kept=kept)
                        for layout in ("keys", "values")]  # fmt: skip
        self.library = Kernels([self.kernel, *self.writers], isa)

    def run(self, parts: Sequence[int]) -> np.ndarray:
        """Results of all tokens, f32[tokens, heads, size]."""
        sizes = [cache_bytes(layout, self.element, KV_HEADS, self.capacity, SIZE) for layout in ("keys", "values")]
        caches = [aligned(np.zeros(size, np.uint8)) for size in sizes]
        found, position = [], 0
        for count in parts:
            part = slice(position, position + count)
            for writer, cache, new in zip(self.writers, caches, (self.k, self.v), strict=True):
                x = aligned(new[part])
                for lo, hi in ((0, count // 2), (count // 2, count)):
                    self.library.call(writer, cache, x, lo, hi, position, KV_HEADS * SIZE, SIZE, self.capacity)
            out = aligned(np.full((count, HEADS, SIZE), np.nan, np.float32))
            strides = [HEADS * SIZE, SIZE, HEADS * SIZE, SIZE, self.capacity]
            for lo, hi in ((0, HEADS), (HEADS, count * HEADS)):
                numbers = [0, count, position, lo, hi, *strides]
                self.library.call(self.kernel, out, aligned(self.q[part]), *caches, *numbers)
            found.append(out.copy())
            position += count
        return np.concatenate(found)


def reference(stepping: Stepping, window: int, sink: int) -> np.ndarray:
    """What the interpreter's attention gives for the whole sequence, from what a cache holds."""
    graph = Graph("g")
    sequence = [torch.from_numpy(x) for x in (stepping.q, stepping.k, stepping.v)]
    if stepping.element == QUANTIZED_ROWS:
        sequence[1:] = map(quantize_rows, sequence[1:])
    heads = [x.transpose(0, 1)[None].double() for x in sequence]
    values = [graph.add_input(name, tensor("f32", *x.shape)) for name, x in zip("qkv", heads, strict=True)]
    op = graph.add("attention", values, {"scale": 0.2, "window": window, "sink": sink or None})
    found: np.ndarray = op.spec.reference(op, *heads)[0].transpose(0, 1).numpy()
    return found


@ISAS
@pytest.mark.parametrize(("element", "window", "sink"), [(DType.f32, 23, 4), (QUANTIZED_ROWS, 100, 70)])
def test_a_ring_gives_what_the_interpreter_gives_in_any_parts(
    isa: Isa, element: Element, window: int, sink: int
) -> None:
    ring = ring_of(window, sink, CHUNK)
    assert ring[0] < TOKENS
    stepping = Stepping(isa, element, window, sink, ring)
    found, expected = stepping.run([CHUNK] * 9 + [3]), reference(stepping, window, sink)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6 * np.abs(expected).max())
    for parts in ([1] * TOKENS, [5, 33, 1, 1, 33, 33, 20, 1, 33, 33, 33, 2, 33, 33, 6]):
        assert stepping.run(parts).tobytes() == found.tobytes()


@pytest.mark.parametrize(("element", "window", "sink"), [(DType.f16, 70, 0), (DType.f32, 1, 1)])
def test_a_ring_gives_the_bytes_of_a_cache_of_all_positions(element: Element, window: int, sink: int) -> None:
    isa = WIDTHS[-1]
    expected = Stepping(isa, element, window, sink, (304, None)).run([TOKENS])
    assert not np.isnan(expected).any()
    found = Stepping(isa, element, window, sink, ring_of(window, sink, CHUNK)).run([CHUNK] * 9 + [3])
    assert found.tobytes() == expected.tobytes()


@given(st.integers(1, 300), st.integers(0, 100), st.integers(1, 130), st.data())
def test_what_a_step_sees_has_places_of_its_own(window: int, sink: int, chunk: int, data: st.DataObject) -> None:
    capacity, kept = ring_of(window, sink, chunk)
    blocks = capacity // KEY_BLOCK
    assert kept * KEY_BLOCK >= sink
    position, tokens = data.draw(st.integers(0, 5000)), data.draw(st.integers(1, chunk))
    first, last = max(0, position - window + 1) // KEY_BLOCK, (position + tokens - 1) // KEY_BLOCK
    seen = {*range(kept), *range(first, last + 1)}
    places = {block if block < kept else kept + (block - kept) % (blocks - kept) for block in seen}
    assert len(places) == len(seen) and max(places) < blocks
