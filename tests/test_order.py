"""The order of passes: what must come before what, and the order that is suggested."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.errors import ContractError
from slmopt.ir.graph import Module
from slmopt.order import check_order
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.passes.raise_.activation import RaiseActivation
from slmopt.passes.raise_.glu import RaiseGlu
from slmopt.passes.raise_.raising import Raise
from slmopt.pipeline import Context, Pass, Pipeline
from slmopt.plugins.discovery import registry
from tests.toy_model import toy_model


def named(name: str, **facts: str) -> Pass:
    """A pass that does nothing and declares facts, given as texts with blanks between them."""

    def run(self: Pass, module: Module, context: Context) -> dict[str, int]:
        return {}

    declared = {side: frozenset(text.split()) for side, text in facts.items()}
    cls: Any = type(name, (Pass,), {"name": name, "run": run, "__doc__": "x -> x", **declared})
    found: Pass = dataclass(frozen=True)(cls)()
    return found


def refusal(*passes: Pass, facts: str = "", known: tuple[Pass, ...] = ()) -> str:
    """What the check says of an order that does not hold."""
    with pytest.raises(ContractError) as caught:
        check_order(passes, frozenset(facts.split()), lambda: {item.name: type(item) for item in known})
    return str(caught.value)


LIFT = named("lift", ensures="lifted")
LOWER = named("lower", requires="lifted", breaks="lifted")
USE = named("use", requires="lifted")
LOOK = named("look", follows="lifted")
MARK = named("mark", requires="lifted", ensures="marked")
READ = named("read", requires="marked")


def test_orders_that_hold() -> None:
    for passes in ([LIFT, USE], [LIFT, LOOK], [LIFT, LOWER, LIFT, USE], [LIFT, MARK, READ], [LOOK], [LOOK, USE, LOOK]):
        check_order(passes, frozenset({"lifted"}) if passes[0] is LOOK and len(passes) > 1 else frozenset())
    check_order([LOOK, LIFT, LOOK])  # what the first could not find, the second does


def test_a_later_provider_is_named_and_a_whole_order_suggested() -> None:
    assert refusal(USE, READ, MARK, LIFT) == (
        "pass use requires 'lifted', which lift ensures: put lift before use; "
        "an order that holds: lift, use, mark, read"
    )
    assert refusal(LOOK, LIFT) == (
        "pass look is to follow 'lifted', which lift ensures: put lift before look; an order that holds: lift, look"
    )


def test_an_order_keeps_what_can_stay_where_it_is() -> None:
    others = [named(name) for name in "abc"]
    assert refusal(others[0], USE, others[1], LIFT, others[2]).endswith(": a, b, lift, use, c")


def test_a_fact_from_none_of_them_names_the_passes_that_there_are() -> None:
    again = named("again", ensures="lifted other")
    assert refusal(READ, known=(again, LIFT, MARK, READ)) == (
        "pass read requires 'marked', which mark ensures: add it before read; an order that holds: lift, mark, read"
    )
    assert "which again or lift ensures: add it before use; an order that holds: lift, use" in refusal(
        USE, known=(again, LIFT)
    )
    assert refusal(USE) == "pass use requires 'lifted', which no known pass ensures"


def test_known_passes_are_looked_up_only_for_a_message() -> None:
    check_order([LIFT, USE], frozenset(), lambda: pytest.fail("every pass was imported"))


def test_a_pass_that_breaks_a_fact_is_named() -> None:
    assert refusal(LIFT, LOWER, USE) == (
        "pass use requires 'lifted', which lower, before it, breaks: put use before lower, or lift again between them; "
        "an order that holds: lift, use, lower"
    )
    assert refusal(LOWER, LOOK, facts="lifted") == (
        "pass look is to follow 'lifted', which lower, before it, breaks: put look before lower; "
        "an order that holds: look, lower"
    )


def test_no_order_is_suggested_where_there_is_none() -> None:
    first, second = named("first", requires="b", ensures="a"), named("second", requires="a", ensures="b")
    assert refusal(first, second) == "pass first requires 'b', which second ensures: put second before first"


def test_many_passes_that_cannot_be_ordered_take_no_time() -> None:
    loop = [named("first", requires="b", ensures="a"), named("second", requires="a", ensures="b")]
    start = time.perf_counter()
    assert "an order that holds" not in refusal(*(named(f"p{i}", ensures=f"f{i}") for i in range(30)), *loop)
    assert time.perf_counter() - start < 5


FACTS = st.lists(st.sampled_from(["f", "g", "h"]), max_size=2).map(" ".join)
SIDES = st.fixed_dictionaries({}, optional=dict.fromkeys(("requires", "follows", "ensures", "breaks"), FACTS))


def holds(passes: tuple[Pass, ...]) -> bool:
    try:
        check_order(passes)
    except ContractError:
        return False
    return True


@given(declared=st.lists(SIDES, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_a_suggestion_holds_and_is_made_where_there_is_one(declared: list[dict[str, str]]) -> None:
    passes = tuple(named(f"p{index}", **facts) for index, facts in enumerate(declared))
    if holds(passes):
        return
    message = refusal(*passes)
    assert ("; an order that holds: " in message) == any(map(holds, permutations(passes)))
    if "; an order that holds: " in message:
        names = message.partition("; an order that holds: ")[2].split(", ")
        suggested = tuple(next(item for item in passes if item.name == name) for name in names)
        assert len(suggested) == len(passes) and holds(suggested)


def test_options_are_part_of_the_suggestion() -> None:
    assert refusal(Quantize(bits=8), Raise()).endswith("an order that holds: raise, quantize{bits=8}")


def test_facts_that_a_pass_breaks_leave_the_module_where_it_changed_something() -> None:
    module = toy_model()
    Pipeline([LIFT, LOWER], verify=False).run(module)
    assert module.metadata["facts"] == ["lifted"]  # it lowered nothing


@pytest.mark.parametrize("name", ["f32", "f16", "w8", "w4", "w4-gptq", "w4-kv8"])
def test_presets_are_in_order(name: str) -> None:
    known = registry()
    check_order(known.find_recipe(name).build(known.find_pass))


def test_built_in_passes_that_would_find_nothing_say_what_comes_first() -> None:
    assert "pass quantize is to follow 'raised', which raise ensures" in refusal(Quantize(), Raise())
    assert "pass fuse is to follow 'quantized', which quantize ensures" in refusal(Raise(), Fuse(), Quantize())
    assert "pass incrementalize is to follow 'raised'" in refusal(Incrementalize(), Raise())
    assert "pass raise-glu is to follow 'activations'" in refusal(RaiseGlu(), RaiseActivation())
    check_order([Quantize(), Fuse(), Incrementalize()])  # a graph that was written in language-model ops
