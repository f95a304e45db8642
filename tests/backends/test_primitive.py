"""Kernels of primitive ops equal the interpreter, for random graphs of them, inlined and strided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from slmopt.backends.tvm.primitive import Leaf, primitive_kernel, row_axes
from slmopt.backends.tvm.views import allocate_view
from slmopt.interpreter import run
from slmopt.ir import Graph, Module, Value, Weight, symbol, tensor
from slmopt.ir.types import DType
from tests.backends.native import Kernels, aligned, host_isas

T = symbol("t")
TOKENS = 5


def evaluate(graph: Graph, inputs: list[np.ndarray], position: int, isa: Any) -> np.ndarray:
    """The graph's only output through one kernel per reduction, everything else inlined into the last one."""
    leaves: dict[Value | Weight, Leaf] = {}
    arrays: dict[Value | Weight, np.ndarray] = {}
    for value, array in zip((v for v in graph.inputs if v.name != "position"), inputs, strict=True):
        strides = tuple(s // array.itemsize for s in array.strides)
        leaves[value] = Leaf(DType(str(value.type.element)), value.shape, strides, DType(str(value.type.element)))
        arrays[value] = array
    output = graph.outputs[0]
    assert output.op is not None
    view = allocate_view("out", output.type, TOKENS)
    kernel, order = primitive_kernel(output.op, leaves, view.strides)
    out = aligned(np.zeros(view.buffer.bytes // 4, np.int64 if output.type.element == DType.i64 else np.float32))
    axes, _ = row_axes(output.shape)
    shape = [dim if isinstance(dim, int) else TOKENS for dim in output.shape]
    rows = int(np.prod([shape[axis] for axis in axes])) if axes else 1
    library = Kernels([kernel], isa)
    for lo, hi in ((0, rows // 2), (rows // 2, rows)):
        library.call(kernel, out, *(arrays[key] for key in order), TOKENS, position, lo, hi)
    return np.lib.stride_tricks.as_strided(out, shape, [s * out.itemsize for s in view.strides])


def check(graph: Graph, *inputs: np.ndarray, position: int = 3, tolerance: float = 1e-6) -> None:
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]
    given = iter(tensors)
    expected = run(Module("m", [graph]), graph, [
        torch.tensor(position) if value.name == "position" else next(given) for value in graph.inputs
    ])[0].numpy()  # fmt: skip
    for isa in host_isas():
        found = evaluate(graph, [aligned(x) for x in inputs], position, isa)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def test_positions_become_angles() -> None:
    graph = Graph("step")
    position = graph.add_input("position", tensor("i64"))
    frequency = graph.add_input("frequency", tensor("f32", 4))
    counted = graph.add("arange", [], {"stop": T, "element": "i64"}).result
    shifted = graph.add("add", [counted, position]).result
    real = graph.add("cast", [shifted], {"element": "f32"}).result
    column = graph.add("reshape", [real], {"shape": (1, T, 1)}).result
    angles = graph.add("mul", [column, frequency]).result
    both = graph.add("concat", [angles, angles], {"axis": -1}).result
    graph.set_outputs([graph.add("cos", [both]).result])
    # `t` is known from no input here: bind it before asking the interpreter.
    bound = graph.copy(dims={"t": TOKENS})
    expected = run(Module("m", [bound]), bound, [torch.tensor(3), torch.from_numpy(numbers(4))])[0].numpy()
    for isa in host_isas():
        np.testing.assert_allclose(evaluate(graph, [aligned(numbers(4))], 3, isa), expected, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["exp", "tanh", "sin", "sigmoid", "silu", "relu", "neg", "abs", "erf", "floor", "softplus"]
)
def test_unary(name: str) -> None:
    graph = Graph("g")
    x = graph.add_input("x", tensor("f32", 1, "t", 6))
    graph.set_outputs([graph.add(name, [x]).result])
    check(graph, numbers(1, TOKENS, 6), tolerance=2e-6)


@pytest.mark.parametrize("approximate", [True, False])
def test_gelu(approximate: bool) -> None:
    graph = Graph("g")
    x = graph.add_input("x", tensor("f32", "t", 6))
    graph.set_outputs([graph.add("gelu", [x], {"approximate": approximate}).result])
    check(graph, numbers(TOKENS, 6), tolerance=2e-6)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "maximum", "minimum", "remainder"])
def test_binary_broadcasts(name: str) -> None:
    graph = Graph("g")
    a, b = graph.add_input("a", tensor("f32", 1, "t", 6)), graph.add_input("b", tensor("f32", 6))
    graph.set_outputs([graph.add(name, [a, b]).result])
    check(graph, numbers(1, TOKENS, 6), numbers(6) + 3)


def test_where_compares() -> None:
    graph = Graph("g")
    a, b = graph.add_input("a", tensor("f32", "t", 6)), graph.add_input("b", tensor("f32", 6))
    chosen = graph.add("where", [graph.add("lt", [a, b]).result, a, b]).result
    graph.set_outputs([chosen])
    check(graph, numbers(TOKENS, 6), numbers(6))


@pytest.mark.parametrize("name", ["sum", "amax"])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("keep", [True, False])
def test_reductions(name: str, axis: int, keep: bool) -> None:
    graph = Graph("g")
    x = graph.add_input("x", tensor("f32", 3, "t", 6))
    graph.set_outputs([graph.add(name, [x], {"axis": axis, "keep": keep}).result])
    check(graph, numbers(3, TOKENS, 6))


def test_matmul_broadcasts_its_batch() -> None:
    graph = Graph("g")
    a, b = graph.add_input("a", tensor("f32", 2, "t", 6)), graph.add_input("b", tensor("f32", 1, 6, 3))
    graph.set_outputs([graph.add("matmul", [a, b]).result])
    check(graph, numbers(2, TOKENS, 6), numbers(1, 6, 3))


def test_moves_are_inlined() -> None:
    graph = Graph("g")
    x = graph.add_input("x", tensor("f32", 1, "t", 6))
    split = graph.add("reshape", [x], {"shape": (1, T, 2, 3)}).result
    moved = graph.add("permute", [split], {"axes": (0, 2, 1, 3)}).result
    part = graph.add("slice", [moved], {"axis": 3, "start": 1}).result
    joined = graph.add("concat", [part, moved], {"axis": 3}).result
    wide = graph.add("expand", [joined], {"shape": (4, 2, T, 5)}).result
    graph.set_outputs([graph.add("neg", [wide]).result])
    check(graph, numbers(1, TOKENS, 6))


def test_gather_by_an_index() -> None:
    graph = Graph("g")
    table, index = graph.add_input("table", tensor("f32", 7, 3)), graph.add_input("index", tensor("i64", "t"))
    graph.set_outputs([graph.add("gather", [table, index], {"axis": 0}).result])
    check(graph, numbers(7, 3), np.array([0, 6, 3, 3, 1]))
