"""Products of bfloat16 numbers: rows are rounded as torch does, pairs are multiplied by one instruction where there is
one, and an instruction set without it gives the same numbers, summed in another order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slmopt
from slmopt.backends.tvm.embedding import embedding
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.linear import linear
from slmopt.backends.tvm.round_rows import round_rows
from slmopt.errors import UnsupportedError
from slmopt.interpreter import forward
from slmopt.ir.types import DType, QuantizedType
from tests.backends.native import Kernels, aligned, host_isas
from tests.backends.op_module import INTEGERS, NORMALS, OpModule
from tests.backends.packed_weights import make_weight
from tests.backends.sessions import feed

ISAS = pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
PAIRED = [isa for isa in host_isas() if isa.bf16_dot]
PAIRS = pytest.mark.parametrize("isa", PAIRED, ids=lambda isa: isa.name)
COLUMNS = (1, 2, 3, 31, 45, 96)
TOKENS = 33
SUM_ERROR = 2e-6  # of the largest sum: products are exact, sums of at most 96 of them are rounded


def rounded(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).to(torch.bfloat16)


def bits(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy().view(np.uint16)


@ISAS
def test_rows_are_rounded_to_the_nearest_ties_to_even(isa: Isa) -> None:
    random, width = np.random.default_rng(1), 77
    x = random.integers(0, 1 << 32, (40, width), np.uint32)
    x[:8] = x[:8] & 0xFFFF0000 | 0x8000  # halfway
    x[8:16, :6] = np.array([np.inf, -np.inf, 0.0, -0.0, 3.4e38, 1e-40], np.float32).view(np.uint32)
    x[16, :2] = 0x7FFFFFFF, 0xFF800001  # NaN whose bits would be carried away
    given = aligned(x.view(np.float32))
    expected = rounded(given)
    number = np.isfinite(given) | np.isinf(given)
    for stored, kind in ((DType.bf16, np.uint16), (DType.f32, np.float32)):
        kernel = round_rows(isa, width=width, stored=stored)
        found = aligned(np.zeros((40, width + 3), kind))
        for lo, hi in ((0, 3), (3, 40)):
            Kernels([kernel], isa).call(kernel, found, given, lo, hi, width + 3, width)
        assert not found[:, width:].any(), "stores past the row"
        as_floats = found if kind == np.float32 else (found.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(as_floats[:, :width][number], expected.float().numpy()[number])
        assert np.isnan(as_floats[:, :width][~number]).all()


@PAIRS
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "any"])
def test_pairs_of_few_and_odd_numbers_of_inputs(isa: Isa, whole: bool) -> None:
    random, rows = np.random.default_rng(5), 5 * isa.lanes - 3
    kernels = {columns: linear(isa, DType.bf16, rows, columns, rounded=True) for columns in COLUMNS}
    library = Kernels(list(kernels.values()), isa)
    for columns, kernel in kernels.items():
        weight = make_weight(isa, DType.bf16, rows, columns, random, whole=whole)
        numbers = random.integers(-99, 100, (TOKENS, columns)) if whole else random.normal(size=(TOKENS, columns))
        x = rounded(numbers.astype(np.float32))
        packed_x = aligned(np.pad(bits(x), ((0, 0), (0, 1)), constant_values=0x7FC0))  # NaN, which must not be read
        expected = x.double().numpy() @ weight.values.astype(np.float64).T
        found = aligned(np.full((TOKENS, rows), np.nan, np.float32))
        library.call(kernel, found, packed_x, weight.packed, 0, TOKENS, 0, 5, rows, columns + 1)
        if whole:
            np.testing.assert_array_equal(found, expected)
        assert np.abs(found - expected).max() <= SUM_ERROR * np.abs(expected).max(), columns


@PAIRS
@settings(max_examples=25, deadline=None)
@given(edges=st.lists(st.integers(0, 10), max_size=5), token_edges=st.lists(st.integers(0, TOKENS), max_size=6))
def test_any_split_of_blocks_and_tokens_is_the_same(isa: Isa, edges: list[int], token_edges: list[int]) -> None:
    random, rows, columns, blocks = np.random.default_rng(6), 150, 63, 10
    kernel = linear(isa, DType.bf16, rows, columns, bias=True, activation="silu", rounded=True)
    library, weight = Kernels([kernel], isa), make_weight(isa, DType.bf16, rows, columns, random)
    x = aligned(bits(rounded(random.normal(size=(TOKENS, columns)).astype(np.float32))))
    bias = aligned(random.normal(size=rows).astype(np.float32))
    whole, parts = (aligned(np.full((TOKENS, rows), np.nan, np.float32)) for _ in range(2))
    library.call(kernel, whole, x, weight.packed, bias, 0, TOKENS, 0, blocks, rows, columns)
    for t0, t1 in pairwise(sorted({0, TOKENS, *token_edges})):
        for lo, hi in pairwise(sorted({0, blocks, *edges})):
            library.call(kernel, parts, x, weight.packed, bias, t0, t1, lo, hi, rows, columns)
    np.testing.assert_array_equal(parts, whole)


@ISAS
@pytest.mark.parametrize("columns", [77, 64])
def test_the_embedding_reads_what_the_head_reads(isa: Isa, columns: int) -> None:
    kernel = embedding(isa, DType.bf16, 37, columns)
    weight = make_weight(isa, DType.bf16, 37, columns, np.random.default_rng(7))
    ids, out = aligned(np.arange(36, -1, -1, dtype=np.int32)), aligned(np.full((37, columns), np.nan, np.float32))
    Kernels([kernel], isa).call(kernel, out, weight.packed, ids, 0, 37, columns)
    np.testing.assert_array_equal(out, weight.values[::-1])


def compiled(isa: Isa, directory: Path) -> tuple[OpModule, Path]:
    """Linears of x and of another value that round what they read; two of them read the same."""
    ops = OpModule(3)
    x = ops.part(0, 45)
    for index, element in enumerate((DType.bf16, DType.bf16, DType.f16, DType.f32)):
        weight = ops.weight(ops.matrix(element, 67, 45, exact=True), element)
        ops.show(f"{index}", ops.add("linear", [x, weight], act="bf16"), error=1.0, exact=True)
    weight = ops.weight(ops.numbers(33, 77), DType.bf16)
    ops.show("more", ops.add("linear", [ops.add("silu", [ops.x]), weight], act="bf16"), error=1.0)
    ops.finish()
    return ops, ops.compile(isa.name, directory)


@ISAS
def test_every_instruction_set_gives_the_numbers_of_the_interpreter(isa: Isa, tmp_path: Path) -> None:
    ops, path = compiled(isa, tmp_path)
    program = (path / "program.c").read_text()
    assert program.count("  round_rows_bf16_45(") == bool(isa.bf16_dot), "rounded once for all that read it"
    assert program.count("  round_rows_f32_45(") == 1
    with slmopt.open(path) as model, model.session(threads=2) as session:
        for tokens in (1, 2, 17, TOKENS):
            ops.check(feed(session, list(INTEGERS)[:1] * tokens, []), list(INTEGERS)[:1] * tokens)
            ids = [NORMALS[place % len(NORMALS)] for place in range(tokens)]
            with torch.no_grad():
                expected = forward(ops.module, torch.tensor([ids]))[0].numpy()
            error = np.abs(feed(session, ids, []) - expected)
            assert error[:, : 4 * 67].max() <= SUM_ERROR * np.abs(expected[:, : 4 * 67]).max()
            # silu is not the interpreter's to the last bit, and what is rounded may fall either way
            assert np.median(error[:, 4 * 67 :]) <= SUM_ERROR * np.abs(expected[:, 4 * 67 :]).max()
            assert error.max() <= 2.0**-8 * np.abs(expected).max()


@pytest.mark.parametrize("act", [None, "bf16"])
def test_codes_by_real_numbers_are_refused(act: str | None, tmp_path: Path) -> None:
    ops = OpModule(4)
    weight = ops.weight(ops.matrix(QuantizedType(4, 32), 40, 64, exact=True), QuantizedType(4, 32))
    ops.show("codes", ops.add("linear", [ops.part(0, 64), weight], act=act), error=1.0)
    ops.finish()
    with pytest.raises(UnsupportedError, match=r"no kernel multiplies f32\[1, t, 64\] by q4g32\[40, 64\]"):
        ops.compile("avx2", tmp_path)
