"""The pass `attention-window`: what a query sees, what stays as it is, and a cache that does not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.errors import InputError, IRError, UnsupportedError
from slmopt.interpreter import forward, initial_states, run, step_through
from slmopt.ir.text import parse_module
from slmopt.ir.verify import verify
from slmopt.layers import Layers
from slmopt.options import build_pass, describe_pass
from slmopt.passes.attention.attention_window import AttentionWindow
from slmopt.passes.incrementalize import Incrementalize
from slmopt.pipeline import Pipeline
from tests.passes.golden import body_of, check_untouched
from tests.passes.test_incrementalize import attention, ids_of
from tests.passes.toys import IDS, apply, relative_error, toy

QKV = "%q: f32[b, 4, s, 8], %k: f32[b, 2, s, 8], %v: f32[b, 2, s, 8]"


def plain(options: str = "", operands: str = "") -> str:
    return f"""
        %a = attention(%q, %k, %v{operands}) {{scale = 0.35{options}}} : f32[b, 4, s, 8]
        return %a"""


def layered(*options: str) -> str:
    """Layers of one attention each, with numbers in their paths."""
    lines, last = ["%x = embedding(%ids, weight @table : f32[50, 32]) : f32[b, s, 32]"], "%x"
    for number, text in enumerate(options):
        lines += [
            f"%h{number} = reshape({last}) {{shape = [b, s, 4, 8]}} : f32[b, s, 4, 8]",
            f"%p{number} = permute(%h{number}) {{axes = [0, 2, 1, 3]}} : f32[b, 4, s, 8]",
            f"%a{number} = attention(%p{number}, %p{number}, %p{number}) {{scale = 0.35{text}}} : f32[b, 4, s, 8] "
            f'loc("model.layers.{number}.attn")',
            f"%o{number} = permute(%a{number}) {{axes = [0, 2, 1, 3]}} : f32[b, s, 4, 8]",
            f"%y{number} = reshape(%o{number}) {{shape = [b, s, 32]}} : f32[b, s, 32]",
        ]
        last = f"%y{number}"
    logits = f"%logits = linear({last}, weight @table : f32[50, 32]) : f32[b, s, 50]"
    return "\n".join([*lines, logits, "return %logits"])


def windows(module: Any) -> list[tuple[Any, Any]]:
    return [
        (op.attributes["window"], op.attributes["sink"]) for op in module.graph().walk() if op.name == "attention"
    ]  # fmt: skip


# --- the rewrite -----------------------------------------------------------------------------------------------------
def test_golden() -> None:
    module = toy(plain(", softcap = 5.0", ", _, _, weight @slopes : f32[4]"), signature=QKV)
    found, changes = apply(module, AttentionWindow(size=3, sink=2))
    assert changes == {"attention": 1}
    assert body_of(found.graph()) == (
        "  %a = attention(%q, %k, %v, _, _, weight @slopes : f32[4]) {scale = 0.35, mask = \"causal\", window = 3, "
        "chunk = none, sink = 2, softcap = 5.0, ring = false} : f32[b, 4, s, 8]\nreturn %a"
    ).strip()
    assert apply(found, AttentionWindow(size=3, sink=2))[1] == {}


@pytest.mark.parametrize("sink", [0, 1, 3])
def test_a_query_sees_the_latest_positions_and_the_first(sink: int) -> None:
    module, _ = apply(toy(plain(), signature=QKV), AttentionWindow(size=3, sink=sink))
    q, k, v = (torch.randn(2, heads, 9, 8, generator=torch.Generator().manual_seed(1)) for heads in (4, 2, 2))
    distance = torch.arange(9)[:, None] - torch.arange(9)[None, :]
    seen = (distance >= 0) & ((distance < 3) | (torch.arange(9)[None, :] < sink))
    scores = (q @ k.repeat_interleave(2, 1).mT * 0.35).masked_fill(~seen, float("-inf"))
    expected = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    assert relative_error(run(module, "forward", [q, k, v])[0], expected) < 1e-6


@pytest.mark.parametrize(
    ("options", "operands", "signature"),
    [
        (', mask = "full"', "", QKV),
        (", chunk = 4", "", QKV),
        (", window = 128", "", QKV),
        (", window = 3", "", QKV),
        ("", ", _, %p", f"{QKV}, %p: i64[]"),
        ("", "", QKV.replace("2, s, 8", "2, 7, 8")),
    ],
)
def test_other_attention_stays_as_it_is(options: str, operands: str, signature: str) -> None:
    check_untouched(AttentionWindow(), plain(options, operands), signature)


def test_some_layers() -> None:
    module = toy(layered("", ", window = 5", "", ""), signature=IDS)
    found, changes = apply(module, AttentionWindow(size=7, sink=1, layers=Layers("0-1,3")))
    assert windows(found) == [(7, 1), (5, None), (None, None), (7, 1)]
    assert changes == {"attention": 2}
    found, _ = apply(found, AttentionWindow(size=6, sink=0, layers=Layers("2-")))
    assert windows(found) == [(7, 1), (5, None), (6, None), (6, None)]


# --- what a user may get wrong ---------------------------------------------------------------------------------------
def test_options_are_read_from_text() -> None:
    item = build_pass('attention-window{size=64, sink=0, layers="0,2-3"}', lambda name: AttentionWindow)
    assert item == AttentionWindow(64, 0, Layers("0,2-3"))
    assert describe_pass(item) == 'attention-window{size=64,sink=0,layers="0,2-3"}'
    for text, message in (("size=0", "size.*at least 1"), ("sink=-1", "sink.*at least 0"), ("layers=x", "no layers")):
        with pytest.raises(InputError, match=message):
            build_pass(f"attention-window{{{text}}}", lambda name: AttentionWindow)


def test_layers_that_cannot_have_a_window_are_named() -> None:
    module = toy(layered("", ', mask = "full"', ", chunk = 3"), signature=IDS)
    with pytest.raises(UnsupportedError, match=r"attention-window: layer 1: %a1 = attention .* is not causal"):
        apply(module, AttentionWindow(layers=Layers("0-1")))
    with pytest.raises(UnsupportedError, match=r"layer 2: .* sees chunks"):
        apply(module, AttentionWindow(layers=Layers("2")))
    with pytest.raises(InputError, match="there is no layer 3; the layers are 0 to 2"):
        apply(module, AttentionWindow(layers=Layers("3")))
    assert windows(apply(module, AttentionWindow())[0]) == [(128, 4), (None, None), (None, None)]


def test_a_step_that_was_derived_before_is_an_error() -> None:
    module, _ = apply(toy(attention(), 0, IDS), Incrementalize())
    with pytest.raises(UnsupportedError, match="put attention-window before incrementalize"):
        AttentionWindow().run(module, None)  # type: ignore[arg-type]
    assert Pipeline([AttentionWindow(), Incrementalize()]).run(toy(attention(), 0, IDS)).rows[-1].changed["state"] == 2


def test_attention_that_cannot_be_is_an_error() -> None:
    for options, message in (
        (", sink = 2", "there is no window"), (", window = 3, sink = 0", "sink must be none or a positive number"),
        (", ring = true", "a ring holds the keys of a causal window"),
        (', window = 3, mask = "full", ring = true', "a ring holds the keys of a causal window"),
    ):  # fmt: skip
        with pytest.raises(IRError, match=message):
            verify(toy(plain(options), signature=QKV))
    cached = "%c: f32[1, 2, 9, 8], %x: f32[1, 2, 4, 8], %p: i64[]"
    with pytest.raises(IRError, match="a step of 4 tokens, window = 6, sink = 1 needs a ring of 10 slots"):
        verify(toy("%n = cache_update(%c, %x, %p) {window = 6, sink = 1} : f32[1, 2, 9, 8]\nreturn %n", 0, cached))


# --- the ring --------------------------------------------------------------------------------------------------------
@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    return draw(st.lists(st.integers(1, 7), min_size=1, max_size=9).filter(lambda parts: sum(parts) <= 30))


@given(splits(), st.integers(1, 6), st.integers(0, 4), st.sampled_from(["", ", _, _, weight @slopes : f32[4]"]))
@settings(deadline=None, max_examples=60)
def test_step_over_the_parts_is_forward_over_the_whole(parts: list[int], size: int, sink: int, tail: str) -> None:
    module, _ = apply(toy(attention(tail=tail), 3, IDS), AttentionWindow(size, sink), Incrementalize())
    ids = ids_of(2, sum(parts), 1)
    assert relative_error(step_through(module, ids, parts), forward(module, ids)) < 1e-4


@pytest.mark.parametrize(("cache", "error"), [("f16", 2e-3), ("q8", 2e-2)])
def test_rings_of_narrower_types_are_near_and_exact_unrounded(cache: str, error: float) -> None:
    module, _ = apply(toy(attention(), 3, IDS), AttentionWindow(4, 2), Incrementalize(cache))
    ids = ids_of(2, 30, 1)
    expected = forward(module, ids)
    for parts in ([30], [1] * 30, [7, 1, 7, 7, 7, 1]):
        assert relative_error(step_through(module, ids, parts), expected) < error
        assert relative_error(step_through(module, ids, parts, rounded=False), expected) < 1e-4


def test_a_ring_does_not_grow_with_the_context() -> None:
    module, _ = apply(toy(attention(), 3, IDS), AttentionWindow(4, 2), Incrementalize())
    step = module.graph("step")
    assert [str(value.type) for value in step.inputs[2:]] == ["f32[b, 2, m + 5, 8]"] * 2
    assert parse_module(str(module)).graph("step") == step
    for capacity in (30, 3000):
        assert [list(state.shape) for state in initial_states(step, 2, capacity, chunk=7)] == [[2, 2, 12, 8]] * 2


def test_more_tokens_than_a_ring_has_room_for_are_an_error() -> None:
    module, _ = apply(toy(attention(), 3, IDS), AttentionWindow(4, 2), Incrementalize())
    step = module.graph("step")
    states = initial_states(step, 1, 30, chunk=3)
    run(module, step, [ids_of(1, 3, 0), torch.tensor(0), *states])
    with pytest.raises(IRError, match="a step of 4 tokens, window = 4, sink = 2 needs a ring of 9 slots, and it has 8"):
        run(module, step, [ids_of(1, 4, 0), torch.tensor(0), *states])
