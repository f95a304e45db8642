"""The passes `quantize` and `cast-weights`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from slmopt.errors import InputError, IRError
from slmopt.interpreter import forward
from slmopt.ir.ops.language import quantize_rows
from slmopt.ir.text import parse_module
from slmopt.ir.types import QuantizedType
from slmopt.ir.verify import verify
from slmopt.ir.weights import WeightStore
from slmopt.passes.quantize.cast_weights import CastWeights
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.passes.quantize.rounding import round_to_nearest
from slmopt.pipeline import Lossy
from tests.passes.toys import IDS, TIED, apply, graph_text, relative_error, toy


def test_golden() -> None:
    found, changes = apply(toy(TIED, signature=IDS), Quantize())
    assert graph_text(found.graph()) == graph_text("""
        graph @forward(%ids: i64[b, s]) {
          %x = embedding(%ids, weight @table.q4g32 : q4g32[50, 40]) : f32[b, s, 40]
          %h = linear(%x, weight @inner.q4g32 : q4g32[70, 40], weight @bias : f32[70]) {activation = "silu", act = "q8"} : f32[b, s, 70]
          %y = linear(%h, weight @outer.q4g32 : q4g32[40, 70], _, %x) {activation = none, act = "q8"} : f32[b, s, 40]
          %logits = linear(%y, weight @table.q4g32 : q4g32[50, 40]) {activation = none, act = "q8"} : f32[b, s, 50]
          return %logits
        }
    """)  # noqa: E501
    assert changes == {"embedding": 1, "linear": 3}
    assert isinstance(Quantize.contract, Lossy)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_numbers_are_those_of_the_rounded_weights(bits: int, group: int, symmetric: bool) -> None:
    module = toy("%y = linear(%x, weight @w : f32[20, 72]) : f32[b, s, 20]\nreturn %y", signature="%x: f32[b, s, 72]")
    grid = "symmetric" if symmetric else "asymmetric"
    quantized, _ = apply(module, Quantize(bits=bits, group=group, grid=grid))
    x = torch.randn(2, 3, 72, generator=torch.Generator().manual_seed(3))
    weight = round_to_nearest(module.weights.load("w"), QuantizedType(bits, group or None, symmetric)).dequantize()
    torch.testing.assert_close(forward(quantized, x), quantize_rows(x) @ weight.T)
    bound = {4: 0.15, 8: 0.02}[bits]  # about half a step of weights and activations, over the largest result
    assert relative_error(forward(quantized, x), forward(module, x)) < bound


def test_a_tied_weight_is_rounded_once_and_loads_the_same_twice() -> None:
    module, _ = apply(toy(TIED, signature=IDS), Quantize())
    first, second = (module.weights.load("table.q4g32") for _ in range(2))  # the second comes from kept codes
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.dequantize(), second.dequantize())
    assert sorted(key for key in module.weights if "q4" in key) == ["inner.q4g32", "outer.q4g32", "table.q4g32"]


@pytest.mark.parametrize("quantize", [Quantize(head=False), Quantize(embedding=False)])
def test_a_tied_weight_stays_where_one_of_its_users_is_excluded(quantize: Quantize) -> None:
    module, changes = apply(toy(TIED, signature=IDS), quantize)
    assert changes == {"linear": 2}
    assert [str(t) for key, t in module.weight_types().items() if key == "table"] == ["f32[50, 40]"]


def test_head_and_embedding_apart() -> None:
    untied = TIED.replace("%y, weight @table", "%y, weight @head")
    for quantize, left in (
        (Quantize(head=False), {"head"}),
        (Quantize(embedding=False), {"table"}),
        (Quantize(layers="inner|outer"), {"head", "table"}),
    ):
        module, _ = apply(toy(untied, signature=IDS), quantize)
        assert {key for key in module.weight_types() if "q4" not in key} - {"bias"} == left


MUST_NOT = {
    "another reader": (
        "%x: f32[64, 64]",
        """%h = linear(%x, weight @w : f32[64, 64]) : f32[64, 64]
        %y = mul(%h, weight @w : f32[64, 64]) : f32[64, 64]""",
    ),
    "a quantized weight": ("%x: f32[b, s, 64]", "%y = linear(%x, weight @w : q8g32[64, 64]) : f32[b, s, 64]"),
    "a table of positions": (
        "%x: f32[b, s, 64]",
        """%i = arange() {start = 0, stop = s, element = "i64"} : i64[s]
        %p = embedding(%i, weight @w : f32[99, 64]) : f32[s, 64]
        %y = add(%x, %p) : f32[b, s, 64]""",
    ),
}


@pytest.mark.parametrize("case", MUST_NOT)
def test_must_not_fire(case: str) -> None:
    signature, body = MUST_NOT[case]
    module = parse_module(f"module @toy {{ graph @forward({signature}) {{ {body} return %y }} }}")
    found, changes = apply(module, Quantize())
    assert changes == {}
    assert found == module


def test_layers_selects_by_key() -> None:
    module, changes = apply(toy(TIED, signature=IDS), Quantize(layers="^inner$"))
    assert changes == {"linear": 1}
    assert "inner.q4g32" in module.weight_types()


def test_act_none_leaves_activations_alone() -> None:
    module, _ = apply(toy(TIED, signature=IDS), Quantize(act="none"))
    assert {op.attributes["act"] for op in module.graph().walk() if op.name == "linear"} == {None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits must be 4 or 8, got 5"),
        ({"group": 48}, "multiple of 32"),
        ({"group": -32}, "multiple of 32"),
        ({"grid": "log"}, "grid must be symmetric or asymmetric"),
        ({"act": "q4"}, "act must be q8 or none"),
        ({"layers": "("}, "no regular expression"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Quantize(**options)


def test_a_damaged_weight_is_named() -> None:
    weight = torch.ones(4, 64)
    weight[2, 5] = float("nan")
    module = toy("%y = linear(%x, weight @w : f32[4, 64]) : f32[b, s, 4]\nreturn %y", w=weight)
    quantized, _ = apply(module, Quantize())
    with pytest.raises(InputError, match=r"weight @w: .*NaN"):
        forward(quantized, torch.ones(1, 1, 64))


def test_nothing_is_loaded_by_the_pass_itself() -> None:
    module = toy(TIED, signature=IDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightStore, "load", lambda store, key: pytest.fail(f"{key} is loaded"))
        _, changes = apply(module, Quantize())
    assert changes == {"embedding": 1, "linear": 3}


def test_cast_golden() -> None:
    found, changes = apply(toy(TIED, signature=IDS), CastWeights())
    assert graph_text(found.graph()) == graph_text("""
        graph @forward(%ids: i64[b, s]) {
          %x = embedding(%ids, weight @table.f16 : f16[50, 40]) : f32[b, s, 40]
          %h = linear(%x, weight @inner.f16 : f16[70, 40], weight @bias : f32[70]) {activation = "silu", act = none} : f32[b, s, 70]
          %y = linear(%h, weight @outer.f16 : f16[40, 70], _, %x) {activation = none, act = none} : f32[b, s, 40]
          %logits = linear(%y, weight @table.f16 : f16[50, 40]) {activation = none, act = none} : f32[b, s, 50]
          return %logits
        }
    """)  # noqa: E501
    assert changes == {"embedding": 1, "linear": 3}


@pytest.mark.parametrize(("element", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_cast_numbers(element: str, dtype: torch.dtype) -> None:
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(5))
    weight[0, 0] = 1e30
    module = toy("%y = linear(%x, weight @w : f32[20, 64]) : f32[b, s, 20]\nreturn %y", w=weight)
    found, _ = apply(module, CastWeights(element))
    stored = found.weights.load(f"w.{element}")
    assert stored.dtype == dtype
    assert stored.isfinite().all()
    x = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(forward(found, x), x @ stored.float().T)


def test_cast_must_not_fire_twice_nor_elsewhere() -> None:
    once, _ = apply(toy(TIED, signature=IDS), CastWeights())
    assert apply(once, CastWeights())[1] == {}
    norm = toy("%y = rms_norm(%x, weight @w : f32[64]) {eps = 1e-05} : f32[b, s, 64]\nreturn %y")
    assert apply(norm, CastWeights())[1] == {}
    with pytest.raises(InputError, match="f8"):
        CastWeights("f8")


def test_cast_golden_with_rounded_activations() -> None:
    module = toy(TIED, signature=IDS)
    found, changes = apply(module, CastWeights("bf16", "bf16"))
    assert graph_text(found.graph()) == graph_text("""
        graph @forward(%ids: i64[b, s]) {
          %x = embedding(%ids, weight @table.bf16 : bf16[50, 40]) : f32[b, s, 40]
          %h = linear(%x, weight @inner.bf16 : bf16[70, 40], weight @bias : f32[70]) {activation = "silu", act = "bf16"} : f32[b, s, 70]
          %y = linear(%h, weight @outer.bf16 : bf16[40, 70], _, %x) {activation = none, act = "bf16"} : f32[b, s, 40]
          %logits = linear(%y, weight @table.bf16 : bf16[50, 40]) {activation = none, act = "bf16"} : f32[b, s, 50]
          return %logits
        }
    """)  # noqa: E501
    assert changes == {"embedding": 1, "linear": 3}
    ids = torch.arange(12).reshape(2, 6)
    assert 0 < relative_error(forward(found, ids), forward(module, ids)) < 0.02  # 2^-9 of each number


def test_cast_rounds_activations_of_what_it_casts_alone() -> None:
    body = """
        %a = linear(%x, weight @other : bf16[64, 64]) : f32[b, s, 64]
        %c = linear(%a, weight @codes : q8g32[64, 64]) {activation = none, act = "q8"} : f32[b, s, 64]
        %y = linear(%c, weight @own : f32[64, 64]) {activation = none, act = "q8"} : f32[b, s, 64]
    """
    module = parse_module(f"module @toy {{ graph @forward(%x: f32[b, s, 64]) {{ {body} return %y }} }}")
    module.weights.add_tensor("own", torch.ones(64, 64))
    found, changes = apply(module, CastWeights("bf16", "bf16"))
    assert changes == {"linear": 1}
    assert [op.attributes["act"] for op in found.graph().walk()] == [None, "q8", "q8"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(("bf16", "f16"), 'act must be "none" or "bf16", got \'f16\''), (("f16", "bf16"), "is for element = \"bf16\"")],
)
def test_wrong_options_of_cast(options: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CastWeights(*options)


def test_rounding_is_of_real_numbers() -> None:
    with pytest.raises(IRError, match='act = "bf16" rounds real numbers'):
        verify(parse_module("""module @toy { graph @forward(%x: f32[b, 64]) {
            %q = quantize_rows(%x) : q8g32[b, 64]
            %y = linear(%q, weight @w : q8g32[8, 64]) {activation = none, act = "bf16"} : f32[b, 8]
            return %y } }"""))
