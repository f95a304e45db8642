"""Passes as text: parsing, types, suggestions, and back to text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.options import build_pass, describe_pass, list_options, parse_pass, split_passes
from slmopt.pipeline import Context, Pass


@dataclass(frozen=True)
class Sample(Pass):
    """x -> x"""

    name: ClassVar[str] = "sample"

    bits: int = 4
    rate: float = 0.5
    on: bool = True
    layers: str = ""
    limit: int | None = None
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return {}


def lookup(name: str) -> type[Pass]:
    assert name == "sample"
    return Sample


def build(text: str) -> Pass:
    return build_pass(text, lookup)


def test_every_type_of_option() -> None:
    text = 'sample{bits=8, rate=1e-3,on=false, layers="0-3, 5",limit=7,kind=b,sizes=[1, 2]}'
    assert build(text) == Sample(8, 0.001, False, "0-3, 5", 7, "b", (1, 2))
    assert build("sample") == build("sample{}") == Sample()
    assert build("sample{limit=none,layers=0-3,rate=2}") == Sample(rate=2.0, layers="0-3")
    assert build(r'sample{layers="a\"}{b"}') == Sample(layers='a"}{b')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample{bit=3}", "pass sample has no option 'bit'; did you mean 'bits'?; it takes bits, rate,"),
        ("sample{bits=4.5}", "pass sample: option bits must be integer, got 4.5"),
        ("sample{bits=true}", "option bits must be integer, got true"),
        ("sample{rate=fast}", "option rate must be number, got fast"),
        ("sample{on=1}", "option on must be true|false, got 1"),
        ("sample{limit=some}", "option limit must be integer|none, got some"),
        ("sample{kind=c}", "option kind must be a|b, got c"),
        ("sample{sizes=[1,x]}", "option sizes must be integer, got x"),
        ("sample{bits=4,bits=5}", "gives the option 'bits' twice"),
        ("sample{bits}", "'bits' is not of the form option=value"),
        ("sample{bits=}", "'bits=' is not of the form option=value"),
        ("sample{bits=4", "'sample{bits=4' is no pass"),
        ("Sample", "'Sample' is no pass: expected a name"),
        ("", "'' is no pass"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build(text)


def test_values_from_toml_are_checked_too() -> None:
    assert build_pass("sample{bits=2}", lookup, {"bits": 8, "rate": 1, "sizes": [3]}) == Sample(2, 1.0, sizes=(3,))
    for defaults in ({"bits": True}, {"bits": "many"}, {"on": 1}, {"kind": 3}, {"limit": 1.5}):
        with pytest.raises(InputError, match=r"pass sample: option .* must be"):
            build_pass("sample", lookup, defaults)


def test_lists_are_split_outside_braces_and_quotes() -> None:
    text = 'raise,canonicalize  quantize{bits=4, layers="a, {b"} , fuse'
    assert split_passes(text) == ["raise", "canonicalize", 'quantize{bits=4, layers="a, {b"}', "fuse"]
    assert split_passes(" , ") == []


def test_options_are_listed_from_the_fields() -> None:
    assert [(o.name, o.type, o.default) for o in list_options(Sample)] == [
        ("bits", "integer", "4"), ("rate", "number", "0.5"), ("on", "true|false", "true"), ("layers", "text", '""'),
        ("limit", "integer|none", "none"), ("kind", "a|b", "a"), ("sizes", "[integer,...]", "[]"),
    ]  # fmt: skip


def test_a_pass_that_is_no_dataclass_is_told_so() -> None:
    class Bare(Pass):
        name = "bare"

    with pytest.raises(InputError, match="decorate Bare with @dataclass"):
        build_pass("bare", lambda name: Bare)


@given(
    st.builds(
        Sample, st.integers(-99, 99), st.floats(0, 9, allow_nan=False), st.booleans(),
        st.text(st.characters(codec="utf-8"), max_size=8),
        st.none() | st.integers(0, 9), st.sampled_from(["a", "b"]), st.lists(st.integers(0, 9), max_size=3).map(tuple),
    )
)  # fmt: skip
def test_a_pass_and_its_text_are_the_same(item: Sample) -> None:
    assert build(describe_pass(item)) == item
    assert split_passes(describe_pass(item)) == [describe_pass(item)]
    assert parse_pass(describe_pass(item)).name == "sample"
