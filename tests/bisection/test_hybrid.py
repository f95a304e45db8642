"""Hybrids: none of the differences is the module before, all of them is the module after."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.bisection.hybrid import Hybrids
from slmopt.interpreter import forward
from slmopt.ir.text import parse_module
from slmopt.ir.verify import verify
from slmopt.pipeline import Context
from tests.bisection.faults import Expand, Scales, layered_model

_BEFORE = layered_model(4)
_AFTER = _BEFORE.copy()
Expand((1,)).run(_AFTER, Context())
Scales(2).run(_AFTER, Context())
_HYBRIDS = Hybrids(_BEFORE, _AFTER)
_IDS = torch.arange(12).reshape(2, 6)


def test_names_what_differs() -> None:
    assert _HYBRIDS.names == [f"@forward/%{kind}{layer}" for layer in range(4) for kind in "ad"]


def test_ends() -> None:
    nothing, everything = _HYBRIDS.build(()), _HYBRIDS.build(_HYBRIDS.names)
    assert nothing is not None and everything is not None
    assert str(nothing) == str(_BEFORE)
    assert forward(everything, _IDS).equal(forward(_AFTER, _IDS))


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(_HYBRIDS.names)))
def test_any_of_them_is_a_module(chosen: set[str]) -> None:
    """Harmless differences change nothing, the two faults something."""
    found = _HYBRIDS.build(chosen)
    assert found is not None
    verify(found, weights=True)
    close = torch.allclose(forward(found, _IDS), forward(_BEFORE, _IDS), rtol=1e-4, atol=1e-4)
    assert close == chosen.isdisjoint({"@forward/%a1", "@forward/%d2"})


def test_definitions_that_need_each_other_make_no_module() -> None:
    def text(first: str, second: str) -> str:
        last = "%y = add(%p, %q) : f32[b, 4] return %y"
        return f"module @m {{ graph @forward(%x: f32[b, 4]) {{ {first} {second} {last} }} }}"

    p, q = "%p = {}({}) : f32[b, 4]", "%q = {}({}) : f32[b, 4]"
    before = parse_module(text(p.format("silu", "%x"), q.format("silu", "%p")))
    after = parse_module(text(q.format("silu", "%x"), p.format("silu", "%q")))
    hybrids = Hybrids(before, after)
    assert set(hybrids.names) == {"@forward/%p", "@forward/%q"}
    assert hybrids.build({"@forward/%p"}) is None
    assert hybrids.build({"@forward/%q"}) is not None


def test_graphs_that_are_new_or_take_something_else() -> None:
    before = parse_module("module @m { graph @forward(%x: f32[b, 4]) { return %x } }")
    after = parse_module(
        "module @m { graph @forward(%y: f32[b, 4]) { return %y } graph @step(%x: f32[b, 4]) { return %x } }"
    )
    hybrids = Hybrids(before, after)
    assert hybrids.names == ["@forward", "@step"]
    only = hybrids.build({"@step"})
    assert only is not None
    assert list(only.graphs) == ["forward", "step"] and only.graph().inputs[0].name == "x"
