"""Printing and parsing are each other's inverse; a text that is wrong is an IRError, whatever it is."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slmopt
from slmopt.errors import IRError
from slmopt.ir.graph import Module
from slmopt.ir.manual import example_module
from slmopt.ir.ops import registry
from slmopt.ir.text import parse_module, read_module
from slmopt.ir.verify import verify
from slmopt.testing import modules
from tests.ir.mutations import mutate
from tests.stories import MODEL, needs_stories

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


_NAMES = tuple(spec.name for spec in registry)
_SECONDS = 5.0  # for one text, on a machine that is busy; a hundredth of a second is usual


def _refuses(text: str) -> bool:
    """Whether a text is refused, by the parser or the verifier, and in bounded time; what is not prints and parses."""
    start = time.process_time()
    try:
        module = parse_module(text)
    except IRError as error:
        assert re.match(r"line \d+, column \d+: ", str(error)) and len(str(error)) < 1500
        found = True
    else:
        assert str(parse_module(str(module))) == str(module)
        try:
            verify(module)
        except IRError as error:
            found = True
            with pytest.raises(IRError, match=rf"line \d+: {re.escape(str(error))}"):
                read_module(text)
        else:
            found = False
    assert time.process_time() - start < _SECONDS
    return found


def test_ten_thousand_mutated_texts_are_refused_or_right() -> None:
    """9,200 made from an example of each op and from TEXT, whose edits reach every rule of every op."""
    generator = random.Random(7)
    texts = [TEXT, *(str(example_module(spec)) for spec in registry)]
    refused = sum(_refuses(mutate(generator.choice(texts), generator, _NAMES)) for _ in range(9200))
    assert 6000 < refused < 9200


@settings(max_examples=700, deadline=None)
@given(modules(executable=False), st.integers(0, 2**32))
def test_mutated_random_modules_are_refused_or_right(module: Module, seed: int) -> None:
    _refuses(mutate(str(module), random.Random(seed), _NAMES))


@needs_stories
def test_mutated_models_are_refused_or_right() -> None:
    generator = random.Random(11)
    module = slmopt.load(MODEL)
    texts = [str(module), str(slmopt.optimize(module, "w4", verify=False))]
    assert sum(_refuses(mutate(generator.choice(texts), generator, _NAMES)) for _ in range(150)) > 50


@pytest.mark.parametrize(
    "text",
    [
        "module @m { metadata " + '{"a": ' * 100_000,
        "module @m { graph @f(%x: f32[" + "b*" * 100_000 + "b]) { return %x } }",
        "module @m { graph @f(%x: f32[" + "b + s, " * 5000 + "1]) { %y = reshape(%x) {shape = []} : f32[] return } }",
        "module @m { graph @f(%x: f32[" + "-" * 100_000 + "1]) { return %x } }",
        "module @m { graph @f(%x: f32[b]) { %y = silu(%x) {a = " + "[" * 100_000,
        "module @m { graph @f(%x: f32[b]) { " + ", ".join(f"%y{i}" for i in range(50_000)) + " = silu(%x) : f32[b]",
        "module @m { graph @f(" + ", ".join(f"%x{i}: f32[b]" for i in range(20_000)) + ") { return %x",
        'module @m { graph @f(%x: f32[b]) { %y = silu(%x) : f32[b] loc("' + "a" * 1_000_000,
        "//" + "a" * 1_000_000,
        '"' * 100_001,
    ],
    ids=["metadata", "product", "sums", "signs", "lists", "results", "inputs", "string", "comment", "quotes"],
)
def test_long_and_deep_texts_are_refused_in_time(text: str) -> None:
    assert _refuses(text)


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
        ("module @m { graph @f(%x: f32[99999999999999999999]) { return %x } }", "does not fit into 64 bits"),
        ("module @m { graph @f(%x: f32[nan]) { return %x } }", "'nan' is no name for a dimension"),
        ("module @m { graph @f(%1: f32[b]) { return %1 } }", "a value's name begins with a letter or an underscore"),
        ("module @m { graph @f(%x, %y: f32[b]) { return %x } }", "expected :, found ','"),
        ("module @m { graph @f(%x: f32[b]) { %y, %y = silu(%x) : f32[b] return } }", "already defined"),
    ],
)
def test_messages_say_where_and_what(text: str, message: str) -> None:
    with pytest.raises(IRError, match="line 1, column") as caught:
        parse_module(text)
    assert message in str(caught.value)
