"""Products with float weights: these are converted exactly, and summed in one order whatever the tile."""

from __future__ import annotations

import numpy as np
import pytest

from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.linear import linear
from slmopt.backends.tvm.packing import inputs_together
from slmopt.ir.types import DType, parse_element
from tests.backends.native import Kernels, aligned, host_isas, isa_parameters
from tests.backends.packed_weights import make_weight

TYPES = ["f32", "f16", "bf16"]
ISAS = pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)


@pytest.mark.parametrize("isa", isa_parameters())
@pytest.mark.parametrize("name", TYPES)
def test_few_and_odd_numbers_of_inputs(isa: Isa, name: str) -> None:
    random, rows = np.random.default_rng(5), 5 * isa.lanes - 3
    kernels = {columns: linear(isa, parse_element(name), rows, columns) for columns in (1, 3, 4, 5, 8, 31)}
    library = Kernels(list(kernels.values()), isa)
    for columns, kernel in kernels.items():
        weight = make_weight(isa, parse_element(name), rows, columns, random)
        x = aligned(random.normal(size=(33, columns)).astype(np.float32))
        expected = x.astype(np.float64) @ weight.values.astype(np.float64).T
        whole = aligned(np.full((33, rows), np.nan, np.float32))
        library.call(kernel, whole, x, weight.packed, 0, 33, 0, 5, rows, columns)
        assert np.abs(whole - expected).max() <= 3e-6 * np.abs(expected).max(), columns
        for tokens in (1, 2, 7):
            parts = np.full_like(whole, np.nan)
            for start in range(0, 33, tokens):
                library.call(kernel, parts, x, weight.packed, start, min(start + tokens, 33), 0, 5, rows, columns)
            np.testing.assert_array_equal(parts, whole, err_msg=f"{columns} inputs, {tokens} tokens at a time")


@ISAS
@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_every_finite_weight_of_16_bits_is_converted_exactly(isa: Isa, name: str, tokens: int) -> None:
    rows, columns = 256, 256
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(np.float16).astype(np.float32) if name == "f16" else (
        (bits.astype(np.uint32) << 16).view(np.float32)
    )  # fmt: skip
    finite = np.isfinite(values)
    bits[~finite], values[~finite] = 0, 0.0
    together = inputs_together(DType(name))
    packed = aligned(bits.reshape(rows // isa.lanes, isa.lanes, -1, together).transpose(0, 2, 1, 3))
    kernel = linear(isa, parse_element(name), rows, columns)
    library = Kernels([kernel], isa)
    x, out = aligned(np.eye(columns, dtype=np.float32)), aligned(np.zeros((columns, rows), np.float32))
    for start in range(0, columns, tokens):  # input `start` alone is 1: the outputs are its weights
        end = min(start + tokens, columns)
        library.call(kernel, out, x, packed, start, end, 0, rows // isa.lanes, rows, columns)
    np.testing.assert_array_equal(out.T.reshape(-1), values)
