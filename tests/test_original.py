"""What passes may compare with: the module before the first pass, over pipelines that follow each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

import slmopt
from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ledger import Ledger
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.pipeline import Context, Contract, Lossy, Pass, Pipeline
from tests.toy_model import toy_model

SEEN: list[Module | None] = []


@dataclass(frozen=True)
class Look(Pass):
    """nothing -> nothing; notes what the original is."""

    name: ClassVar[str] = "look"
    contract: ClassVar[Contract] = Lossy()

    def run(self, module: Module, context: Context) -> dict[str, int]:
        SEEN.append(context.original)
        return {}


@pytest.fixture(autouse=True)
def _forget() -> None:
    SEEN.clear()


def seen() -> Module:
    (found,) = SEEN
    assert found is not None
    return found


@pytest.mark.parametrize("verify", [True, False])
def test_it_is_the_module_before_the_first_pass(verify: bool) -> None:
    module = toy_model()
    Pipeline([Quantize(), Incrementalize(), Look()], verify=verify).run(module)
    assert str(seen()) == str(toy_model())
    for key in toy_model().weight_types():
        assert bool((seen().weights.load(key) == toy_model().weights.load(key)).all())


def test_a_pipeline_that_goes_on_keeps_it() -> None:
    first = slmopt.optimize(toy_model(), [Quantize()])
    slmopt.optimize(slmopt.optimize(first, [Incrementalize()]), [Look()])
    assert str(seen()) == str(toy_model())


def test_of_a_module_that_comes_from_elsewhere_it_is_what_came() -> None:
    module = slmopt.optimize(toy_model(), [Quantize()])
    module.ledger = None  # as that of a module which is read from a file
    Pipeline([Incrementalize(), Look()]).run(module)
    assert "step" not in seen().graphs and str(seen().graph()) == str(module.graph())


def test_one_that_is_given_stays() -> None:
    given: Any = toy_model()
    context = Context(original=given)
    Pipeline([Quantize(), Look()]).run(toy_model(), context)
    assert seen() is given


def test_a_context_that_is_used_again_keeps_none() -> None:
    context = Context()
    Pipeline([]).run(toy_model(), context)
    assert context.original is None


def test_it_is_not_written() -> None:
    module = slmopt.optimize(toy_model(), [Quantize()])
    assert isinstance(module.ledger, Ledger) and module.ledger.original is not None
    assert set(module.ledger.to_json()) == {"rows"}


def test_a_context_without_a_way_to_load_says_so() -> None:
    with pytest.raises(InputError, match="the model models/x cannot be read here"):
        Context().load("models/x")
