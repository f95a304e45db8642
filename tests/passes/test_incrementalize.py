"""The pass `incrementalize`: stepping over the parts of a sequence gives what the whole sequence gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.errors import InputError, IRError, UnsupportedError
from slmopt.interpreter import forward, step_through
from slmopt.ir import Graph, tensor
from slmopt.ir.ops.language import quantize_rows
from slmopt.ir.text import parse_module
from slmopt.passes.incrementalize import Incrementalize
from tests.passes.toys import IDS, apply, graph_text, relative_error, toy


def attention(options: str = "", *, extra: str = "", tail: str = "", heads: int = 4) -> str:
    """One layer with grouped heads, and rotary positions computed from arange; `options` go to its attention."""
    return f"""
    %x = embedding(%ids, weight @table : f32[50, 32]) : f32[b, s, 32]
    %i = arange() {{start = 0, stop = s, element = "f32"}} : f32[s]
    %column = reshape(%i) {{shape = [s, 1]}} : f32[s, 1]
    %angle = mul(%column, weight @frequency : f32[8]) : f32[s, 8]
    %cos = cos(%angle) : f32[s, 8]
    %sin = sin(%angle) : f32[s, 8]
    {extra}
    %q = linear(%x, weight @q : f32[32, 32]) : f32[b, s, 32]
    %k = linear(%x, weight @k : f32[16, 32]) : f32[b, s, 16]
    %v = linear(%x, weight @v : f32[16, 32]) : f32[b, s, 16]
    %q4 = reshape(%q) {{shape = [b, s, 4, 8]}} : f32[b, s, 4, 8]
    %k4 = reshape(%k) {{shape = [b, s, 2, 8]}} : f32[b, s, 2, 8]
    %v4 = reshape(%v) {{shape = [b, s, 2, 8]}} : f32[b, s, 2, 8]
    %qp = permute(%q4) {{axes = [0, 2, 1, 3]}} : f32[b, 4, s, 8]
    %kp = permute(%k4) {{axes = [0, 2, 1, 3]}} : f32[b, 2, s, 8]
    %vp = permute(%v4) {{axes = [0, 2, 1, 3]}} : f32[b, 2, s, 8]
    %qr = rope(%qp, %cos, %sin) : f32[b, 4, s, 8]
    %kr = rope(%kp, %cos, %sin) : f32[b, 2, s, 8]
    %a = attention(%qr, %kr, %vp{tail}) {{scale = 0.35{options}}} : f32[b, 4, s, 8]
    %ap = permute(%a) {{axes = [0, 2, 1, 3]}} : f32[b, s, 4, 8]
    %flat = reshape(%ap) {{shape = [b, s, 32]}} : f32[b, s, 32]
    %y = linear(%flat, weight @table : f32[50, 32]) : f32[b, s, 50]
    return %y
    """


GRAPHS = {
    "causal": attention(),
    "window": attention(", window = 3"),
    "chunk": attention(", chunk = 4"),
    "softcap": attention(", softcap = 2.0"),
    "alibi": attention(tail=", _, _, weight @slopes : f32[4]"),
    "sinks": attention(tail=", _, _, _, weight @sinks : f32[4]"),
    "learned positions": attention(extra="""
    %j = arange() {start = 2, stop = s + 2, element = "i64"} : i64[s]
    %p = embedding(%j, weight @positions : f32[40, 32]) : f32[s, 32]
    %x2 = add(%x, %p) : f32[b, s, 32]""").replace("linear(%x,", "linear(%x2,"),
    "flattened tokens": attention(extra="""
    %rows = reshape(%x) {shape = [b*s, 32]} : f32[b*s, 32]
    %turned = linear(%rows, weight @r : f32[32, 32]) : f32[b*s, 32]
    %x2 = reshape(%turned) {shape = [b, s, 32]} : f32[b, s, 32]""").replace("linear(%x,", "linear(%x2,"),
    "no positions at all": """
    %x = embedding(%ids, weight @table : f32[50, 32]) : f32[b, s, 32]
    %y = linear(%x, weight @table : f32[50, 32]) : f32[b, s, 50]
    return %y""",
}  # fmt: skip


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    """How a sequence of up to 12 tokens is cut into parts."""
    return draw(st.lists(st.integers(1, 6), min_size=1, max_size=6).filter(lambda parts: sum(parts) <= 12))


def ids_of(batch: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from(sorted(GRAPHS)), splits(), st.integers(1, 3), st.integers(0, 99))
@settings(deadline=None)
def test_step_over_the_parts_is_forward_over_the_whole(name: str, parts: list[int], batch: int, seed: int) -> None:
    module, _ = apply(toy(GRAPHS[name], seed, IDS), Incrementalize())
    ids = ids_of(batch, sum(parts), seed)
    assert relative_error(step_through(module, ids, parts, capacity=13), forward(module, ids)) < 1e-4


@given(splits())
@settings(deadline=None, max_examples=20)
def test_a_half_precision_cache_is_near(parts: list[int]) -> None:
    module, _ = apply(toy(GRAPHS["causal"], 0, IDS), Incrementalize(cache="f16"))
    ids = ids_of(2, sum(parts), 1)
    assert relative_error(step_through(module, ids, parts), forward(module, ids)) < 2e-3  # float16: 2^-11 a number


@given(splits())
@settings(deadline=None, max_examples=20)
def test_a_cache_of_codes_is_near_and_exact_unrounded(parts: list[int]) -> None:
    module, _ = apply(toy(GRAPHS["causal"], 0, IDS), Incrementalize(cache="q8"))
    ids = ids_of(2, sum(parts), 1)
    expected = forward(module, ids)
    assert relative_error(step_through(module, ids, parts), expected) < 2e-2  # half a step of amax / 127 a number
    assert relative_error(step_through(module, ids, parts, rounded=False), expected) < 1e-4


def test_a_cache_of_codes_holds_what_quantize_rows_gives() -> None:
    module, _ = apply(toy(GRAPHS["causal"], 0, IDS), Incrementalize(cache="q8"))
    step = module.graph("step")
    assert [str(value.type) for value in step.inputs[2:]] == ["q8g32[b, 2, c, 8]"] * 2
    assert parse_module(str(module)).graph("step") == step
    (update, _) = [op for op in step.walk() if op.name == "cache_update"]
    cache, new = torch.zeros(1, 2, 6, 8), torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    following = update.spec.reference(update, cache, new, torch.tensor(2))
    assert following[:, :, 2:5].equal(quantize_rows(new))
    assert not following[:, :, [0, 1, 5]].any()


def test_a_cache_of_other_codes_is_an_error() -> None:
    graph = Graph("g")
    types = [tensor("q4g32", 1, 2, "c", 8), tensor("f32", 1, 2, "t", 8), tensor("i64")]
    values = [graph.add_input(name, type) for name, type in zip("cxp", types, strict=True)]
    with pytest.raises(IRError, match="a cache of codes is q8g32"):
        graph.add("cache_update", values)


def test_golden() -> None:
    module = toy("""
    %x = embedding(%ids, weight @table : f32[50, 32]) : f32[b, s, 32]
    %i = arange() {start = 0, stop = s, element = "f32"} : f32[s]
    %c = reshape(%i) {shape = [s, 1]} : f32[s, 1]
    %z = mul(%x, %c) : f32[b, s, 32]
    %h = reshape(%z) {shape = [b, s, 4, 8]} : f32[b, s, 4, 8]
    %p = permute(%h) {axes = [0, 2, 1, 3]} : f32[b, 4, s, 8]
    %a = attention(%p, %p, %p) {scale = 0.35, window = 6} : f32[b, 4, s, 8] loc("layers.0.attn")
    return %a""", signature=IDS)  # fmt: skip
    before = str(module.graph())
    found, changes = apply(module, Incrementalize(cache="f16"))
    assert str(found.graph()) == before
    assert graph_text(found.graph("step")) == graph_text("""
        graph @step(%ids: i64[b, t], %position: i64[], state %a_keys: f16[b, 4, m + 5, 8], state %a_values: f16[b, 4, m + 5, 8]) {
          %x = embedding(%ids, weight @table : f32[50, 32]) : f32[b, t, 32]
          %i = arange() {start = 0, stop = t, element = "f32"} : f32[t]
          %i_2 = cast(%position) {element = "f32"} : f32[]
          %i_3 = add(%i, %i_2) : f32[t]
          %c = reshape(%i_3) {shape = [t, 1]} : f32[t, 1]
          %z = mul(%x, %c) : f32[b, t, 32]
          %h = reshape(%z) {shape = [b, t, 4, 8]} : f32[b, t, 4, 8]
          %p = permute(%h) {axes = [0, 2, 1, 3]} : f32[b, 4, t, 8]
          %a_keys_next = cache_update(%a_keys, %p, %position) {window = 6, sink = none} : f16[b, 4, m + 5, 8] loc("layers.0.attn")
          %a_values_next = cache_update(%a_values, %p, %position) {window = 6, sink = none} : f16[b, 4, m + 5, 8] loc("layers.0.attn")
          %a = attention(%p, %a_keys_next, %a_values_next, _, %position, _, _) {scale = 0.35, mask = "causal", window = 6, chunk = none, sink = none, softcap = none, ring = true} : f32[b, 4, t, 8] loc("layers.0.attn")
          return %a, %a_keys_next, %a_values_next
        }
    """)  # noqa: E501
    assert changes == {"arange": 1, "attention": 1, "state": 2}


def test_it_runs_twice_and_replaces_the_step_graph() -> None:
    once, _ = apply(toy(GRAPHS["causal"], 0, IDS), Incrementalize())
    twice, _ = apply(once, Incrementalize(cache="f16"), Incrementalize())
    assert twice == once


def test_the_sequence_axis_is_named_by_the_metadata() -> None:
    module = toy("%y = embedding(%ids, weight @table : f32[50, 8]) : f32[b, n, 8]\nreturn %y", 0, "%ids: i64[b, n]")
    module.metadata["sequence"] = "n"
    found, _ = apply(module, Incrementalize())
    assert str(found.graph("step").outputs[0].type) == "f32[b, t, 8]"


UNSUPPORTED = {
    r"op without a step rule: cumsum at model.sum \(%y\)":
        '%y = cumsum(%x) {axis = 1} : f32[b, s, 64] loc("model.sum")',
    r"op without a step rule: softmax": "%y = softmax(%x) {axis = 1} : f32[b, s, 64]",
    r"op without a step rule: slice": "%y = slice(%x) {axis = 1, start = 1, stop = s} : f32[b, s - 1, 64]",
    r"op without a step rule: reshape": "%y = reshape(%x) {shape = [b, 64, s]} : f32[b, 64, s]",
    r"op without a step rule: dimension": """
        %n = dimension() {value = s} : i64[]
        %f = cast(%n) {element = "f32"} : f32[]
        %y = mul(%x, %f) : f32[b, s, 64]""",
    r"op without a step rule: attention_mask":
        "%y = attention_mask() {queries = s, keys = s} : f32[1, 1, s, s]",
    r"counts s \+ 1 numbers, not one for each position":
        '%y = arange() {start = 0, stop = s + 1, element = "f32"} : f32[s + 1]',
    r"attention \(at layers.0\) is not causal": """
        %q = reshape(%x) {shape = [b, 1, s, 64]} : f32[b, 1, s, 64]
        %y = attention(%q, %q, %q) {scale = 1.0, mask = "full"} : f32[b, 1, s, 64] loc("layers.0")""",
    r"adds a dense bias": """
        %q = reshape(%x) {shape = [b, 1, s, 64]} : f32[b, 1, s, 64]
        %m = full() {shape = [s, s], value = 0.5, element = "f32"} : f32[s, s]
        %y = attention(%q, %q, %q, %m) {scale = 1.0} : f32[b, 1, s, 64]""",
}  # fmt: skip


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_mixing_without_a_rule_is_an_error_that_names_the_op(message: str) -> None:
    module = toy(f"{UNSUPPORTED[message]}\nreturn %y")
    before = str(module)
    with pytest.raises(UnsupportedError, match=message):
        apply(module, Incrementalize())
    assert str(module) == before


def test_mixing_other_axes_is_no_error() -> None:
    module = toy("""
        %sum = cumsum(%x) {axis = 2} : f32[b, s, 64]
        %part = slice(%sum) {axis = 2, start = 3, stop = 9} : f32[b, s, 6]
        %y = softmax(%part) {axis = -1} : f32[b, s, 6]
        return %y""")
    found, changes = apply(module, Incrementalize())
    assert changes == {"step": 1}
    assert [op.name for op in found.graph("step").walk()] == ["cumsum", "slice", "softmax"]


def test_keys_that_do_not_grow_need_no_cache() -> None:
    module = toy("""
        %q = reshape(%x) {shape = [1, 1, s, 64]} : f32[1, 1, s, 64]
        %a = attention(%q, weight @k : f32[1, 1, 5, 64], weight @v : f32[1, 1, 5, 64]) {scale = 0.2} : f32[1, 1, s, 64]
        %y = reshape(%a) {shape = [1, s, 64]} : f32[1, s, 64]
        return %y""", signature="%x: f32[1, s, 64]")  # fmt: skip
    found, changes = apply(module, Incrementalize())
    assert changes == {"attention": 1}
    x = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0))
    assert relative_error(step_through(found, x, [2, 4, 1]), forward(found, x)) < 1e-4


def test_a_model_that_looks_at_no_other_position_has_a_step_too() -> None:
    module = toy("%y = neg(%x) : f32[b, s, 64]\nreturn %y")
    found, changes = apply(module, Incrementalize())
    assert changes == {"step": 1}
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    assert step_through(found, x, [2, 3]).equal(forward(found, x))


def test_wrong_use() -> None:
    with pytest.raises(InputError, match="f8"):
        Incrementalize(cache="f8")
    stateful = toy("%y = neg(%x) : f32[b, s, 64]\nreturn %y, %c", signature="%x: f32[b, s, 64], state %c: f32[b, 3]")
    with pytest.raises(UnsupportedError, match="has states already"):
        apply(stateful, Incrementalize())
    with pytest.raises(UnsupportedError, match="no axis named 's'"):
        apply(toy("%y = neg(%x) : f32[4, 64]\nreturn %y", signature="%x: f32[4, 64]"), Incrementalize())
    with pytest.raises(IRError, match="already has a dimension 't'"):
        apply(toy("%y = neg(%x) : f32[t, s]\nreturn %y", signature="%x: f32[t, s]"), Incrementalize())
