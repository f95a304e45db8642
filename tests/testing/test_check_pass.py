"""`check_pass` itself: what it says of a failure, what it is given, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import strategies as st

from slmopt.errors import ContractError, InputError, UnsupportedError
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.ir.verify import verify
from slmopt.pipeline import Context, Pass, Pipeline
from slmopt.stand_in import add_stand_ins
from slmopt.testing import ConformanceError, check_pass, modules
from tests.testing.faulty import ChangesNumbers, DropsAnOp, SwapsOperands


@dataclass(frozen=True)
class _Scale(Pass):
    """neg(x) -> neg(x), but for numbers by which it is told to be wrong"""

    name: ClassVar[str] = "scale"

    factor: float = 1.0

    def run(self, module: Module, context: Context) -> dict[str, int]:
        if self.factor == 1.0:
            return {}
        count = 0
        for graph in module.graphs.values():
            for op in graph.walk():
                if op.name == "neg":
                    at = graph.before(op)
                    op.set_operand(0, at.add("mul", op.operands[0], at.constant(self.factor, op.result)))
                    count += 1
        return {"neg": count} if count else {}


@dataclass(frozen=True)
class _Refuses(Pass):
    """x -> x, of nothing"""

    name: ClassVar[str] = "refuses"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        raise UnsupportedError("nothing is supported")


@dataclass(frozen=True)
class _Needs(_Refuses):
    """x -> x, where something holds that nothing establishes"""

    name: ClassVar[str] = "needs"
    requires: ClassVar[frozenset[str]] = frozenset({"something unheard of"})


def _failure(item: type[Pass] | Pass, **arguments: object) -> ConformanceError:
    with pytest.raises(ConformanceError) as caught:
        check_pass(item, **arguments)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("fault", [DropsAnOp, SwapsOperands, ChangesNumbers], ids=lambda fault: fault.name)
def test_a_counterexample_is_small_and_fails_on_its_own(fault: type[Pass]) -> None:
    error = _failure(fault)
    assert error.reproduces
    assert len(error.text.splitlines()) < 25
    module = parse_module(error.text)
    verify(module)
    add_stand_ins(module, drawn=True)  # as `slmopt opt - -p PASS --check` does
    with pytest.raises(ContractError):
        Pipeline([fault()]).run(module)


def test_the_message_says_what_failed_and_how_to_see_it_again() -> None:
    error = _failure(_Scale(factor=2.0), seed=3, examples=40)
    assert (error.pass_text, error.seed) == ("scale{factor=2.0}", 3)
    for part in (
        f"pass scale{{factor=2.0}} fails the check {error.check!r}", f"found by example {error.examples} of 40, seed 3",
        "check_pass(_Scale, examples=40, seed=3)", "slmopt opt - -p 'scale{factor=2.0}' --check fails on this text too",
        error.text,
    ):  # fmt: skip
        assert part in str(error)
    assert _failure(_Scale(factor=2.0), seed=3, examples=40).text == error.text


def test_options_are_drawn_or_given() -> None:
    check_pass(_Scale(), examples=10, compile=0)
    check_pass(_Scale, options={"factor": 1.0}, examples=10, compile=0)
    assert _failure(_Scale, shrink=False).pass_text != "scale"
    assert _failure(_Scale, options={"factor": 0.5}, shrink=False).pass_text == "scale{factor=0.5}"
    assert _failure(_Scale, options=st.just({"factor": 4.0}), shrink=False).pass_text == "scale{factor=4.0}"


def test_modules_may_be_given() -> None:
    small = modules().filter(lambda module: len(module.graphs) == 1)
    check_pass(_Scale(), strategy=small, examples=7)  # nothing to compile
    with pytest.raises(ConformanceError):
        check_pass(_Scale(factor=3.0), strategy=small)


def test_a_pass_that_refuses_everything_is_not_proven() -> None:
    with pytest.raises(ContractError, match=r"refuses refused \d+ of \d+ modules.*nothing is supported"):
        check_pass(_Refuses)


def test_a_fact_that_nothing_establishes() -> None:
    with pytest.raises(InputError, match="no known pass ensures 'something unheard of': give check_pass a strategy"):
        check_pass(_Needs)


def test_without_hypothesis_the_message_says_what_to_install() -> None:
    program = "import sys; sys.modules['hypothesis'] = None\nimport slmopt\nimport slmopt.testing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "slmopt.testing draws its examples with hypothesis" in done.stderr
    assert "pip install 'slmopt[test]'" in done.stderr
