"""Bisection: planted faults are found in long recipes, by one run, down to the rewrite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slmopt
from slmopt.bisection import Finding
from slmopt.errors import ContractError, InputError
from slmopt.ir.graph import Module
from slmopt.passes.canonicalize import Canonicalize
from slmopt.pipeline import Pass, Pipeline
from tests.bisection.faults import Expand, Fails, Harmless, Marks, NeedsMore, Rounds, Scales, layered_model

_LAYERS = 6
_MODEL = layered_model(_LAYERS)


def _recipe(fault: Pass, position: int, length: int = 30) -> list[Pass]:
    """Harmless passes, some that do nothing by now, and a fault."""
    benign: list[Pass] = [Canonicalize() if number % 7 == 3 else Harmless(number) for number in range(length - 1)]
    return [*benign[:position], fault, *benign[position:]]


@pytest.fixture(scope="module")
def runs() -> Iterator[list[int]]:
    """How many passes each run of a pipeline was for."""
    found: list[int] = []
    run = Pipeline.run

    def count(self: Pipeline, *arguments: Any, **options: Any) -> Any:
        found.append(len(self.passes))
        return run(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "run", count)
        yield found


def _search(module: Module, recipe: list[Pass], check: str = "outputs") -> Finding:
    found = slmopt.bisect(module, recipe, check)
    assert found is not None
    return found


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 29), st.integers(0, _LAYERS - 1))
def test_a_wrong_rule_among_thirty_passes(runs: list[int], position: int, layer: int) -> None:
    runs.clear()
    found = _search(_MODEL, _recipe(Expand((layer,)), position))
    assert (found.index, found.name) == (position, f"expand{{wrong=[{layer}]}}")
    assert (found.means, found.names) == ("rewrites", (f"expand at @forward/%a{layer}",))
    assert found.candidates == _LAYERS
    assert len(runs) <= 6 and found.pipeline_runs == runs.count(30) == 1
    assert found.evaluations <= 2 + 5 + 6  # both ends, five halvings of 30, the rewrites
    assert found.before.holds and not found.after.holds
    assert found.isolated is not None and found.isolated.value == pytest.approx(found.after.value)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 29), st.integers(0, _LAYERS - 1))
def test_a_wrong_derivation_in_a_pass_that_asks_nobody(position: int, layer: int) -> None:
    found = _search(_MODEL, _recipe(Scales(layer), position))
    assert found.index == position
    assert (found.means, found.names) == ("definitions", (f"@forward/%d{layer}",))
    assert found.candidates == _LAYERS


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 29), st.sets(st.integers(0, _LAYERS - 1), min_size=1, max_size=1))
def test_one_weight_that_is_rounded_too_far(position: int, layers: set[int]) -> None:
    found = _search(_MODEL, _recipe(Rounds(tuple(layers)), position), "outputs<=2e-2")
    assert (found.index, found.means) == (position, "rewrites")
    assert found.names == tuple(f"round at @forward/%u{layer}" for layer in layers)


def test_errors_that_only_add_up_are_found_together() -> None:
    """Neither layer alone goes over the limit."""
    alone = [_search(_MODEL, [Expand((layer,))], "outputs<=1e-9").after.value or 0.0 for layer in (1, 4)]
    both = _search(_MODEL, [Expand((1, 4))], "outputs<=1e-9").after.value or 0.0
    assert both > max(alone)
    found = _search(_MODEL, _recipe(Expand((1, 4)), 11), f"outputs<={(both + max(alone)) / 2}")
    assert found.index == 11
    assert found.names == ("expand at @forward/%a1", "expand at @forward/%a4")


@pytest.mark.parametrize("layer", [0, 3])
def test_a_pass_that_raises(layer: int) -> None:
    found = _search(_MODEL, _recipe(Fails(layer), 17))
    assert (found.index, found.raised) == (17, True)
    assert found.names == (f"expand at @forward/%a{layer}",)
    assert found.candidates == layer + 1  # those before it, and its own
    assert "ZeroDivisionError: a planted fault" in found.after.words


def test_what_breaks_before_a_pass_raises_comes_first() -> None:
    found = _search(_MODEL, [Harmless(), Expand((2,)), Fails(2), Scales(1)])
    assert (found.index, found.raised) == (1, False)


def test_a_pass_that_cannot_be_taken_apart_is_named_whole() -> None:
    found = slmopt.bisect(_MODEL, [Harmless(), Marks(), Harmless(1)], command="! grep -q planted {}")
    assert found is not None
    assert (found.index, found.means, found.names, found.isolated) == (1, "pass", (), None)
    assert "the whole pass" in str(found)


def test_nothing_breaks() -> None:
    assert slmopt.bisect(_MODEL, _recipe(Scales(), 4), "outputs") is None


def test_the_module_stays_as_it_is() -> None:
    module = layered_model()
    text, keys = str(module), list(module.weights)
    _search(module, [Scales(2), Expand((1,))])
    assert str(module) == text
    assert list(module.weights) == keys
    assert module.ledger is None


def test_the_finding_says_it_all() -> None:
    found = _search(_MODEL, [Harmless(), Expand((2,))])
    text = str(found)
    assert "pass 2 of 2, expand{wrong=[2]}, breaks outputs" in text
    assert "1 of its 6 rewrites suffice" in text
    assert "+ %a2_3 = mul" in text or "+ %a2 = mul" in text
    told = found.to_json()
    assert told["index"] == 1 and told["names"] == ["expand at @forward/%a2"]
    assert told["after"]["value"] == found.after.value and told["reproducer"] is None


@pytest.mark.parametrize(("check", "words"), [
    ("output<=3", "did you mean 'outputs'?"),
    ("perplexity<=+3%", "needs a text"),
    ("accuracy>=-1%", "needs a text"),
])  # fmt: skip
def test_wrong_checks(check: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        slmopt.bisect(_MODEL, [Harmless()], check)


def test_an_order_that_cannot_be_is_refused() -> None:
    with pytest.raises(ContractError, match="marks"):
        slmopt.bisect(_MODEL, [Harmless(), NeedsMore()], "outputs")


def test_an_original_that_breaks_the_property_is_refused() -> None:
    with pytest.raises(InputError, match="the original itself breaks"):
        slmopt.bisect(_MODEL, [Harmless()], command="exit 3")


def test_a_command_that_cannot_tell_is_refused() -> None:
    with pytest.raises(InputError, match="exits with 125"):
        slmopt.bisect(_MODEL, [Harmless()], command="exit 125")


def test_a_check_or_a_command() -> None:
    with pytest.raises(InputError, match="either a check"):
        slmopt.bisect(_MODEL, [Harmless()])
    with pytest.raises(InputError, match="no passes"):
        slmopt.bisect(_MODEL, [], "outputs")


def test_a_command_sees_text_and_weights() -> None:
    found = slmopt.bisect(
        _MODEL, _recipe(Expand(), 5, 8),
        command='test -s "${SLMOPT_MODULE%.slm}.safetensors" && ! grep -q "sigmoid(%u4)" {}',
    )  # fmt: skip
    assert found is not None
    assert found.index == 5
    assert found.names == ("expand at @forward/%a4",)
