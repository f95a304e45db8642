"""Kernels written from their C parameters: what is declared is what the body gets, and mistakes are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from slmopt.backends.tvm.authoring import Code, Isa, Kernel, Memory, Vectors, each_chunk, write_kernel
from slmopt.backends.tvm.build import build_object
from slmopt.errors import InputError
from tests.backends.native import ISAS, Kernels, aligned, host_isas

WIDTH = 45


def row_kernel(isa: Isa, name: str, expression: Callable[[Vectors, Any], Any]) -> Kernel:
    def body(code: Code, out: Memory, x: Memory, lo: Any, hi: Any) -> None:
        def compute(at: Any, lanes: int) -> None:
            out.store(row + at, expression(Vectors(isa, lanes, code.let), code.let(x.load(row + at, lanes))), lanes)

        with code.loop(hi - lo) as i:
            row = code.let((lo + i) * WIDTH)
            each_chunk(code, WIDTH, isa.lanes, compute)

    return write_kernel(name, "float *out, const float *x, int32_t lo, int32_t hi", body)


EXPRESSIONS: dict[str, tuple[Callable[[Vectors, Any], Any], Callable[[Any], Any]]] = {
    "arithmetic": (lambda v, x: 1.0 - (2 * x + 0.5) / 3, lambda x: 1 - (2 * x + 0.5) / 3),
    "limits": (lambda v, x: v.minimum(v.maximum(x, -0.5), 0.75), lambda x: x.clamp(-0.5, 0.75)),
    "select": (lambda v, x: v.select(x < 0.0, x * x, 1), lambda x: torch.where(x < 0, x * x, torch.ones_like(x))),
    "sqrt": (lambda v, x: v.sqrt(v.maximum(x, 0.0)), lambda x: x.relu().sqrt()),
    "number": (lambda v, x: v.multiply_add(x, v.number(3), v.number(1)), lambda x: 3 * x + 1),
    "exp": (lambda v, x: v.exp(x), torch.exp),
    "tanh": (lambda v, x: v.tanh(x), torch.tanh),
    "erf": (lambda v, x: v.erf(x), torch.erf),
    "silu": (lambda v, x: v.activate("silu", x), torch.nn.functional.silu),
}


@pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
def test_vector_expressions_equal_torch(isa: Isa) -> None:
    kernels = {name: row_kernel(isa, f"k_{name}", expression) for name, (expression, _) in EXPRESSIONS.items()}
    library = Kernels(list(kernels.values()), isa)
    x = np.random.default_rng(3).normal(size=(4, WIDTH)).astype(np.float32)
    for name, (_, reference) in EXPRESSIONS.items():
        out = aligned(np.full_like(x, np.nan))
        for lo, hi in ((0, 1), (1, 4)):
            library.call(kernels[name], out, aligned(x), lo, hi)
        np.testing.assert_allclose(out, reference(torch.from_numpy(x)).numpy(), rtol=1e-6, atol=1e-6, err_msg=name)


def test_nan_stays() -> None:
    isa = ISAS.detect()
    kernel = row_kernel(isa, "relu", lambda v, x: v.minimum(v.maximum(x, 0.0), 6.0))
    out, x = aligned(np.zeros((1, WIDTH), np.float32)), aligned(np.full((1, WIDTH), np.nan, np.float32))
    Kernels([kernel], isa).call(kernel, out, x, 0, 1)
    assert np.isnan(out).all()


@pytest.mark.parametrize("declaration", ["float x", "double *x", "float **x", "int64_t n", "float *"])
def test_a_parameter_that_no_kernel_takes(declaration: str) -> None:
    kernel = write_kernel("k", declaration, lambda code, x: None)
    with pytest.raises(InputError, match=r"kernel k: '.*' is no parameter of a kernel; expected `int32_t NAME`, or"):
        build_object([kernel], ISAS.load("scalar"))


def test_a_name_is_a_c_name() -> None:
    with pytest.raises(InputError, match="expected letters, digits and _, got 'my-kernel'"):
        write_kernel("my-kernel", "float *out", lambda code, out: None)


def test_a_body_that_fails_names_its_kernel() -> None:
    kernel = write_kernel("k", "float *out, int32_t lo", lambda code, out: None)
    with pytest.raises(InputError, match=r"kernel k cannot be built: TypeError: .*2 positional arguments"):
        build_object([kernel], ISAS.load("scalar"))


def test_one_name_has_one_list_of_parameters() -> None:
    first = write_kernel("k", "float *out", lambda code, out: out.store(0, 1.0))
    other = write_kernel("k", "float *out, int32_t lo", lambda code, out, lo: out.store(lo, 1.0))
    with pytest.raises(InputError, match=r"two kernels are called k: one takes \(float \*out, int32_t lo\)"):
        build_object([first, other], ISAS.load("scalar"))


def test_what_is_declared_is_what_is_built() -> None:
    whole = write_kernel("k", "float *out, int32_t lo", lambda code, out, lo: out.store(lo, 1.0))
    with pytest.raises(InputError, match=r"kernel k declares \(float \*out\), but its function has 2 parameters"):
        build_object([Kernel("k", ("float *out",), whole.build)], ISAS.load("scalar"))
