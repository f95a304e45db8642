"""Vector functions against float64, over the range where they matter, on every instruction set of the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from slmopt.backends.tvm import vector_math
from slmopt.backends.tvm.code import Code
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.row_output import each_chunk
from slmopt.ir.ops.language import ACTIVATIONS, activate
from tests.backends.native import Kernels, aligned, host_isas

ISAS = pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
WIDTH = 20_003  # odd: the last numbers go through vectors of 2 and 1 lanes


def activation(name: str, isa: Isa, lanes: int, x: Any, let: vector_math.Let) -> Any:
    return vector_math.activate(isa, lanes, name, x, let)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": vector_math.exp, "tanh": vector_math.tanh, "erf": vector_math.erf, "sigmoid": vector_math.sigmoid,
    **{f"act_{name}": partial(activation, name) for name in ACTIVATIONS},
}  # fmt: skip


def elementwise(isa: Isa, name: str) -> Kernel:
    """out[i] = function(x[i]) for WIDTH numbers."""

    def build() -> Any:
        code = Code(name)
        out, x = code.pointer("out", "float32"), code.pointer("x", "float32")

        def body(at: Any, lanes: int) -> None:
            out.store(at, FUNCTIONS[name](isa, lanes, x.load(at, lanes), code.let), lanes)

        each_chunk(code, WIDTH, isa.lanes, body)
        return code.finish()

    return Kernel(name, ("float *out", "const float *x"), build)


@pytest.fixture(scope="module", params=host_isas(), ids=lambda isa: isa.name)
def run(request: pytest.FixtureRequest) -> Callable[[str, np.ndarray], np.ndarray]:
    kernels = {name: elementwise(request.param, name) for name in FUNCTIONS}
    library = Kernels(list(kernels.values()), request.param)

    def call(name: str, x: np.ndarray) -> np.ndarray:
        padded = np.resize(x.astype(np.float32), WIDTH)
        out = aligned(np.zeros(WIDTH, np.float32))
        library.call(kernels[name], out, aligned(padded))
        return out[: len(x)]

    return call


Run = Callable[[str, np.ndarray], np.ndarray]


def points(low: float, high: float) -> np.ndarray:
    """WIDTH float32 numbers, some of them next to zero."""
    spread = np.linspace(low, high, WIDTH - 3000)
    near = np.geomspace(1e-30, 1, 1500)
    return np.concatenate([spread, near, -near if low < 0 else near]).astype(np.float32)


def test_exp(run: Run) -> None:
    x = points(-87.3, 88.3)
    np.testing.assert_allclose(run("exp", x), np.exp(x.astype(np.float64)), rtol=2e-7)
    assert (run("exp", np.array([-88.0, -1e4, -1e30, -np.inf])) == 0).all()
    assert run("exp", np.zeros(4)).tolist() == [1.0] * 4


def test_tanh(run: Run) -> None:
    x = points(-20, 20)
    np.testing.assert_allclose(run("tanh", x), np.tanh(x.astype(np.float64)), rtol=4e-7)
    np.testing.assert_array_equal(run("tanh", np.array([1e30, -1e30, np.inf, -np.inf])), [1, -1, 1, -1])


def test_erf(run: Run) -> None:
    x = points(-6, 6)
    expected = torch.erf(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(run("erf", x), expected, atol=4e-7, rtol=0)
    np.testing.assert_allclose(run("erf", x), expected, rtol=1e-6)


def test_sigmoid(run: Run) -> None:
    x = points(-87, 87)
    assert (run("sigmoid", np.array([-88.0, -1e30, -np.inf])) < 1e-38).all()
    np.testing.assert_allclose(run("sigmoid", x), 1 / (1 + np.exp(-x.astype(np.float64))), rtol=4e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(run: Run, name: str) -> None:
    x = points(-30, 30)
    expected = activate(name, torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(run(f"act_{name}", x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_not_a_number_stays_visible(run: Run, name: str) -> None:
    assert np.isnan(run(name, np.array([math.nan]))).all()


@ISAS
def test_sums_and_maxima_of_lanes(isa: Isa) -> None:
    lanes = isa.lanes

    def build() -> Any:
        code = Code("lanes")
        out, x = code.pointer("out", "float32"), code.pointer("x", "float32")
        value = code.let(x.load(0, lanes))
        out.store(0, vector_math.add_all(lanes, value))
        out.store(1, vector_math.max_all(lanes, value))
        return code.finish()

    kernel = Kernel("lanes", ("float *out", "const float *x"), build)
    x, out = aligned(np.arange(lanes, dtype=np.float32) ** 2 - 5), aligned(np.zeros(2, np.float32))
    Kernels([kernel], isa).call(kernel, out, x)
    assert out.tolist() == [x.sum(), x.max()]
