"""Norms, quantization, gated units and rotary positions equal numpy on every instruction set of the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slmopt.backends.tvm.glu import glu
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.norm import layer_norm, rms_norm
from slmopt.backends.tvm.quantize_rows import quantize_rows
from slmopt.backends.tvm.rope import rope
from slmopt.ir.ops.language import activate
from slmopt.ir.ops.language import quantize_rows as reference_rows
from tests.backends.native import Kernels, aligned, host_isas
from tests.backends.quantized_rows import pack_rows, unpack_rows

ISAS = pytest.mark.parametrize("isa", host_isas(), ids=lambda isa: isa.name)
WIDTHS = (1, 8, 20, 33, 64, 172, 576)


def numbers(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@ISAS
def test_quantize_rows_is_exact(isa: Isa) -> None:
    kernels = [quantize_rows(isa, width=width) for width in WIDTHS]
    library = Kernels(kernels, isa)
    for kernel, width in zip(kernels, WIDTHS, strict=True):
        x = aligned(np.concatenate([numbers(5, width) * 10, np.zeros((1, width), np.float32)]))
        expected = pack_rows(x)
        out = aligned(np.zeros_like(expected))
        for lo, hi in ((0, 2), (2, 6)):
            library.call(kernel, out, x, lo, hi, out.shape[1], width)
        np.testing.assert_array_equal(out, expected)


@ISAS
def test_tiny_and_damaged_rows(isa: Isa) -> None:
    """Codes stay within -127..127 where the scale is subnormal; NaN shows in the scale."""
    x = numbers(3, 64)
    x[0] *= np.float32(1e-43)
    x[1] *= np.float32(1e-37)
    x[2] = np.nan
    kernel = quantize_rows(isa, width=64)
    out = aligned(np.zeros_like(pack_rows(x)))
    Kernels([kernel], isa).call(kernel, out, aligned(x), 0, 3, out.shape[1], 64)
    found = unpack_rows(out, 64)
    np.testing.assert_array_equal(found[:2], reference_rows(torch.from_numpy(x[:2])).numpy())
    assert np.isnan(found[2]).all()


@ISAS
@pytest.mark.parametrize("output", ["f32", "q8"])
def test_rms_norm(isa: Isa, output: str) -> None:
    kernels = [rms_norm(isa, width=width, eps=1e-5, output=output) for width in WIDTHS]
    library = Kernels(kernels, isa)
    for kernel, width in zip(kernels, WIDTHS, strict=True):
        x, weight = aligned(numbers(5, width)), aligned(numbers(width, seed=2))
        wide = x.astype(np.float64)
        expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight
        if output == "f32":
            out = aligned(np.zeros((5, width + 3), np.float32))
            library.call(kernel, out, x, weight, 0, 5, 1, width + 3, 0, width, 0)
            np.testing.assert_allclose(out[:, :width], expected, rtol=2e-6, atol=1e-6)
        else:
            rows = aligned(np.zeros_like(pack_rows(x)))
            library.call(kernel, rows, x, weight, 0, 5, 1, rows.shape[1], 0, width, 0)
            step = np.abs(expected).max() / 127
            np.testing.assert_allclose(unpack_rows(rows, width), expected, atol=0.51 * step)


@ISAS
def test_rms_norm_of_heads(isa: Isa) -> None:
    x, weight = aligned(numbers(5, 3, 24)), aligned(numbers(24, seed=2))
    kernel = rms_norm(isa, width=24, eps=1e-6)
    out = aligned(np.zeros((3, 5, 24), np.float32))  # stored head by head, read token by token
    Kernels([kernel], isa).call(kernel, out, x, weight, 0, 15, 3, 24, 5 * 24, 3 * 24, 24)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(out, expected.transpose(1, 0, 2), rtol=1e-5, atol=1e-6)


@ISAS
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(isa: Isa, weight: bool, bias: bool) -> None:
    kernels = [layer_norm(isa, width=width, eps=1e-5, weight=weight, bias=bias) for width in WIDTHS]
    library = Kernels(kernels, isa)
    for kernel, width in zip(kernels, WIDTHS, strict=True):
        x, w, b = numbers(5, width) + 3, numbers(width, seed=2), numbers(width, seed=3)
        extra = [aligned(w)] * weight + [aligned(b)] * bias
        out = aligned(np.zeros((5, width), np.float32))
        library.call(kernel, out, aligned(x), *extra, 0, 5, 1, width, 0, width, 0)
        expected = torch.nn.functional.layer_norm(
            torch.from_numpy(x).double(), (width,), torch.from_numpy(w).double() if weight else None,
            torch.from_numpy(b).double() if bias else None, 1e-5,
        )  # fmt: skip
        np.testing.assert_allclose(out, expected.numpy(), rtol=1e-5, atol=3e-6)


@ISAS
@pytest.mark.parametrize("activation", [None, "silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh"])
def test_glu(isa: Isa, activation: str | None) -> None:
    kernels = [glu(isa, width=width, activation=activation) for width in WIDTHS]
    library = Kernels(kernels, isa)
    for kernel, width in zip(kernels, WIDTHS, strict=True):
        x = aligned(numbers(5, 2 * width) * 4)
        out = aligned(np.zeros((5, width), np.float32))
        library.call(kernel, out, x, x[:, width:], 0, 5, width, 2 * width, 2 * width)
        gate, up = torch.from_numpy(x[:, :width]).double(), torch.from_numpy(x[:, width:]).double()
        np.testing.assert_allclose(out, (activate(activation, gate) * up).numpy(), rtol=2e-6, atol=6e-6)


@ISAS
@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rope(isa: Isa, style: str) -> None:
    from slmopt.ir import Graph, tensor

    shapes = [(8, 8), (64, 64), (80, 32), (20, 10), (6, 2)]
    kernels = [rope(isa, head_dim=d, rotary_dim=r, style=style) for d, r in shapes]
    library = Kernels(kernels, isa)
    for kernel, (d, r) in zip(kernels, shapes, strict=True):
        x, cos, sin = aligned(numbers(4, 3, d)), aligned(numbers(4, r, seed=2)), aligned(numbers(4, r, seed=3))
        out = aligned(np.zeros((4, 3, d), np.float32))
        for lo, hi in ((0, 5), (5, 12)):
            library.call(kernel, out, x, cos, sin, lo, hi, 3, 3 * d, d, 3 * d, d, r)
        graph = Graph("g")
        tables = [graph.add_input(n, tensor("f32", 4, 1, r)) for n in ("cos", "sin")]
        inputs = [graph.add_input("x", tensor("f32", 4, 3, d)), *tables]
        op = graph.add("rope", inputs, {"style": style})
        expected = op.spec.reference(op, *(torch.from_numpy(a.reshape(4, -1, a.shape[-1])) for a in (x, cos, sin)))
        np.testing.assert_allclose(out, expected.numpy(), rtol=1e-6, atol=1e-6)
