"""The pass `prune-ffn`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slmopt.errors import ContractError, InputError, UnsupportedError
from slmopt.ir.linking import couple_elementwise
from slmopt.ir.ops import registry
from slmopt.ir.weights import watch_loads
from slmopt.layers import Layers
from slmopt.passes.canonicalize.canonicalize import Canonicalize
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.prune.prune_ffn import PruneFFN
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.passes.raise_.raising import Raise
from slmopt.pipeline import Context, Pipeline
from tests.backends import acme
from tests.passes.calibrated import apply_on_text, error_on_text, toy_model
from tests.passes.golden import body_of
from tests.passes.toys import graph_text
from tests.rewritten import VARIETY, check_rewritten, raised, random_calibration, rewritten
from tests.stories import EVALUATED, needs_stories, perplexity_after

GATED = """
    %g = linear(%x, weight @g : f32[4, 6]) : f32[b, s, 4] loc("layers.0.g")
    %u = linear(%x, weight @u : f32[4, 6], weight @c : f32[4]) : f32[b, s, 4] loc("layers.0.u")
    %a = glu(%g, %u) : f32[b, s, 4] loc("layers.0")
    %d = linear(%a, weight @d : f32[6, 4], weight @e : f32[6]) : f32[b, s, 6] loc("layers.0.d")
    %y = add(%x, %d) : f32[b, s, 6] loc("layers.0")"""


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def silent(channel: int) -> dict[str, torch.Tensor]:
    """Weights of GATED where one channel is always 0."""
    u, c = drawn(4, 6), drawn(4, seed=1)
    u[channel], c[channel] = 0.0, 0.0
    return {"u": u, "c": c, "g": drawn(4, 6, seed=2), "d": drawn(6, 4, seed=3)}


def test_golden() -> None:
    module = toy_model(GATED, 6, weights=silent(2))
    found, changes = apply_on_text(module, PruneFFN(damping=1e-9))
    assert body_of(found.graph()) == graph_text("""
        %x = embedding(%ids, weight @table : f32[29, 6]) : f32[b, s, 6]
        %g = linear(%x, weight @g.cut : f32[3, 6]) {activation = none, act = none} : f32[b, s, 3] loc("layers.0.g")
        %u = linear(%x, weight @u.cut : f32[3, 6], weight @c.cut : f32[3]) {activation = none, act = none} : f32[b, s, 3] loc("layers.0.u")
        %a = glu(%g, %u) {activation = "silu", output = "f32"} : f32[b, s, 3] loc("layers.0")
        %d = linear(%a, weight @d.refitted : f32[6, 3], weight @e.refitted : f32[6]) {activation = none, act = none} : f32[b, s, 6] loc("layers.0.d")
        %y = add(%x, %d) : f32[b, s, 6] loc("layers.0")
        %logits = linear(%y, weight @head : f32[29, 6]) {activation = none, act = none} : f32[b, s, 29]
        return %logits
    """)  # noqa: E501
    assert changes == {"pruned": 1, "channels": 1}
    assert torch.equal(found.weights.load("u.cut"), module.weights.load("u")[[0, 1, 3]])
    assert error_on_text(found, module) < 1e-6


@pytest.mark.parametrize("channel", range(4))
def test_a_channel_that_others_can_make_up_for_costs_nothing(channel: int) -> None:
    """Its twin does twice as much, and what is always the same goes to the bias."""
    weights = silent(channel)
    twin = (channel + 1) % 4
    weights["u"][channel], weights["c"][channel] = 3 * weights["u"][twin], 3 * weights["c"][twin]
    weights["g"][channel] = weights["g"][twin]
    module = toy_model(GATED, 6, weights=weights)
    found, _ = apply_on_text(module, PruneFFN(damping=1e-12))
    assert error_on_text(found, module) < 1e-5
    plain, _ = apply_on_text(module, PruneFFN(compensate=False))
    assert error_on_text(plain, module) > 1e-2


def test_what_never_changes_goes_to_the_bias() -> None:
    body = GATED.replace("linear(%x, weight @g : f32[4, 6])", "linear(%x, weight @g : f32[4, 6], weight @h : f32[4])")
    weights = silent(1)
    weights["g"][1], weights["h"], weights["c"][1] = 0.0, drawn(4, seed=7), 2.0
    module = toy_model(body, 6, weights=weights)
    found, _ = apply_on_text(module, PruneFFN(damping=1e-9))
    assert torch.equal(found.weights.load("u.cut"), module.weights.load("u")[[0, 2, 3]])
    assert error_on_text(found, module) < 1e-6


PLAIN = """
    %u = linear(%x, weight @u : f32[8, 6], weight @c : f32[8]) : f32[b, s, 8]
    %a = gelu(%u) {approximate = true} : f32[b, s, 8]
    %d = linear(%a, weight @d : f32[6, 8]) : f32[b, s, 6]
    %y = add(%x, %d) : f32[b, s, 6]"""


def test_inputs_that_are_always_0_are_no_trouble() -> None:
    weights = silent(0)
    weights["g"][1] = 0.0
    module = toy_model(GATED, 6, weights=weights)
    found, changes = apply_on_text(module, PruneFFN(0.5, damping=0.0))
    assert changes == {"pruned": 1, "channels": 2}
    assert error_on_text(found, module) < 1e-6


SQUASHED = """
    %u = linear(%x, weight @u : f32[8, 6], weight @c : f32[8]) : f32[b, s, 8]
    %a = squash(%u, weight @scale : f32[8]) : f32[b, s, 8]
    %d = linear(%a, weight @d : f32[6, 8]) : f32[b, s, 6]
    %y = add(%x, %d) : f32[b, s, 6]"""


def test_ops_of_plugins_are_pruned_through_where_they_say_what_they_couple() -> None:
    squash = acme.SPECS[0]
    with registry.having([replace(squash, couple=couple_elementwise)], "test"):
        found, changes = apply_on_text(toy_model(SQUASHED, 6), PruneFFN())
        assert changes == {"pruned": 1, "channels": 2}
        assert {str(found.weights.type(f"{key}.cut")) for key in ("c", "scale")} == {"f32[6]"}
    with registry.having([squash], "test"):
        assert apply_on_text(toy_model(SQUASHED, 6), PruneFFN())[1] == {}


def test_what_is_fused_already_is_pruned_too() -> None:
    """Gate and up are one projection, and what they are added to is part of the last."""
    module = toy_model(GATED, 6)
    found, changes = apply_on_text(module, Fuse(), PruneFFN())
    assert changes == {"pruned": 1, "channels": 1}
    assert [op.name for op in found.graph().walk()] == ["embedding", "linear", "slice", "slice", "glu", "linear",
                                                        "linear"]  # fmt: skip
    assert error_on_text(found, apply_on_text(module, PruneFFN())[0]) < 1e-5


def test_compensation_and_its_choice_lower_the_error() -> None:
    module = toy_model(PLAIN, 6)
    errors = [error_on_text(apply_on_text(module, item)[0], module)
              for item in (PruneFFN(0.5), PruneFFN(0.5, compensate=False))]  # fmt: skip
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize(
    ("options", "left"),
    [({"ratio": 0.0}, 8), ({"ratio": 0.99}, 1), ({"ratio": 0.25}, 6),
     ({"ratio": 0.3, "multiple": 4}, 4), ({"ratio": 0.2, "multiple": 4}, 8), ({"ratio": 0.5, "multiple": 64}, 8)],
)  # fmt: skip
def test_widths(options: dict[str, float], left: int) -> None:
    found, changes = apply_on_text(toy_model(PLAIN, 6), PruneFFN(**options))  # type: ignore[arg-type]
    assert found.graph().value("a").shape[-1] == left
    assert changes == ({"pruned": 1, "channels": 8 - left} if left < 8 else {})


def test_layers_that_share_weights_still_share_them() -> None:
    second = PLAIN.replace("%x", "%r").replace("%u", "%u2").replace("%a", "%a2").replace("%d", "%d2")
    module = toy_model(f"{PLAIN.replace('%y', '%r')}\n{second}", 6)
    found, changes = apply_on_text(module, PruneFFN())
    assert changes == {"pruned": 1, "channels": 2}
    assert list(found.weight_types()) == ["table", "u.cut", "c.cut", "d.refitted", "head"]
    assert found.graph().value("a2").shape[-1] == 6


def test_cut_weights_are_lazy() -> None:
    loads: list[str] = []
    found, _ = apply_on_text(toy_model(PLAIN, 6), PruneFFN())
    with watch_loads(lambda key, tensor: loads.append(key)):
        found.weights.load("u.cut")
        found.weights.load("d.refitted")
    assert loads == ["u", "u.cut", "d.refitted"]


MUST_NOT = {
    "a projection without anything between": PLAIN.replace("gelu(%u) {approximate = true}", "reshape(%u) "
                                                           "{shape = [b, s, 8]}"),
    "channels that are normalised together": PLAIN.replace("gelu(%u) {approximate = true}", "rms_norm(%u) "
                                                           "{eps = 0.1}"),
    "a stream": """
        %t = tanh(%x) : f32[b, s, 6]
        %u = linear(%t, weight @u : f32[6, 6]) : f32[b, s, 6]
        %y = add(%x, %u) : f32[b, s, 6]""",
}  # fmt: skip


@pytest.mark.parametrize("case", MUST_NOT)
def test_must_not_fire(case: str) -> None:
    module = toy_model(MUST_NOT[case], 6)
    found, changes = apply_on_text(module, PruneFFN())
    assert changes == {}
    assert found == module


def test_a_stream_that_begins_with_a_projection_is_left_alone() -> None:
    """Between the first projection and the last one, both layers add to one stream of 5 channels."""
    layer = """
        %t{n} = silu({x}) : f32[b, s, 5]
        %u{n} = linear(%t{n}, weight @u{n} : f32[4, 5]) : f32[b, s, 4]
        %a{n} = silu(%u{n}) : f32[b, s, 4]
        %d{n} = linear(%a{n}, weight @d{n} : f32[5, 4]) : f32[b, s, 5]
        %r{n} = add({x}, %d{n}) : f32[b, s, 5]"""
    body = "%i = linear(%x, weight @i : f32[5, 6]) : f32[b, s, 5]"
    body += layer.format(n=0, x="%i") + layer.format(n=1, x="%r0")
    module = toy_model(f"{body}\n%y = linear(%r1, weight @o : f32[6, 5]) : f32[b, s, 6]", 6)
    found, changes = apply_on_text(module, PruneFFN())
    assert changes == {"pruned": 2, "channels": 2}
    assert [found.graph().value(name).shape[-1] for name in ("r1", "a0", "a1")] == [5, 3, 3]


def test_what_cannot_be_cut_is_named() -> None:
    quantized, _ = apply_on_text(toy_model(PLAIN, 6), Quantize())
    with pytest.raises(UnsupportedError, match=r"the feed-forward that %d = linear sums over cannot be cut: weight "
                                               r"@\S+ is quantized"):  # fmt: skip
        PruneFFN().run(quantized, Context())


def test_what_has_no_effect_does_not_matter() -> None:
    """Neither does an op that could not be cut keep anything, nor does one make a feed-forward of two projections."""
    dead = "%z = softmax(%a) {axis = 2} : f32[b, s, 8]\n%w = neg(%z) : f32[b, s, 8]\n"
    found, changes = apply_on_text(toy_model(PLAIN.replace("%d =", f"{dead}%d ="), 6), PruneFFN())
    assert changes == {"pruned": 1, "channels": 2}
    assert found == apply_on_text(toy_model(PLAIN, 6), PruneFFN())[0]
    body = PLAIN.replace("gelu(%u) {approximate = true}", "reshape(%u) {shape = [b, s, 8]}")
    assert apply_on_text(toy_model(body.replace("%d =", "%w = neg(%a) : f32[b, s, 8]\n%d ="), 6), PruneFFN())[1] == {}


def test_wrong_options_are_errors() -> None:
    for wrong in ({"ratio": 1.0}, {"ratio": -0.1}, {"multiple": 0}, {"damping": -1.0}):
        with pytest.raises(InputError, match=f"pass prune-ffn: option {next(iter(wrong))}"):
            PruneFFN(**wrong)
    with pytest.raises(InputError, match="there is no layer 3"):
        apply_on_text(toy_model(PLAIN, 6), PruneFFN(layers=Layers("3")))


def test_a_layer_without_a_feed_forward_is_told() -> None:
    layer = '%{1} = linear(%{0}, weight @w{2} : f32[6, 6]) : f32[b, s, 6] loc("layers.{2}")\n' \
            '%y{2} = add(%{0}, %{1}) : f32[b, s, 6] loc("layers.{2}")\n'  # fmt: skip
    module = toy_model(layer.format("x", "a", 0) + layer.format("y0", "b", 1), 6, "y1")
    assert apply_on_text(module, PruneFFN())[1] == {}
    with pytest.raises(UnsupportedError, match="the feed-forward of layers 1 is not found"):
        apply_on_text(module, PruneFFN(layers=Layers("1")))


def test_inputs_that_are_no_numbers_are_told() -> None:
    weights = {"u": torch.full((4, 6), float("nan"))}
    with pytest.raises(InputError, match="the inputs of weight @d, to be pruned, are not finite"):
        apply_on_text(toy_model(GATED, 6, weights=weights), PruneFFN())


def test_it_needs_text_and_raised_ops() -> None:
    module = toy_model(PLAIN, 6)
    with pytest.raises(ContractError, match="'raised'"):
        Pipeline([PruneFFN()]).run(module)
    with pytest.raises(ContractError, match="pass prune-ffn needs calibration text"):
        Pipeline([PruneFFN()]).check_order(frozenset({"raised"}), calibrated=False)


@pytest.mark.parametrize("name", VARIETY)
def test_architectures(tmp_path: Path, name: str) -> None:
    """Layers of unequal widths compile, and library, @forward and @step agree."""
    module = raised(tmp_path, name)
    passes = [PruneFFN(), PruneFFN(0.4, layers=Layers("0"))]
    found = rewritten(module, passes, random_calibration())
    pruned = [row.changed["pruned"] for row in found.ledger.rows if row.name.startswith("prune-ffn")]
    assert pruned == [3 if name == "gemma2" else 2, 1]
    check_rewritten(found, tmp_path)


@pytest.mark.slow
@needs_stories
def test_stories(tmp_path: Path) -> None:
    """A quarter of the channels of a trained model: at most +70 % of perplexity, where nothing is healed."""
    found = perplexity_after([Raise(), Canonicalize(), PruneFFN(), Fuse(), Incrementalize()], tmp_path)
    assert EVALUATED < found < EVALUATED * 1.70
