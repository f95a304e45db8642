"""Heads that share keys go in tiles: a query gives the same bits in any tile, however threads share the work."""

from __future__ import annotations

import numpy as np
import pytest

from slmopt.backends.tvm.attention import attention
from slmopt.backends.tvm.attention_tile import AttentionShape
from slmopt.backends.tvm.cache import cache_bytes, cache_update
from slmopt.backends.tvm.isa import Isa
from slmopt.ir.ops.language import QUANTIZED_ROWS
from slmopt.ir.types import DType, Element
from tests.backends.native import Kernels, aligned, host_isas
from tests.backends.test_attention_kernels import check

ISAS = pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
CAPACITY, DEPTH = 224, 150


@ISAS
@pytest.mark.parametrize(("heads", "kv_heads"), [(5, 1), (14, 2), (8, 8)])
def test_any_split_gives_the_same_bytes(isa: Isa, heads: int, kv_heads: int) -> None:
    size, tokens = 20, 3
    random = np.random.default_rng(7)
    kernel = attention(isa, heads=heads, kv_heads=kv_heads, head_dim=size, value_dim=size, scale=0.2, window=90)
    library = Kernels([kernel], isa)
    elements = cache_bytes("keys", DType.f32, kv_heads, CAPACITY, size) // 4
    caches = [aligned(random.normal(size=elements).astype(np.float32)) for _ in range(2)]
    query = aligned(random.normal(size=(tokens, heads, size)).astype(np.float32))

    def run(cuts: list[int]) -> bytes:
        out = aligned(np.full(query.shape, np.nan, np.float32))
        for lo, hi in zip([0, *cuts], [*cuts, tokens * heads], strict=True):
            library.call(
                kernel, out, query, *caches, 0, tokens, DEPTH, lo, hi, heads * size, size, heads * size, size, CAPACITY
            )  # fmt: skip
        return out.tobytes()

    whole = run([])
    assert not np.isnan(np.frombuffer(whole, np.float32)).any()
    assert run(list(range(1, tokens * heads))) == whole
    for _ in range(20):
        assert run(sorted(random.integers(0, tokens * heads + 1, 4).tolist())) == whole


@ISAS
@pytest.mark.parametrize("element", [DType.f16, QUANTIZED_ROWS])
@pytest.mark.parametrize("window", [None, 23, 70])
def test_a_sequence_in_parts_gives_the_same_bytes_as_whole(isa: Isa, element: Element, window: int | None) -> None:
    heads, kv_heads, size, tokens, capacity = 6, 2, 40, 101, 112
    random = np.random.default_rng(8)
    q, k, v = (random.normal(size=(tokens, n, size)).astype(np.float32) for n in (heads, kv_heads, kv_heads))
    options = {"scale": 0.2, "window": window, "element": element}
    kernel = attention(isa, heads=heads, kv_heads=kv_heads, head_dim=size, value_dim=size, **options)  # type: ignore[arg-type]
    writers = [cache_update(isa, layout=name, element=element, heads=kv_heads, head_dim=size)
               for name in ("keys", "values")]  # fmt: skip
    library = Kernels([kernel, *writers], isa)

    def run(parts: list[int]) -> bytes:
        bytes_ = [cache_bytes(name, element, kv_heads, capacity, size) for name in ("keys", "values")]
        caches = [aligned(np.zeros(n, np.uint8)) for n in bytes_]
        found, position = [], 0
        for count in parts:
            part = slice(position, position + count)
            for writer, cache, new in zip(writers, caches, (k, v), strict=True):
                library.call(writer, cache, aligned(new[part]), 0, count, position, kv_heads * size, size, capacity)
            out = aligned(np.full((count, heads, size), np.nan, np.float32))
            strides = [heads * size, size, heads * size, size, capacity]
            library.call(kernel, out, aligned(q[part]), *caches, 0, count, position, 0, count * heads, *strides)
            found.append(out.copy())
            position += count
        return np.concatenate(found).tobytes()

    whole = run([tokens])
    assert not np.isnan(np.frombuffer(whole, np.float32)).any()
    for parts in ([1] * tokens, [64, 37], [33, 1, 5, 62], [100, 1]):
        assert run(parts) == whole


@ISAS
def test_only_the_tokens_that_are_asked_for(isa: Isa) -> None:
    """From `first` on, as where logits of the last tokens alone are needed."""
    heads, size, tokens = 6, 8, 9
    random = np.random.default_rng(9)
    kernel = attention(isa, heads=heads, kv_heads=2, head_dim=size, value_dim=size, scale=0.3)
    library = Kernels([kernel], isa)
    caches = [aligned(random.normal(size=2 * CAPACITY * size).astype(np.float32)) for _ in range(2)]
    query = aligned(random.normal(size=(tokens, heads, size)).astype(np.float32))

    def run(first: int, cut: int) -> np.ndarray:
        out = aligned(np.full(query.shape, np.nan, np.float32))
        for lo, hi in ((first * heads, cut), (cut, tokens * heads)):
            strides = [heads * size, size, heads * size, size, CAPACITY]
            library.call(kernel, out, query, *caches, first, tokens, DEPTH, lo, hi, *strides)
        return out

    whole = run(0, 20)
    for first in range(tokens + 1):
        for cut in {first * heads, (first + tokens) * heads // 2, tokens * heads}:
            found = run(first, cut)
            assert np.isnan(found[:first]).all()
            np.testing.assert_array_equal(found[first:], whole[first:])


@ISAS
def test_tiles_of_unequal_size(isa: Isa) -> None:
    """Five heads share keys: more than the registers of the narrower instruction sets hold at once."""
    check(isa, heads=10, kv_heads=2, head_dim=24, value_dim=72, steps=(70, 1, 64), window=100)


def test_a_tile_fits_the_registers() -> None:
    for isa in host_isas():
        for together in range(1, 40):
            shape = AttentionShape(together, 1, 64, 64, 1.0, None, None, DType.f32)
            tiles = shape.tiles(isa)
            assert tiles == sorted(set(tiles), reverse=True)
            assert tiles[-1] == 1
            assert tiles[0] * 2 < isa.registers
            assert shape.one_token(isa) in tiles
            assert shape.one_token(isa) <= together
