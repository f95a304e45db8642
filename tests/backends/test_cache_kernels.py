"""Cache updates write exactly the new positions, in the layouts that attention reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slmopt.backends.tvm.cache import KEY_BLOCK, cache_bytes, cache_update
from slmopt.backends.tvm.isa import Isa
from slmopt.ir.ops.language import QUANTIZED_ROWS, quantize_rows
from slmopt.ir.types import DType
from tests.backends.native import Kernels, aligned, host_isas

ISAS = pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
HEADS, CAPACITY, TOKENS, POSITION = 3, 48, 21, 13
NUMPY = {DType.f32: np.float32, DType.f16: np.float16}


def read(cache: np.ndarray, layout: str, element: DType, size: int) -> np.ndarray:
    """The cache as [head][position][size]."""
    numbers = cache.view(NUMPY[element])
    if layout == "values":
        return numbers.reshape(HEADS, CAPACITY, size)
    blocks = numbers.reshape(HEADS, CAPACITY // KEY_BLOCK, size, KEY_BLOCK)
    return blocks.transpose(0, 1, 3, 2).reshape(HEADS, CAPACITY, size)


@ISAS
@pytest.mark.parametrize("layout", ["keys", "values"])
@pytest.mark.parametrize("element", [DType.f32, DType.f16])
@pytest.mark.parametrize("size", [1, 20, 64])
def test_new_positions_alone_are_written(isa: Isa, layout: str, element: DType, size: int) -> None:
    random = np.random.default_rng(3)
    kernel = cache_update(isa, layout=layout, element=element, heads=HEADS, head_dim=size)
    library = Kernels([kernel], isa)
    x = random.normal(size=(TOKENS, HEADS, size)).astype(np.float32)
    x[0, 0, 0], x[1, 0, 0], x[2, 0, 0], x[3, 0, 0] = 1e6, 3e-6, -65504.0, 1e-9  # too large, subnormal, largest, zero
    before = random.integers(0, 100, cache_bytes(layout, element, HEADS, CAPACITY, size)).astype(np.uint8)
    with np.errstate(over="ignore"):
        expected = read(before.copy(), layout, element, size).copy()
        expected[:, POSITION : POSITION + TOKENS] = x.transpose(1, 0, 2).astype(NUMPY[element])
    by_head = aligned(x.transpose(1, 0, 2))  # the same numbers, stored head by head
    for source, s0, s1 in ((aligned(x), HEADS * size, size), (by_head, size, TOKENS * size)):
        for cuts in ([], [1], [5, 6, 20]):
            cache = aligned(before)
            for lo, hi in zip([0, *cuts], [*cuts, TOKENS], strict=True):
                library.call(kernel, cache, source, lo, hi, POSITION, s0, s1, CAPACITY)
            np.testing.assert_array_equal(read(cache, layout, element, size).view(np.uint8), expected.view(np.uint8))


def read_codes(cache: np.ndarray, layout: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [head][position][size] and scales [head][position][group]."""
    groups = -(-size // 32)
    blocks = cache.reshape(HEADS, CAPACITY // KEY_BLOCK, KEY_BLOCK * (size + 4 * groups))
    codes = blocks[:, :, : KEY_BLOCK * size].view(np.int8)
    scales = np.ascontiguousarray(blocks[:, :, KEY_BLOCK * size :]).view(np.float32)
    shape = (HEADS, CAPACITY // KEY_BLOCK, KEY_BLOCK, size)
    codes = codes.reshape(*shape[:2], size, KEY_BLOCK).swapaxes(2, 3) if layout == "keys" else codes.reshape(shape)
    scales = scales.reshape(*shape[:2], groups, KEY_BLOCK).swapaxes(2, 3)
    return codes.reshape(HEADS, CAPACITY, size), scales.reshape(HEADS, CAPACITY, groups)


@ISAS
@pytest.mark.parametrize("layout", ["keys", "values"])
@pytest.mark.parametrize("size", [1, 8, 20, 32, 64, 80, 96])
def test_codes_are_those_of_quantize_rows(isa: Isa, layout: str, size: int) -> None:
    random = np.random.default_rng(4)
    kernel = cache_update(isa, layout=layout, element=QUANTIZED_ROWS, heads=HEADS, head_dim=size)
    library = Kernels([kernel], isa)
    x = (random.normal(size=(TOKENS, HEADS, size)) * 10.0 ** random.integers(-8, 8, (TOKENS, HEADS, 1))).astype("f")
    x[0, 0], x[1, 1] = 0, 1e-42
    before = random.integers(0, 100, cache_bytes(layout, QUANTIZED_ROWS, HEADS, CAPACITY, size)).astype(np.uint8)
    for cuts in ([], [1], [5, 6, 20]):
        cache = aligned(before)
        for lo, hi in zip([0, *cuts], [*cuts, TOKENS], strict=True):
            library.call(kernel, cache, aligned(x), lo, hi, POSITION, HEADS * size, size, CAPACITY)
        new = slice(POSITION, POSITION + TOKENS)
        codes, scales = read_codes(cache, layout, size)
        numbers = codes[:, new] * scales[:, new].repeat(32, -1)[..., :size]
        expected = quantize_rows(torch.from_numpy(x)).numpy().transpose(1, 0, 2)
        np.testing.assert_array_equal(numbers, expected)
        for found, kept in zip((codes, scales), read_codes(before, layout, size), strict=True):
            np.testing.assert_array_equal(np.delete(found, np.r_[new], 1), np.delete(kept, np.r_[new], 1))


def test_a_capacity_is_rounded_up_to_whole_blocks() -> None:
    assert cache_bytes("keys", DType.f32, 2, 17, 8) == 2 * 32 * 8 * 4
    assert cache_bytes("values", DType.f16, 1, 16, 8) == 16 * 8 * 2
    assert cache_bytes("keys", QUANTIZED_ROWS, 1, 16, 64) == 16 * (64 + 2 * 4)
    assert cache_bytes("values", QUANTIZED_ROWS, 3, 17, 40) == 3 * 32 * (40 + 2 * 4)
