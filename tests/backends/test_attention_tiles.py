"""Heads that share keys go in tiles: a query gives the same bits in any tile, however threads share the work."""

from __future__ import annotations

import numpy as np
import pytest

from slmopt.backends.tvm.attention import attention
from slmopt.backends.tvm.attention_tile import AttentionShape
from slmopt.backends.tvm.cache import cache_bytes
from slmopt.backends.tvm.isa import Isa
from slmopt.ir.types import DType
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
