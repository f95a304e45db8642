"""Linear and embedding kernels equal numpy on every instruction set of the host, for odd shapes and every type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from slmopt.backends.tvm.embedding import embedding
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.linear import linear
from slmopt.backends.tvm.packing import block_rows, pack_chunks, packed_bytes
from slmopt.errors import UnsupportedError
from slmopt.ir.types import DType, QuantizedType, parse_element
from slmopt.ir.weights import QuantizedTensor
from tests.backends.native import Kernels, aligned, host_isas
from tests.backends.quantized_rows import pack_rows, unpack_rows

SHAPES = [(16, 32), (64, 64), (33, 45), (7, 172), (129, 96)]
ISAS = pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
random = np.random.default_rng(3)


def quantized(element: QuantizedType, rows: int, columns: int) -> QuantizedTensor:
    """Random codes over their whole range."""
    low, high = (-(1 << element.bits - 1), (1 << element.bits - 1) - 1) if element.symmetric else (0, (1 << element.bits) - 1)
    low = max(low, -127) if element.symmetric else low
    codes = torch.from_numpy(random.integers(low, high + 1, (rows, columns)).astype(np.int8 if element.symmetric else np.uint8))
    scales = torch.from_numpy(random.uniform(0.01, 0.1, (rows, element.groups(columns))).astype(np.float16))
    minimum = None if element.symmetric else torch.from_numpy(random.normal(size=scales.shape).astype(np.float16))
    return QuantizedTensor(element, codes, scales, minimum)


def make(element: Any, rows: int, columns: int) -> tuple[Any, np.ndarray]:
    """(weight as the store gives it, its float32 values)."""
    if isinstance(element, QuantizedType):
        weight = quantized(element, rows, columns)
        return weight, weight.dequantize().numpy()
    from slmopt.ir.torch_types import torch_dtype

    values = torch.from_numpy(random.normal(size=(rows, columns)).astype(np.float32)).to(torch_dtype(element))
    return values, values.float().numpy()


def pack(isa: Isa, element: Any, weight: Any, rows: int, columns: int) -> np.ndarray:
    data = np.frombuffer(b"".join(pack_chunks(isa, element, weight)), np.uint8)
    assert len(data) == packed_bytes(isa, element, rows, columns)
    return aligned(data)


def run_linear(
    isa: Isa, element: Any, rows: int, columns: int, tokens: int, splits: list[int], *, bias: bool = False,
    residual: bool = False, activation: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(what the kernel computes in parts, what numpy does)."""
    weight, values = make(element, rows, columns)
    x = random.normal(size=(tokens, columns)).astype(np.float32)
    packed = pack(isa, element, weight, rows, columns)
    if isinstance(element, QuantizedType):
        source = aligned(pack_rows(x))
        x, stride = unpack_rows(source, columns), source.shape[1]
    else:
        source, stride = aligned(np.pad(x, ((0, 0), (0, 3)))), columns + 3
    added, shift = random.normal(size=(tokens, rows + 2)).astype(np.float32), random.normal(size=rows + 64).astype(np.float32)
    kernel = linear(isa, element, rows, columns, bias=bias, residual=residual, activation=activation)
    out = aligned(np.full((tokens, rows + 5), np.nan, np.float32))
    library = Kernels([kernel], isa)
    pointers = [source, packed, *([aligned(shift)] if bias else []), *([aligned(added)] if residual else [])]
    blocks = -(-rows // block_rows(isa, element))
    edges = sorted({0, *(min(s, blocks) for s in splits), blocks})
    for lo, hi in zip(edges[:-1], edges[1:], strict=True):
        strides = [rows + 5, stride, *([rows + 2] if residual else [])]
        library.call(kernel, out, *pointers, 0, tokens, lo, hi, *strides)
    assert np.isnan(out[:, rows:]).all(), "stores past the last output"
    expected = x.astype(np.float64) @ values.astype(np.float64).T + (shift[:rows] if bias else 0)
    if activation == "silu":
        expected = expected / (1 + np.exp(-expected))
    return out[:, :rows], expected + (added[:, :rows] if residual else 0)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 3e-6 * scale, np.abs(found - expected).max() / scale


@ISAS
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q4g32", "q4g32a", "q8g32", "q8g32a", "q4c", "q8c", "q4g64", "q3g32"])
def test_every_type(isa: Isa, name: str) -> None:
    for (rows, columns), tokens in zip(SHAPES, (1, 8, 5, 1, 33), strict=True):
        close(*run_linear(isa, parse_element(name), rows, columns, tokens, [1, 3]))


@ISAS
@pytest.mark.parametrize("name", ["f32", "q4g32"])
@pytest.mark.parametrize("rows", [48, 35])
def test_epilogues(isa: Isa, name: str, rows: int) -> None:
    element = parse_element(name)
    close(*run_linear(isa, element, rows, 64, 3, [], bias=True))
    close(*run_linear(isa, element, rows, 64, 1, [], residual=True))
    close(*run_linear(isa, element, rows, 64, 9, [2], bias=True, residual=True, activation="silu"))


@ISAS
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q4g32", "q4g32a", "q8g32", "q8g32a", "q8c"])
def test_embedding_reads_the_matrix_of_the_head(isa: Isa, name: str) -> None:
    element = parse_element(name)
    rows, columns = 37, 45
    weight, values = make(element, rows, columns)
    kernel = embedding(isa, element, rows, columns)
    ids = aligned(np.array([0, 36, 5, 5, 17, 16], np.int32))
    out = aligned(np.full((6, 48), np.nan, np.float32))
    library = Kernels([kernel], isa)
    for lo, hi in ((0, 2), (2, 6)):
        library.call(kernel, out, pack(isa, element, weight, rows, columns), ids, lo, hi, 48)
    np.testing.assert_allclose(out[:, :columns], values[ids], rtol=1e-6, atol=1e-6)


def test_any_split_of_the_blocks_gives_the_same_bytes() -> None:
    isa = host_isas()[0]
    global random
    found = []
    for splits in ([], [1], [2, 3], [1, 2, 3, 4, 5]):
        random = np.random.default_rng(5)
        found.append(run_linear(isa, parse_element("q4g32"), 100, 64, 1, splits)[0])
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_a_type_without_a_kernel_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="multiple of 32"):
        linear(host_isas()[0], QuantizedType(4, 48), 16, 32)
    with pytest.raises(UnsupportedError, match="i64"):
        linear(host_isas()[0], DType.i64, 16, 32)
