"""Attention over caches equals the interpreter's attention, on every instruction set of the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from slmopt.backends.tvm.attention import attention
from slmopt.backends.tvm.cache import cache_bytes, cache_update
from slmopt.backends.tvm.isa import Isa
from slmopt.ir import Graph, tensor
from slmopt.ir.ops.language import QUANTIZED_ROWS, quantize_rows
from slmopt.ir.types import DType, Element
from tests.backends.native import Kernels, aligned, host_isas

ISAS = pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)


def numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check(
    isa: Isa, *, heads: int, kv_heads: int, head_dim: int, value_dim: int | None = None, steps: tuple[int, ...],
    element: Element = DType.f32, window: int | None = None, softcap: float | None = None, slopes: bool = False,
    sinks: bool = False,
) -> None:  # fmt: skip
    """Feed a sequence in steps through cache and attention kernels; compare each step with the reference."""
    value_dim = value_dim or head_dim
    total, capacity = sum(steps), -(-sum(steps) // 16) * 16 + 16
    q, k = numbers(total, heads, head_dim), numbers(total, kv_heads, head_dim, seed=2)
    v = numbers(total, kv_heads, value_dim, seed=3)
    tables = [aligned(np.abs(numbers(heads, seed=4)) / 4)] * slopes + [aligned(numbers(heads, seed=5))] * sinks
    options: dict[str, Any] = {"window": window, "softcap": softcap}
    kernels = [
        cache_update(isa, layout="keys", element=element, heads=kv_heads, head_dim=head_dim),
        cache_update(isa, layout="values", element=element, heads=kv_heads, head_dim=value_dim),
        attention(isa, heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim, scale=0.3, **options,
                  slopes=slopes, sinks=sinks, element=element),
    ]  # fmt: skip
    library = Kernels(kernels, isa)
    caches = [
        aligned(np.zeros(cache_bytes(layout, element, kv_heads, capacity, size), np.uint8))
        for layout, size in (("keys", head_dim), ("values", value_dim))
    ]
    given = k, v
    if element == QUANTIZED_ROWS:  # what the cache holds; only float32 arithmetic is left to differ
        k, v = (quantize_rows(torch.from_numpy(x)).numpy() for x in (k, v))
    position = 0
    for tokens in steps:
        part = slice(position, position + tokens)
        for kernel, cache, new in zip(kernels, caches, given, strict=False):
            x = aligned(new[part])
            middle = tokens // 2
            for lo, hi in ((0, middle), (middle, tokens)):
                library.call(kernel, cache, x, lo, hi, position, x[0].size, new.shape[2], capacity)
        query, out = aligned(q[part]), aligned(np.zeros((tokens, heads, value_dim), np.float32))
        strides = [heads * value_dim, value_dim, heads * head_dim, head_dim, capacity]
        for lo, hi in ((0, heads), (heads, tokens * heads)):
            library.call(kernels[2], out, query, *caches, *tables, 0, tokens, position, lo, hi, *strides)
        expected = reference(q[part], k[: part.stop], v[: part.stop], position, tables, slopes, sinks, options)
        tolerance = 3e-3 if element == DType.f16 else 2e-6
        np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
        position += tokens


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, position: int, tables: list[np.ndarray], slopes: bool, sinks: bool,
    options: dict[str, Any],
) -> np.ndarray:  # fmt: skip
    graph = Graph("g")
    heads = [torch.from_numpy(x).transpose(0, 1)[None].double() for x in (q, k, v)]
    values = [graph.add_input(name, tensor("f32", *x.shape)) for name, x in zip("qkv", heads, strict=True)]
    given = iter(torch.from_numpy(t).double() for t in tables)
    extra = [next(given) if on else None for on in (slopes, sinks)]
    named = zip(("slopes", "sinks"), extra, strict=True)
    operands = [graph.add_input(name, tensor("f32", q.shape[1])) if x is not None else None for name, x in named]
    op = graph.add("attention", [*values, None, None, *operands], {"scale": 0.3, **options})
    found = op.spec.reference(op, *heads, None, torch.tensor(position), *extra)
    array: np.ndarray = found[0].transpose(0, 1).numpy()
    return array


@ISAS
@pytest.mark.parametrize("head_dim", [1, 8, 20, 64, 80, 96])
def test_head_sizes(isa: Isa, head_dim: int) -> None:
    check(isa, heads=4, kv_heads=2, head_dim=head_dim, steps=(7, 1, 1, 16, 33, 1))


@ISAS
def test_one_head(isa: Isa) -> None:
    check(isa, heads=1, kv_heads=1, head_dim=16, steps=(1, 1, 1))


@ISAS
def test_values_of_another_size(isa: Isa) -> None:
    check(isa, heads=6, kv_heads=3, head_dim=24, value_dim=40, steps=(5, 20, 1))


@ISAS
def test_half_precision_cache(isa: Isa) -> None:
    check(isa, heads=9, kv_heads=3, head_dim=64, steps=(40, 1), element=DType.f16)


@ISAS
@pytest.mark.parametrize("window", [1, 3, 16, 17, 100])
def test_window(isa: Isa, window: int) -> None:
    check(isa, heads=2, kv_heads=1, head_dim=8, steps=(30, 1, 21), window=window)


@ISAS
def test_soft_cap_slopes_and_sinks(isa: Isa) -> None:
    check(isa, heads=4, kv_heads=2, head_dim=16, steps=(20, 1), softcap=2.0)
    check(isa, heads=4, kv_heads=4, head_dim=16, steps=(20, 1), slopes=True)
    check(isa, heads=4, kv_heads=2, head_dim=16, steps=(20, 1), slopes=True, sinks=True, window=5, softcap=3.0)


CODES = pytest.mark.parametrize("head_dim", [1, 8, 20, 64, 80, 96])


@ISAS
@CODES
def test_cache_of_codes(isa: Isa, head_dim: int) -> None:
    check(isa, heads=4, kv_heads=2, head_dim=head_dim, steps=(7, 1, 1, 16, 33, 1), element=QUANTIZED_ROWS)


@ISAS
def test_cache_of_codes_with_options(isa: Isa) -> None:
    check(isa, heads=6, kv_heads=2, head_dim=40, value_dim=24, steps=(5, 60, 1), element=QUANTIZED_ROWS, window=37)
    check(isa, heads=3, kv_heads=3, head_dim=16, steps=(20, 1), element=QUANTIZED_ROWS, slopes=True, sinks=True,
          window=5, softcap=3.0)  # fmt: skip


@ISAS
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 13, 14, 15, 16, 17, 31, 32, 33])
def test_numbers_of_tokens(isa: Isa, tokens: int) -> None:
    check(isa, heads=9, kv_heads=3, head_dim=16, steps=(50, tokens, tokens))


@ISAS
@pytest.mark.parametrize("window", [1, 40, 63, 64, 65, 130])
def test_window_that_ends_in_another_step(isa: Isa, window: int) -> None:
    check(isa, heads=3, kv_heads=1, head_dim=12, steps=(150, 33, 1), window=window, sinks=window == 40)
