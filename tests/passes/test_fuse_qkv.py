"""The pass `fuse-qkv`."""

from __future__ import annotations

import pytest
import torch

from slmopt.interpreter import forward
from slmopt.passes.fuse.qkv import FuseQKV
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.cast_weights import CastWeights
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.pipeline import Pass
from tests.passes.toys import apply, graph_text, relative_error, toy

QKV = """
    %q = linear(%x, weight @a.q.weight : f32[64, 72], weight @a.q.bias : f32[64]) : f32[b, s, 64] loc("a.q")
    %k = linear(%x, weight @a.k.weight : f32[20, 72]) : f32[b, s, 20] loc("a.k")
    %v = linear(%x, weight @a.v.weight : f32[20, 72], weight @a.v.bias : f32[20]) : f32[b, s, 20] loc("a.v")
    %y = concat(%v, %q, %k) {axis = 2} : f32[b, s, 104]
    return %y
"""
SIGNATURE = "%x: f32[b, s, 72]"
X = torch.randn(2, 5, 72, generator=torch.Generator().manual_seed(1))


def test_golden() -> None:
    found, changes = apply(toy(QKV, signature=SIGNATURE), FuseQKV())
    assert graph_text(found.graph()) == graph_text("""
        graph @forward(%x: f32[b, s, 72]) {
          %q_k_v = linear(%x, weight @a.q_k_v.weight : f32[104, 72], weight @a.q_v.bias : f32[104]) {activation = none, act = none} : f32[b, s, 104] loc("a.q_k_v")
          %q = slice(%q_k_v) {axis = -1, start = 0, stop = 64, step = 1} : f32[b, s, 64] loc("a.q")
          %k = slice(%q_k_v) {axis = -1, start = 64, stop = 84, step = 1} : f32[b, s, 20] loc("a.k")
          %v = slice(%q_k_v) {axis = -1, start = 84, stop = 104, step = 1} : f32[b, s, 20] loc("a.v")
          %y = concat(%v, %q, %k) {axis = 2} : f32[b, s, 104]
          return %y
        }
    """)  # noqa: E501
    assert changes == {"merged": 3, "linear": 1}


STORAGE: dict[str, list[Pass]] = {
    "f32": [], "f16": [CastWeights()], "q4g32": [Quantize()], "q8c": [Quantize(bits=8, group=0)],
    "q4g32a": [Quantize(grid="asymmetric")],
}  # fmt: skip


@pytest.mark.parametrize("storage", STORAGE)
def test_numbers_are_the_same_for_every_storage(storage: str) -> None:
    before, _ = apply(toy(QKV, signature=SIGNATURE), *STORAGE[storage])
    found, changes = apply(before, FuseQKV())
    assert changes["merged"] == 3
    weights = {str(type.element) for type in found.weight_types().values() if type.rank == 2}
    assert weights == {storage}
    assert relative_error(forward(found, X), forward(before, X)) < 1e-6
    key = next(key for key, type in found.weight_types().items() if type.rank == 2)
    parts = [found.weights.float(f"a.{name}.weight{key.removeprefix('a.q_k_v.weight')}") for name in "qkv"]
    assert torch.equal(found.weights.float(key), torch.cat(parts))


def test_absent_biases_become_zeros() -> None:
    found, _ = apply(toy(QKV, signature=SIGNATURE), FuseQKV())
    bias = found.weights.load("a.q_v.bias")
    assert (bias[64:84] == 0).all()
    assert torch.equal(bias[84:], found.weights.load("a.v.bias"))


def test_layers_that_share_weights_still_share_them() -> None:
    body = """
        %{n}q = linear({x}, weight @q : f32[64, 64]) : f32[b, s, 64]
        %{n}k = linear({x}, weight @k : f32[64, 64]) : f32[b, s, 64]
        %{n}y = mul(%{n}q, %{n}k) : f32[b, s, 64]"""
    first, second = body.format(n="a", x="%x"), body.format(n="b", x="%ay")
    module = toy(f"{first}{second}\nreturn %by")
    found, changes = apply(module, FuseQKV())
    assert changes == {"merged": 4, "linear": 2}
    assert list(found.weight_types()) == ["q_k"]
    x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(2))
    assert relative_error(forward(found, x), forward(module, x)) < 1e-6


def test_the_step_graph_is_rewritten_with_the_same_weights() -> None:
    module = toy("""
        %q = linear(%x, weight @q : f32[64, 64]) : f32[b, s, 64]
        %k = linear(%x, weight @k : f32[64, 64]) : f32[b, s, 64]
        %y = mul(%q, %k) : f32[b, s, 64]
        return %y""")
    found, changes = apply(module, Incrementalize(), FuseQKV())
    assert changes == {"merged": 4, "linear": 2}
    assert list(found.weight_types()) == ["q_k"]
    assert [op.name for op in found.graph("step").walk()] == ["linear", "slice", "slice", "mul"]


MUST_NOT = {
    "a weight that another op reads": """
        %q = linear(%x, weight @q : f32[64, 64]) : f32[b, s, 64]
        %k = linear(%x, weight @k : f32[64, 64]) : f32[b, s, 64]
        %m = mul(%q, %k) : f32[b, s, 64]
        %y = linear(%m, weight @q : f32[64, 64]) : f32[b, s, 64]
        return %y""",
    "one weight twice": """
        %q = linear(%x, weight @q : f32[64, 64]) : f32[b, s, 64]
        %k = linear(%x, weight @q : f32[64, 64]) : f32[b, s, 64]
        %y = mul(%q, %k) : f32[b, s, 64]
        return %y""",
    "other activations": """
        %q = linear(%x, weight @q : f32[64, 64]) {activation = "silu"} : f32[b, s, 64]
        %k = linear(%x, weight @k : f32[64, 64]) : f32[b, s, 64]
        %y = mul(%q, %k) : f32[b, s, 64]
        return %y""",
    "other inputs": """
        %z = neg(%x) : f32[b, s, 64]
        %q = linear(%x, weight @q : f32[64, 64]) : f32[b, s, 64]
        %k = linear(%z, weight @k : f32[64, 64]) : f32[b, s, 64]
        %y = mul(%q, %k) : f32[b, s, 64]
        return %y""",
    "a residual": """
        %q = linear(%x, weight @q : f32[64, 64], _, %x) : f32[b, s, 64]
        %k = linear(%x, weight @k : f32[64, 64]) : f32[b, s, 64]
        %y = mul(%q, %k) : f32[b, s, 64]
        return %y""",
    "a bias that is computed": """
        %c = full() {shape = [64], value = 2.0, element = "f32"} : f32[64]
        %q = linear(%x, weight @q : f32[64, 64], %c) : f32[b, s, 64]
        %k = linear(%x, weight @k : f32[64, 64]) : f32[b, s, 64]
        %y = mul(%q, %k) : f32[b, s, 64]
        return %y""",
}


@pytest.mark.parametrize("case", MUST_NOT)
def test_must_not_fire(case: str) -> None:
    module = toy(MUST_NOT[case])
    found, changes = apply(module, FuseQKV())
    assert changes == {}
    assert found == module


def test_other_storage_types_stay_apart() -> None:
    body = MUST_NOT["other inputs"].replace("%z,", "%x,")
    before, _ = apply(toy(body), Quantize(layers="^q$"))
    assert apply(before, FuseQKV())[1] == {}
