"""The pass `fuse-epilogue`."""

from __future__ import annotations

import pytest
import torch

from slmopt.interpreter import forward
from slmopt.passes.fuse.epilogue import FuseEpilogue
from slmopt.passes.quantize.round_to_nearest import Quantize
from tests.passes.toys import apply, graph_text, relative_error, toy

MLP = """
    %up = linear(%x, weight @up : f32[96, 64], weight @b : f32[96]) : f32[b, s, 96]
    %act = gelu(%up) {approximate = true} : f32[b, s, 96]
    %down = linear(%act, weight @down : f32[64, 96]) : f32[b, s, 64]
    %y = add(%x, %down) : f32[b, s, 64]
    return %y
"""
X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))


def test_golden() -> None:
    module = toy(MLP)
    found, changes = apply(module, FuseEpilogue())
    assert graph_text(found.graph()) == graph_text("""
        graph @forward(%x: f32[b, s, 64]) {
          %act = linear(%x, weight @up : f32[96, 64], weight @b : f32[96]) {activation = "gelu_tanh", act = none} : f32[b, s, 96]
          %y = linear(%act, weight @down : f32[64, 96], _, %x) {activation = none, act = none} : f32[b, s, 64]
          return %y
        }
    """)  # noqa: E501
    assert changes == {"gelu_tanh": 1, "residual": 1}
    assert relative_error(forward(found, X), forward(module, X)) < 1e-6


@pytest.mark.parametrize(
    ("op", "activation"),
    [
        ("silu(%up)", "silu"),
        ("relu(%up)", "relu"),
        ("gelu(%up)", "gelu"),
        ("gelu(%up) {approximate = true}", "gelu_tanh"),
    ],
)
@pytest.mark.parametrize("quantized", [False, True])
def test_every_activation_with_a_residual_after_it(op: str, activation: str, quantized: bool) -> None:
    module = toy(f"""
        %up = linear(%x, weight @up : f32[64, 64], weight @b : f32[64]) : f32[b, s, 64]
        %act = {op} : f32[b, s, 64]
        %y = add(%act, %x) : f32[b, s, 64]
        return %y""")
    before, _ = apply(module, *([Quantize()] if quantized else []))
    found, changes = apply(before, FuseEpilogue())
    assert changes == {activation: 1, "residual": 1}
    assert [op.attributes["activation"] for op in found.graph().walk()] == [activation]
    assert relative_error(forward(found, X), forward(before, X)) < 1e-6


def test_of_two_linears_the_later_takes_the_other_as_residual() -> None:
    module = toy("""
        %second = linear(%x, weight @w : f32[64, 64]) : f32[b, s, 64]
        %first = linear(%x, weight @v : f32[64, 64]) : f32[b, s, 64]
        %sum = add(%first, %second) : f32[b, s, 64]
        %y = add(%x, %sum) : f32[b, s, 64]
        return %y""")
    found, changes = apply(module, FuseEpilogue())
    assert changes == {"residual": 1}
    assert [op.name for op in found.graph().walk()] == ["linear", "linear", "add"]
    assert relative_error(forward(found, X), forward(module, X)) < 1e-6


MUST_NOT = {
    "a linear that others read": """
        %h = linear(%x, weight @w : f32[64, 64]) : f32[b, s, 64]
        %a = silu(%h) : f32[b, s, 64]
        %y = mul(%a, %h) : f32[b, s, 64]
        return %y""",
    "a linear that is an output": """
        %h = linear(%x, weight @w : f32[64, 64]) : f32[b, s, 64]
        %y = add(%h, %x) : f32[b, s, 64]
        return %y, %h""",
    "a linear added to itself": """
        %h = linear(%x, weight @w : f32[64, 64]) : f32[b, s, 64]
        %y = add(%h, %h) : f32[b, s, 64]
        return %y""",
    "a residual that broadcasts": """
        %h = linear(%x, weight @w : f32[64, 64]) : f32[b, s, 64]
        %c = full() {shape = [64], value = 2.0, element = "f32"} : f32[64]
        %y = add(%h, %c) : f32[b, s, 64]
        return %y""",
    "a weight that is added": """
        %h = linear(%x, weight @w : f32[64, 64]) : f32[b, s, 64]
        %y = add(%h, weight @v : f32[64]) : f32[b, s, 64]
        return %y""",
    "an activation of a sum": """
        %h = linear(%x, weight @w : f32[64, 64], _, %x) : f32[b, s, 64]
        %y = silu(%h) : f32[b, s, 64]
        return %y""",
    "an activation of an activation": """
        %h = linear(%x, weight @w : f32[64, 64]) {activation = "relu"} : f32[b, s, 64]
        %y = silu(%h) : f32[b, s, 64]
        return %y""",
    "a second residual": """
        %h = linear(%x, weight @w : f32[64, 64], _, %x) : f32[b, s, 64]
        %y = add(%h, %x) : f32[b, s, 64]
        return %y""",
}


@pytest.mark.parametrize("case", MUST_NOT)
def test_must_not_fire(case: str) -> None:
    module = toy(MUST_NOT[case])
    found, changes = apply(module, FuseEpilogue())
    assert changes == {}
    assert found == module
