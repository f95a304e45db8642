"""Rewrites that passes make by hand: recorded one by one, timed by kind, left alone where they are not permitted."""

from __future__ import annotations

import time

import pytest

from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.journal import Journal, current_journal, open_journal
from slmopt.passes.canonicalize.canonicalize import Canonicalize
from slmopt.passes.fuse.act_quant import FuseActQuant
from slmopt.passes.fuse.epilogue import FuseEpilogue
from slmopt.passes.fuse.qkv import FuseQKV
from slmopt.passes.quantize.cast_weights import CastWeights
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.pipeline import Context, Pipeline
from slmopt.stand_in import add_stand_ins
from tests.toy_model import toy_model

ARITHMETIC = """
module @arithmetic {
  graph @forward(%x: f32[b, s, 4]) {
    %w = add(weight @w : f32[4], weight @w : f32[4]) : f32[4]
    %h = mul(%x, weight @half : f32[]) : f32[b, s, 4]
    %a = mul(%h, %w) : f32[b, s, 4]
    %c = silu(%a) : f32[b, s, 4]
    %d = silu(%a) : f32[b, s, 4]
    %y = add(%c, %d) : f32[b, s, 4]
    return %y
  }
}
"""

EPILOGUE = """
module @epilogue {
  graph @forward(%x: f32[b, s, 32]) {
    %l = linear(%x, weight @w : f32[32, 32]) {activation = none, act = none} : f32[b, s, 32]
    %a = silu(%l) : f32[b, s, 32]
    %y = add(%a, %x) : f32[b, s, 32]
    return %y
  }
}
"""


def parsed(text: str) -> Module:
    module = parse_module(text)
    add_stand_ins(module, drawn=True)
    return module


def rounded() -> Module:
    module = toy_model()
    Pipeline([Quantize()], verify=False).run(module)
    return module


CASES = {
    "quantize": (Quantize(), toy_model, ["round at @forward/%x", "round at @forward/%q", "round at @forward/%k"]),
    "cast-weights": (CastWeights(), toy_model, ["cast at @forward/%x", "cast at @forward/%q", "cast at @forward/%k"]),
    "fuse-qkv": (FuseQKV(), toy_model, ["merged at @forward/%q"]),
    "fuse-act-quant": (
        FuseActQuant(), rounded,
        ["linear at @forward/%q", "linear at @forward/%k", "linear at @forward/%logits", "rms_norm at @forward/%n"],
    ),
    "fuse-epilogue": (FuseEpilogue(), lambda: parsed(EPILOGUE), ["silu at @forward/%a", "residual at @forward/%y"]),
    "canonicalize": (
        Canonicalize(), lambda: parsed(ARITHMETIC),
        ["shared at @forward/%d", "folded at @forward/%h", "folded at @forward/%w"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_rewrite_is_recorded_where_it_is_made(name: str) -> None:
    item, make, expected = CASES[name]
    module = make()
    with open_journal() as journal:
        row = Pipeline([item], verify=False).run(module).rows[-1]
    assert journal.entries == expected
    assert sum(spent.count for spent in row.rewrites.values()) == len(expected)
    assert all(spent.seconds > 0 for spent in row.rewrites.values())
    assert sum(spent.seconds for spent in row.rewrites.values()) <= row.seconds


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_changed_where_nothing_is_permitted(name: str) -> None:
    item, make, _ = CASES[name]
    module, before = make(), str(make())
    with open_journal(frozenset()) as journal:
        row = Pipeline([item], verify=False).run(module).rows[-1]
    assert (dict(row.changed), journal.entries) == ({}, [])
    assert module.graphs == parse_module(before).graphs


@pytest.mark.parametrize("name", [name for name, (_, _, expected) in CASES.items() if len(expected) > 1])
def test_one_rewrite_alone_can_be_made(name: str) -> None:
    """The first of each pass, and every other that does not build on it; numbers and ties hold all the same."""
    item, make, expected = CASES[name]
    made: list[str] = []
    for entry in expected:
        module = make()
        with open_journal([entry]) as journal:
            Pipeline([item]).run(module)
        made += journal.entries
    after_others = {"rms_norm at @forward/%n", "residual at @forward/%y"}
    assert made == [entry for entry in expected if entry not in after_others]


def test_linears_of_shared_weights_are_merged_all_or_none() -> None:
    module = toy_model()
    graph = module.graph()
    norm = graph.add("rms_norm", [graph.value("r")], {"eps": 1e-5}).result
    for name in ("q", "k"):
        linear = graph.value(name).op
        assert linear is not None
        graph.add("linear", [norm, linear.operands[1]], linear.attributes, hint=f"{name}2")
    graph.set_outputs([*graph.outputs, graph.value("q2"), graph.value("k2")])
    with open_journal(["merged at @forward/%q2"]):
        assert dict(Pipeline([FuseQKV()]).run(module.copy()).rows[-1].changed) == {}
    with open_journal(["merged at @forward/%q"]):
        assert dict(Pipeline([FuseQKV()]).run(module).rows[-1].changed) == {"merged": 4, "linear": 2}


def test_time_goes_to_the_kind_that_took_it() -> None:
    op, context = next(toy_model().graph().walk()), Context()
    with open_journal() as journal:
        time.sleep(0.01)
        context.permits("long to find", op)
        context.permits("quick", op)
        context.permits("long to make", op)
        time.sleep(0.01)
    spent = journal.spent
    assert [spent[kind].count for kind in ("long to find", "quick", "long to make")] == [1, 1, 1]
    assert spent["long to find"].seconds >= 0.01 and spent["long to make"].seconds >= 0.01
    assert spent["quick"].seconds < spent["long to find"].seconds


def test_outside_of_a_pipeline_everything_is_permitted() -> None:
    module = toy_model()
    assert Context().permits("any", next(module.graph().walk()))
    assert isinstance(current_journal(), Journal) and current_journal().entries == []


