"""Passes with one planted fault each, and what tests of the contract need to run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from slmopt.errors import ContractError
from slmopt.ir.graph import Module, Op
from slmopt.pipeline import Context, Pass, Pipeline
from tests.toy_model import toy_model

__all__ = ["only", "pass_of", "refusal", "returns"]


def pass_of(edit: Callable[[Module], Any], **declared: object) -> Pass:
    """A pass named "edit" that does one thing to a module, and says so."""

    def run(self: Pass, module: Module, context: Context) -> dict[str, int]:
        before = str(module)
        edit(module)
        return {"edit": 1} if str(module) != before else {}

    cls: Any = type("Edit", (Pass,), {"name": "edit", "run": run, "__doc__": "module -> its edited self", **declared})
    found: Pass = dataclass(frozen=True)(cls)()
    return found


def returns(report: Any, edit: Callable[[Module], Any] = lambda module: None) -> Pass:
    """A pass named "edit" that does one thing and reports another."""

    def run(self: Pass, module: Module, context: Context) -> Any:
        edit(module)
        return report

    cls: Any = type("Edit", (Pass,), {"name": "edit", "run": run, "__doc__": "a module -> the module, edited"})
    found: Pass = dataclass(frozen=True)(cls)()
    return found


def only(module: Module, name: str, graph: str = "forward") -> Op:
    """The one op of a name."""
    (found,) = [op for op in module.graph(graph).walk() if op.name == name]
    return found


def refusal(*passes: Pass, module: Module | None = None, verify: bool = True) -> str:
    """What a pipeline says of its last pass; the module is found to be as the passes before it left it."""
    given, expected = module or toy_model(), (module or toy_model()).copy()
    if len(passes) > 1:
        Pipeline(passes[:-1], verify=verify).run(expected)
    keys = set(expected.weights)
    with pytest.raises(ContractError) as caught:
        Pipeline(passes, verify=verify).run(given)
    assert str(given) == str(expected)
    assert set(given.weights) == keys
    assert given.ledger is not None and len(given.ledger.rows) == len(passes)
    return str(caught.value)
