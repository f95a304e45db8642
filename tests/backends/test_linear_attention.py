"""The kernel of linear attention: what the interpreter gives, in any parts the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.linear_attention import LinearAttention
from slmopt.ir import Graph, tensor
from tests.backends.native import Kernels, aligned, host_isas

WIDTHS = list({isa.lanes: isa for isa in host_isas()}.values())  # what else tells them apart is products of codes
ISAS = pytest.mark.parametrize("isa", WIDTHS, ids=lambda isa: isa.name)
TOKENS = 61


class Stepping:
    """Random sequences for several kernels, compiled together."""

    def __init__(self, isa: Isa, sizes: Iterable[tuple[int, int, int, int]], tokens: int = TOKENS) -> None:
        self.shapes = [LinearAttention(isa, *size, "elu1") for size in sizes]
        self.kernels = [shape.kernel() for shape in self.shapes]
        self.library = Kernels(self.kernels, isa)
        random = np.random.default_rng(3)
        self.inputs = [
            [random.normal(size=(tokens, heads, size)).astype(np.float32) * 2 for heads, size in
             ((shape.heads, shape.size), (shape.kv_heads, shape.size), (shape.kv_heads, shape.width))]
            for shape in self.shapes
        ]  # fmt: skip

    def run(self, index: int, edges: Sequence[int], cuts: Sequence[int] = ()) -> np.ndarray:
        """Results of the tokens between the edges; each step's work is cut at `cuts`."""
        shape, kernel, (q, k, v) = self.shapes[index], self.kernels[index], self.inputs[index]
        state = aligned(np.zeros((shape.kv_heads, shape.size, shape.width), np.float32))
        normalizer = aligned(np.zeros(shape.normalizer_bytes, np.uint8))
        units, found = shape.kv_heads * shape.panels, []
        strides = [number for x in (q, k, v) for number in (x[0].size, x.shape[2])]
        for start, stop in pairwise(edges):
            out = aligned(np.full((stop - start, shape.heads, shape.width), np.nan, np.float32))
            rows = [aligned(x[start:stop]) for x in (q, k, v)]
            for lo, hi in pairwise([0, *sorted(cut for cut in cuts if cut < units), units]):
                self.library.call(kernel, out, state, normalizer, *rows, stop - start, lo, hi, out[0].size,
                                  shape.width, *strides)  # fmt: skip
            found.append(out.copy())
        return np.concatenate(found)

    def expected(self, index: int) -> np.ndarray:
        """The interpreter's results, in float64."""
        graph = Graph("g")
        given = [torch.from_numpy(x).transpose(0, 1)[None].double() for x in self.inputs[index]]
        values = [graph.add_input(name, tensor("f32", *x.shape)) for name, x in zip("qkv", given, strict=True)]
        op = graph.add("linear_attention", values)
        found: np.ndarray = op.spec.reference(op, *given)[0].transpose(0, 1).numpy()
        return found


# One head; odd sizes; values of a single number; many queries for one head of keys; several panels.
SIZES = ((1, 1, 16, 16), (6, 2, 11, 7), (4, 4, 5, 1), (40, 1, 8, 20), (4, 2, 20, 160))


@ISAS
def test_it_gives_what_the_interpreter_gives_in_any_parts(isa: Isa) -> None:
    stepping = Stepping(isa, SIZES)
    for index, size in enumerate(SIZES):
        whole, expected = stepping.run(index, [0, TOKENS]), stepping.expected(index)
        np.testing.assert_allclose(whole, expected, rtol=0, atol=3e-6 * np.abs(expected).max(), err_msg=str(size))
        for edges in (range(TOKENS + 1), [0, 1, 9, 26, 27, 59, TOKENS]):
            assert stepping.run(index, edges, cuts=[1, 3]).tobytes() == whole.tobytes(), size


def test_rounding_does_not_pile_up_over_a_long_sequence() -> None:
    tokens = 4000
    stepping = Stepping(WIDTHS[0], [(2, 1, 16, 16)], tokens)
    found, expected = stepping.run(0, [*range(0, tokens, 128), tokens]), stepping.expected(0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_where_all_features_vanish_the_result_is_zero() -> None:
    stepping = Stepping(WIDTHS[0], [(1, 1, 16, 16)])
    stepping.inputs[0][0][:] = stepping.inputs[0][1][:] = -200
    assert not stepping.run(0, [0, TOKENS]).any()
    assert not stepping.expected(0).any()


@ISAS
def test_a_tile_fits_the_registers(isa: Isa) -> None:
    for together in range(1, 40):
        tile = LinearAttention(isa, together, 1, 16, 16, "elu1").tile
        assert tile == 1 or tile * (1 + together) < isa.registers


@ISAS
@pytest.mark.parametrize("width", [1, 7, 64, 65, 128, 160, 256, 257])
def test_panels_are_of_equal_width_and_no_wider_than_needed(isa: Isa, width: int) -> None:
    shape = LinearAttention(isa, 2, 1, 16, width, "elu1")
    assert width % shape.panels == 0
    assert shape.panels <= -(-width // (4 * isa.lanes))
