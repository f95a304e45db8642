"""Printing and parsing are each other's inverse; a text that is wrong is an IRError, whatever it is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings

from slmopt.errors import IRError
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.ir.verify import verify
from slmopt.testing import modules

TEXT = """module @toy {
  metadata {"bos_token_id": 1, "name": "a \\"toy\\"", "nested": [1, {"x": null}]}
  graph @forward(%ids: i64[b, s]) {
    %e = embedding(%ids, weight @embed : q4g32[16, 8]) : f32[b, s, 8] loc("model.embed")
    %n = rms_norm(%e, _) {eps = 1e-06, output = "f32"} : f32[b, s, 8]
    %c = constant() {value = -0.5, element = "f32"} : f32[]
    %m = mul(%n, %c) : f32[b, s, 8]
    %p = permute(%m) {axes = [1, 0, 2]} : f32[s, b, 8]
    %r = reshape(%p) {shape = [b*s, 8]} : f32[b*s, 8]
    %y = linear(%r, weight @"odd key" : f32[16, 8]) {activation = none, act = none} : f32[b*s, 16]
    return %y
  }
  graph @step(%x: f32[b, 2*t - 1], state %cache: f16[b, c]) {
    return %x, %cache
  }
}
"""


def test_the_printed_text_is_what_was_parsed() -> None:
    module = parse_module(TEXT)
    verify(module)
    assert str(module) == TEXT
    assert parse_module(str(module)) == module


@settings(max_examples=100, deadline=None)
@given(modules(executable=False))
def test_print_and_parse_are_inverse(module: Module) -> None:
    text = str(module)
    parsed = parse_module(text)
    assert parsed == module
    assert str(parsed) == text
    assert [graph.states for graph in parsed.graphs.values()] == [graph.states for graph in module.graphs.values()]
    verify(parsed)


def _mutated(generator: random.Random) -> str:
    """TEXT with one to three edits: bytes dropped, doubled, swapped for others, or parts of it moved about."""
    text = TEXT
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(len(text))
        end = min(len(text), place + generator.randint(1, 12))
        kind = generator.randrange(4)
        if kind == 0:
            text = text[:place] + text[end:]
        elif kind == 1:
            text = text[:end] + text[place:]
        elif kind == 2:
            text = text[:place] + generator.choice('{}[]()%@"\\,:=+-*._0x9 \n\0é') + text[place + 1 :]
        else:
            other = generator.randrange(len(text))
            text = text[:place] + text[other : other + 10] + text[end:]
    return text


def test_a_thousand_mutated_texts_parse_or_raise_an_ir_error() -> None:
    generator = random.Random(7)
    refused = 0
    for _ in range(1000):
        text = _mutated(generator)
        try:
            module = parse_module(text)
        except IRError as error:
            refused += 1
            assert str(error).startswith("line ")
        else:
            assert parse_module(str(module)) == module
    assert refused > 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: expected module, found 'the end of the text'"),
        ("module @m {", "expected }"),
        ("module @m { graph @f() { return } graph @f() { return } }", "graph @f is defined twice"),
        ("module @m { graph @f(%x: f32[b]) { %y = add(%x, %z) : f32[b] return %y } }", "not defined before here"),
        ("module @m { graph @f(%x: f32[b]) { %x = silu(%x) : f32[b] return %x } }", "already defined"),
        ("module @m { graph @f(%x: f32[b]) { %y = sill(%x) : f32[b] return %y } }", "did you mean 'silu'?"),
        ("module @m { graph @f(%x: f33[b]) { return %x } }", "unknown element type 'f33'"),
        ("module @m { graph @f(%x: f32[b]) { %y = gelu(%x) {tanh = 1} : f32[b] return %y } }", "no attribute 'tanh'"),
        ("module @m { graph @f(state %x: f32[b], %y: f32[b]) { return } }", "states come last"),
        ("module @m { metadata [1] }", "expected a JSON object"),
        ("module @m {} trailing", "expected end"),
    ],
)
def test_messages_say_where_and_what(text: str, message: str) -> None:
    with pytest.raises(IRError, match="line 1, column") as caught:
        parse_module(text)
    assert message in str(caught.value)
