"""Linear kernels equal numpy on every instruction set of the host, for odd shapes, every type and every tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.linear import linear
from slmopt.backends.tvm.packing import block_rows
from slmopt.errors import UnsupportedError
from slmopt.ir.types import DType, QuantizedType, parse_element
from tests.backends.native import Kernels, aligned, host_isas
from tests.backends.packed_weights import PackedWeight, make_weight
from tests.backends.quantized_rows import pack_rows, unpack_rows

TYPES = ["f32", "f16", "bf16", "q4g32", "q4g32a", "q8g32", "q8g32a", "q4c", "q8c", "q4g64", "q3g32", "q3g32a", "q4ca"]
ISAS = pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)


@dataclass
class Problem:
    """A kernel with random data for it; x holds what the kernel reads, `inputs` the numbers that stands for."""

    library: Kernels
    kernel: Kernel
    isa: Isa
    weight: PackedWeight
    x: np.ndarray
    inputs: np.ndarray
    extra: list[np.ndarray]  # bias, residual: those the kernel takes
    strides: list[int]

    @property
    def blocks(self) -> int:
        """Blocks of outputs."""
        return -(-len(self.weight.values) // block_rows(self.isa, self.weight.element))

    def run(self, edges: Sequence[int] = (), token_edges: Sequence[int] = (), tokens: int | None = None) -> np.ndarray:
        """The result, computed in parts that meet at the edges; nothing past the last output is written."""
        rows, tokens = len(self.weight.values), len(self.inputs) if tokens is None else tokens
        out = aligned(np.full((tokens, rows + 5), np.nan, np.float32))
        for t0, t1 in _ranges(tokens, token_edges):
            for lo, hi in _ranges(self.blocks, edges):
                numbers = [t0, t1, lo, hi, rows + 5, *self.strides]
                self.library.call(self.kernel, out, self.x, self.weight.packed, *self.extra, *numbers)
        assert np.isnan(out[:, rows:]).all(), "stores past the last output"
        return out[:, :rows]

    def products(self) -> np.ndarray:
        """x W^T in float64."""
        return self.inputs.astype(np.float64) @ self.weight.values.astype(np.float64).T


def _ranges(count: int, edges: Sequence[int]) -> list[tuple[int, int]]:
    found = sorted({0, count, *(min(edge, count) for edge in edges)})
    return list(pairwise(found))


def make(
    isa: Isa, name: str, shapes: Sequence[tuple[int, int]], tokens: int, *, bias: bool = False, residual: bool = False,
    activation: str | None = None, seed: int = 3,
) -> list[Problem]:  # fmt: skip
    """A problem per shape [rows, columns], compiled together."""
    random, element = np.random.default_rng(seed), parse_element(name)
    kernels = [linear(isa, element, *shape, bias=bias, residual=residual, activation=activation) for shape in shapes]
    library, problems = Kernels(kernels, isa), []
    for kernel, (rows, columns) in zip(kernels, shapes, strict=True):
        inputs = random.normal(size=(tokens, columns)).astype(np.float32)
        inputs[0] = 3.0  # all codes 127
        if isinstance(element, QuantizedType):
            x = aligned(pack_rows(inputs))
            inputs, stride = unpack_rows(x, columns), x.shape[1]
        else:
            x, stride = aligned(np.pad(inputs, ((0, 0), (0, 3)))), columns + 3
        extra = [aligned(random.normal(size=rows).astype(np.float32))] if bias else []
        extra += [aligned(random.normal(size=(tokens, rows + 2)).astype(np.float32))] if residual else []
        strides = [stride, *([rows + 2] if residual else [])]
        weight = make_weight(isa, element, rows, columns, random)
        problems.append(Problem(library, kernel, isa, weight, x, inputs, extra, strides))
    return problems


def close(found: np.ndarray, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 3e-6 * scale, np.abs(found - expected).max() / scale


@ISAS
@pytest.mark.parametrize("name", TYPES)
def test_every_type_and_every_tile(isa: Isa, name: str) -> None:
    for problem in make(isa, name, [(129, 96), (7, 45)], 2 * isa.token_tile - 1):
        expected = problem.products()
        for tokens in {1, 2, isa.token_tile, len(expected)}:
            close(problem.run(tokens=tokens), expected[:tokens])


@ISAS
@pytest.mark.parametrize("name", ["f32", "q4g32"])
@pytest.mark.parametrize("rows", [48, 35])
def test_epilogues(isa: Isa, name: str, rows: int) -> None:
    (problem,) = make(isa, name, [(rows, 64)], 9, bias=True, residual=True, activation="silu")
    value = problem.products() + problem.extra[0]
    close(problem.run([2]), value / (1 + np.exp(-value)) + problem.extra[1][:, :rows])


@ISAS
@pytest.mark.parametrize("option", ["bias", "residual"])
def test_one_option_alone(isa: Isa, option: str) -> None:
    (problem,) = make(isa, "q8g32", [(35, 64)], 3, bias=option == "bias", residual=option == "residual")
    close(problem.run(), problem.products() + problem.extra[0][..., :35])


@cache
def _shared_problem(isa: Isa, name: str) -> tuple[Problem, np.ndarray]:
    (problem,) = make(isa, name, [(150, 64)], 21, bias=True)
    return problem, problem.run()


@ISAS
@pytest.mark.parametrize("name", ["f32", "q4g32", "q8g32a"])
@settings(max_examples=25, deadline=None)
@given(edges=st.lists(st.integers(0, 40), max_size=5), token_edges=st.lists(st.integers(0, 21), max_size=6))
def test_any_split_of_blocks_and_tokens_gives_the_same_bytes(
    isa: Isa, name: str, edges: list[int], token_edges: list[int]
) -> None:
    problem, whole = _shared_problem(isa, name)
    np.testing.assert_array_equal(problem.run(edges, token_edges), whole)


@ISAS
def test_one_token_at_a_time_gives_the_bytes_of_the_tile(isa: Isa) -> None:
    for name in ("f16", "q4g32", "q4g32a", "q8c"):
        problem, whole = _shared_problem(isa, name)
        np.testing.assert_array_equal(problem.run(token_edges=range(21)), whole)


@ISAS
def test_subnormal_scales_are_exact(isa: Isa) -> None:
    (problem,) = make(isa, "q4c", [(16, 32)], 1)
    smallest = np.float16(3 * 2.0**-24)
    problem.weight.packed[: 2 * isa.lanes] = np.full(isa.lanes, smallest, np.float16).view(np.uint8)
    codes = problem.weight.values[0] / (problem.weight.values[0, 0] / -8)
    expected = problem.inputs.astype(np.float64) @ codes.astype(np.float64) * float(smallest)
    np.testing.assert_allclose(problem.run()[:, 0], expected, rtol=1e-6)


@ISAS
def test_a_matrix_of_more_than_two_gigabytes(isa: Isa) -> None:
    rows, columns = 2**19 + 16, 1024  # memory is only spent on the last block, which is all that is touched
    kernel = linear(isa, DType.f32, rows, columns)
    packed = np.zeros(rows * columns * 4, np.uint8)
    block, last = isa.lanes * columns * 4, rows // isa.lanes - 1
    packed[last * block :].view(np.float32)[:] = 0.5
    x, out = aligned(np.ones((1, columns), np.float32)), np.zeros((1, rows), np.float32)
    Kernels([kernel], isa).call(kernel, out, x, packed, 0, 1, last, last + 1, rows, columns)
    np.testing.assert_array_equal(out[0, -isa.lanes :], columns / 2)


def test_a_type_without_a_kernel_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="multiple of 32"):
        linear(host_isas()[0], QuantizedType(4, 48), 16, 32)
    with pytest.raises(UnsupportedError, match="i64"):
        linear(host_isas()[0], DType.i64, 16, 32)
