"""The pass `fuse-act-quant`, and `fuse`, which runs all fusions."""

from __future__ import annotations

import pytest
import torch

from slmopt.interpreter import forward
from slmopt.passes.fuse.act_quant import FuseActQuant
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.quantize.round_to_nearest import Quantize
from tests.passes.toys import apply, graph_text, relative_error, toy

BLOCK = """
    %n = rms_norm(%x, weight @n : f32[64]) {eps = 1e-05} : f32[b, s, 64] loc("norm")
    %g = linear(%n, weight @g : f32[96, 64]) : f32[b, s, 96]
    %u = linear(%n, weight @u : f32[96, 64]) : f32[b, s, 96]
    %m = glu(%g, %u) {activation = "silu"} : f32[b, s, 96] loc("mlp")
    %d = linear(%m, weight @d : f32[64, 96]) : f32[b, s, 64]
    %y = add(%x, %d) : f32[b, s, 64]
    return %y
"""
X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))


def test_golden() -> None:
    before, _ = apply(toy(BLOCK), Quantize())
    found, changes = apply(before, FuseActQuant())
    assert graph_text(found.graph()) == graph_text("""
        graph @forward(%x: f32[b, s, 64]) {
          %n = rms_norm(%x, weight @n : f32[64]) {eps = 1e-05, output = "q8g32"} : q8g32[b, s, 64] loc("norm")
          %g = linear(%n, weight @g.q4g32 : q4g32[96, 64]) {activation = none, act = none} : f32[b, s, 96]
          %u = linear(%n, weight @u.q4g32 : q4g32[96, 64]) {activation = none, act = none} : f32[b, s, 96]
          %m = glu(%g, %u) {activation = "silu", output = "q8g32"} : q8g32[b, s, 96] loc("mlp")
          %d = linear(%m, weight @d.q4g32 : q4g32[64, 96]) {activation = none, act = none} : f32[b, s, 64]
          %y = add(%x, %d) : f32[b, s, 64]
          return %y
        }
    """)
    assert changes == {"linear": 3, "rms_norm": 1, "glu": 1}
    assert torch.equal(forward(found, X), forward(before, X))


def test_a_norm_that_others_read_keeps_its_result() -> None:
    before, _ = apply(toy(BLOCK.replace("add(%x, %d)", "add(%n, %d)")), Quantize(bits=8))
    found, changes = apply(before, FuseActQuant())
    assert changes == {"linear": 3, "glu": 1}
    assert [op.name for op in found.graph().walk()][:4] == ["rms_norm", "quantize_rows", "linear", "linear"]
    assert found.graph().value("n_q8").op is not None
    assert torch.equal(forward(found, X), forward(before, X))


def test_an_output_keeps_its_result() -> None:
    before, _ = apply(toy(BLOCK.replace("return %y", "return %y, %n")), Quantize())
    assert apply(before, FuseActQuant())[1] == {"linear": 3, "glu": 1}


def test_layer_norm_and_reshaped_values() -> None:
    module = toy("""
        %n = layer_norm(%x, weight @n : f32[64]) {eps = 1e-05} : f32[b, s, 64]
        %h = linear(%n, weight @h : f32[64, 64]) : f32[b, s, 64]
        %heads = reshape(%h) {shape = [b, s, 8, 8]} : f32[b, s, 8, 8]
        %turned = permute(%heads) {axes = [0, 1, 3, 2]} : f32[b, s, 8, 8]
        %flat = reshape(%turned) {shape = [b, s, 64]} : f32[b, s, 64]
        %y = linear(%flat, weight @o : f32[64, 64]) : f32[b, s, 64]
        return %y""")
    before, _ = apply(module, Quantize())
    found, changes = apply(before, FuseActQuant())
    assert changes == {"linear": 2, "layer_norm": 1}
    assert [op.name for op in found.graph().walk()][-2:] == ["quantize_rows", "linear"]
    assert torch.equal(forward(found, X), forward(before, X))


def test_must_not_fire_on_float_linears_nor_twice() -> None:
    module = toy(BLOCK)
    found, changes = apply(module, FuseActQuant())
    assert changes == {}
    assert found == module
    once, _ = apply(module, Quantize(), FuseActQuant())
    twice, changes = apply(once, FuseActQuant())
    assert changes == {}
    assert twice == once


GOLDEN_FUSE = """
    graph @forward(%x: f32[b, s, 64]) {
      %n = rms_norm(%x, weight @n : f32[64]) {eps = 1e-05, output = "q8g32"} : q8g32[b, s, 64] loc("norm")
      %g_u = linear(%n, weight @g_u.q4g32 : q4g32[192, 64]) {activation = none, act = none} : f32[b, s, 192]
      %g = slice(%g_u) {axis = -1, start = 0, stop = 96, step = 1} : f32[b, s, 96]
      %u = slice(%g_u) {axis = -1, start = 96, stop = 192, step = 1} : f32[b, s, 96]
      %m = glu(%g, %u) {activation = "silu", output = "q8g32"} : q8g32[b, s, 96] loc("mlp")
      %y = linear(%m, weight @d.q4g32 : q4g32[64, 96], _, %x) {activation = none, act = none} : f32[b, s, 64]
      return %y
    }
"""


@pytest.mark.parametrize("order", [(Quantize(), Fuse()), (Fuse(), Quantize(), Fuse())], ids=["after", "around"])
def test_fuse_all(order: tuple[Quantize | Fuse, ...]) -> None:
    module = toy(BLOCK)
    found, _ = apply(module, *order)
    text = graph_text(found.graph()).replace("g.q4g32_u.q4g32", "g_u.q4g32")
    assert text == graph_text(GOLDEN_FUSE)
    before, _ = apply(module, Quantize())
    assert relative_error(forward(found, X), forward(before, X)) < 1e-6


def test_fuse_counts_each_part() -> None:
    before, _ = apply(toy(BLOCK), Quantize())
    assert apply(before, Fuse())[1] == {
        "fuse-epilogue: residual": 1, "fuse-qkv: merged": 2, "fuse-qkv: linear": 1, "fuse-act-quant: linear": 2,
        "fuse-act-quant: rms_norm": 1, "fuse-act-quant: glu": 1,
    }  # fmt: skip
