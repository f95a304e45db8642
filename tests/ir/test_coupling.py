"""Dimension coupling: what must be cut together, what cannot be cut and why, and that cutting it is cutting a part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmopt.errors import IRError
from slmopt.interpreter import run
from slmopt.ir.coupling import FIXED, Coupling, Group
from slmopt.ir.cutting import cut_units
from slmopt.ir.graph import Module, Op, Weight
from slmopt.ir.linking import AxisLinker
from slmopt.ir.ops import registry
from slmopt.ir.verify import verify
from slmopt.passes.canonicalize.canonicalize import Canonicalize
from slmopt.passes.prune.inner import channels_of, heads_of
from slmopt.passes.raise_.raising import Raise
from slmopt.pipeline import Pipeline
from slmopt.testing import language_models
from tests.backends import acme
from tests.passes.toys import IDS, toy

EMBEDDED = "%x = embedding(%ids, weight @table : f32[11, 12]) : f32[b, s, 12]"


def model(body: str, result: str = "y") -> Module:
    """A toy that begins with a table of 12 channels and ends with a head, so that its inner axes are not outputs."""
    head = f"%logits = linear(%{result}, weight @head : f32[11, 12]) : f32[b, s, 11]"
    return toy(f"{EMBEDDED}\n{body}\n{head}\nreturn %logits", signature=IDS)


def group(module: Module, name: str, index: int = -1) -> Group:
    return Coupling(module).group(module.graph().value(name), index)


def weights(found: Group) -> dict[str, tuple[int, ...]]:
    """The units on each axis of a weight."""
    return {f"{a.tensor} {a.index}": places for a, places in found.places.items() if isinstance(a.tensor, str)}


GATED = """
    %g = linear(%x, weight @g : f32[5, 12]) : f32[b, s, 5]
    %u = linear(%x, weight @u : f32[5, 12], weight @c : f32[5]) : f32[b, s, 5]
    %a = glu(%g, %u) : f32[b, s, 5]
    %y = linear(%a, weight @d : f32[12, 5]) : f32[b, s, 12]"""


def test_channels_of_a_gated_feed_forward() -> None:
    found = group(model(GATED), "a")
    assert found.reason is None
    assert weights(found) == dict.fromkeys(("g 0", "u 0", "c 0", "d 1"), (0, 1, 2, 3, 4))


def test_channels_behind_joined_axes_of_unknown_sizes() -> None:
    body = """
    %f = reshape(%x) {shape = [b*s, 12]} : f32[b*s, 12]
    %u = linear(%f, weight @u : f32[5, 12]) : f32[b*s, 5]
    %a = relu(%u) : f32[b*s, 5]
    %d = linear(%a, weight @d : f32[12, 5]) : f32[b*s, 12]
    %y = reshape(%d) {shape = [b, s, 12]} : f32[b, s, 12]"""
    module = model(body)
    found = group(module, "a")
    assert found.reason is None
    assert weights(found) == dict.fromkeys(("u 0", "d 1"), (0, 1, 2, 3, 4))
    assert set(weights(group(module, "f"))) == {"table 1", "u 1"}


def test_channels_joined_with_an_axis_of_unknown_size_stay() -> None:
    body = """
    %p = permute(%x) {axes = [0, 2, 1]} : f32[b, 12, s]
    %f = reshape(%p) {shape = [12*b*s]} : f32[12*b*s]
    %y = reshape(%f) {shape = [b, s, 12]} : f32[b, s, 12]"""
    assert "merges it with others" in (group(model(body), "x").reason or "")


def test_a_stream_couples_all_that_add_to_it() -> None:
    found = group(model(f"{GATED}\n%r = add(%x, %y) : f32[b, s, 12]", "r"), "r")
    assert found.reason is None
    assert set(weights(found)) == {"table 1", "g 1", "u 1", "d 0", "head 1"}
    assert found.units == 12


JOINED = """
    %p = linear(%x, weight @p : f32[24, 12], weight @pb : f32[24]) : f32[b, s, 24]
    %q = slice(%p) {axis = 2, start = 0, stop = 12} : f32[b, s, 12]
    %k = slice(%p) {axis = 2, start = 12, stop = 18} : f32[b, s, 6]
    %v = slice(%p) {axis = 2, start = 18, stop = 24} : f32[b, s, 6]
    %qr = reshape(%q) {shape = [b, s, 4, 3]} : f32[b, s, 4, 3]
    %kr = reshape(%k) {shape = [b, s, 2, 3]} : f32[b, s, 2, 3]
    %vr = reshape(%v) {shape = [b, s, 2, 3]} : f32[b, s, 2, 3]
    %qp = permute(%qr) {axes = [0, 2, 1, 3]} : f32[b, 4, s, 3]
    %kp = permute(%kr) {axes = [0, 2, 1, 3]} : f32[b, 2, s, 3]
    %vp = permute(%vr) {axes = [0, 2, 1, 3]} : f32[b, 2, s, 3]
    %a = attention(%qp, %kp, %vp, _, _, weight @slopes : f32[4]) {scale = 0.5} : f32[b, 4, s, 3]
    %ap = permute(%a) {axes = [0, 2, 1, 3]} : f32[b, s, 4, 3]
    %m = reshape(%ap) {shape = [b, s, 12]} : f32[b, s, 12]
    %y = linear(%m, weight @o : f32[12, 12]) : f32[b, s, 12]"""


def test_heads_go_in_groups_through_a_joined_projection() -> None:
    """Of 12 columns of the output projection, queries 0 and 1 read the first head of keys, 2 and 3 the other."""
    found = group(model(JOINED), "m")
    assert found.reason is None
    assert weights(found) == {
        "o 1": (0,) * 6 + (1,) * 6, "slopes 0": (0, 0, 1, 1),
        "p 0": (*(0,) * 6, *(1,) * 6, *(0,) * 3, *(1,) * 3, *(0,) * 3, *(1,) * 3),
        "pb 0": (*(0,) * 6, *(1,) * 6, *(0,) * 3, *(1,) * 3, *(0,) * 3, *(1,) * 3),
    }  # fmt: skip


def test_the_size_of_a_head_is_cut_through_all_heads() -> None:
    """From the values' last axis on: what is merged from [4, 3] is cut at the same place in each of 4 heads."""
    found = group(model(JOINED), "vp")
    assert found.reason is None
    assert weights(found)["o 1"] == (0, 1, 2) * 4
    assert weights(found)["p 0"] == (FIXED,) * 18 + (0, 1, 2) * 2


def test_a_shared_weight_couples_all_its_readers() -> None:
    body = GATED + GATED.replace("%x", "%y").replace("%g ", "%g2 ").replace("%u ", "%u2 ").replace(
        "%a =", "%a2 =").replace("(%g,", "(%g2,").replace("%u)", "%u2)").replace("(%a,", "(%a2,").replace(
        "%y =", "%z =")  # fmt: skip
    module = model(body, "z")
    coupling = Coupling(module)
    first, second = (coupling.group(module.graph().value(name), -1) for name in ("a", "a2"))
    assert first is second
    assert {op.result.name for op in first.ops if op.name == "linear"} == {"g", "u", "y", "g2", "u2", "z"}


BLOCKED = {
    "is quantized": GATED.replace("@d : f32[12, 5]", "@d : q8c[12, 5]"),
    "is an op of which nothing says how its axes hang together": GATED.replace("glu(%g, %u)", "quantize_rows(%g)")
    .replace("%a = quantize_rows(%g) : f32", "%a = quantize_rows(%g) : q8g32"),
    "combines its positions": GATED.replace("%y =", "%t = softmax(%a) {axis = 2} : f32[b, s, 5]\n%y =").replace(
        "(%a,", "(%t,"),
    "picks rows of it by number": """
    %g = linear(%x, weight @g : f32[5, 12]) : f32[b, s, 5]
    %a = silu(%g) : f32[b, s, 5]
    %e = embedding(%ids, weight @g : f32[5, 12]) : f32[b, s, 12]
    %d = linear(%a, weight @d : f32[12, 5]) : f32[b, s, 12]
    %y = add(%e, %d) : f32[b, s, 12]""",
}  # fmt: skip


@pytest.mark.parametrize("reason", BLOCKED)
def test_what_cannot_be_cut_says_why(reason: str) -> None:
    from slmopt.ir.text import parse_module

    head = "%logits = linear(%y, weight @head : f32[11, 12]) : f32[b, s, 11]\nreturn %logits"
    module = parse_module(f"module @m {{ graph @forward({IDS}) {{\n{EMBEDDED}\n{BLOCKED[reason]}\n{head} }} }}")
    found = group(module, "a")
    assert found.reason is not None and reason in found.reason


@pytest.mark.parametrize(("name", "reason"), [("logits", "is an output of @forward"), ("w", "is an input of @forward")])
def test_inputs_and_outputs_cannot_be_cut(name: str, reason: str) -> None:
    body = "%logits = linear(%w, weight @d : f32[11, 12]) : f32[b, s, 11]\nreturn %logits"
    found = group(toy(body, signature="%w: f32[b, s, 12]"), name)
    assert found.reason == f"%{name} {reason}"


def test_rotary_pairs_are_not_parted() -> None:
    body = JOINED.replace("%a =", """%c = full() {shape = [1, 1, s, 2], value = 0.5, element = "f32"} : f32[1, 1, s, 2]
    %t = rope(%kp, %c, %c) : f32[b, 2, s, 3]\n%a =""").replace("%kp, %vp, _", "%t, %vp, _")
    assert "turns its positions in pairs" in str(group(model(body), "qp").reason)
    assert group(model(body), "m").reason is None


def test_axes_of_unknown_size_have_no_units() -> None:
    found = group(model(GATED), "a", 1)
    assert (found.units, found.places) == (0, {})
    assert found.reason is not None


def link_other_axes(axes: AxisLinker, op: Op) -> None:
    axes.link(op.operands[0], -1, axes.result, -1, ([0, 1], [0, 1]))


def link_nothing_there(axes: AxisLinker, op: Op) -> None:
    axes.link(op.operands[3], -1, axes.result, -1)


@pytest.mark.parametrize(
    ("couple", "message"),
    [
        (link_other_axes, r"%a = squash: its `couple` rule links axis 2 of %g, of size 5, to .*by 2 and 2 channels"),
        (link_nothing_there, r"%a = squash: its `couple` rule raised IndexError: tuple index out of range"),
    ],
)
def test_a_rule_that_cannot_be_right_is_named(couple: Callable[[AxisLinker, Op], None], message: str) -> None:
    body = GATED.replace("glu(%g, %u)", "squash(%g)")
    with registry.having([replace(acme.SPECS[0], couple=couple)], "test"), pytest.raises(IRError, match=message):
        group(model(body), "a")


# --- cutting a unit is leaving out what it adds ----------------------------------------------------------------------
def _without(module: Module, found: Group, readers: list[Op], unit: int) -> Module:
    """The module with zeros for what a unit of a group is multiplied with."""
    copied = module.copy()
    for op in readers:
        weight = op.operands[1]
        assert isinstance(weight, Weight)
        units = torch.tensor(found.of(weight, 1))
        zeroed = copied.derive(weight, f"without {unit}", lambda w, units=units: w * (units != unit))
        copied.graph().value(op.result.name).op.set_operand(1, zeroed)  # type: ignore[union-attr]
    return copied


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(language_models(), st.integers(0, 100))
def test_cutting_a_unit_leaves_out_what_it_adds(module: Module, number: int) -> None:
    Pipeline([Raise(), Canonicalize()], verify=False).run(module)
    ids = torch.randint(0, module.metadata["vocab"], (2, 7), generator=torch.Generator().manual_seed(number))
    for found, readers in Coupling(module).linear_inputs(module.graph()):
        inner = channels_of(found, tuple(readers)) or heads_of(found)
        if found.reason is not None or found.units < 2 or not inner:
            continue
        unit = number % found.units
        expected = run(_without(module, found, readers, unit), "forward", [ids], wide=True)[0]
        cut = module.copy()
        again = Coupling(cut).group(cut.graph().value(readers[0].value(0).name), -1)
        assert list(again.places.values()) == list(found.places.values())
        cut_units(cut, again, frozenset({unit}))
        verify(cut, weights=True)
        result = run(cut, "forward", [ids], wide=True)[0]
        assert torch.allclose(result, expected, rtol=1e-9, atol=1e-12, equal_nan=True)
