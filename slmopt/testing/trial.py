"""One pass on one module: run as the pipeline runs it, kept for the checks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slmopt.calibrate import Calibration
from slmopt.declaration import option_types
from slmopt.errors import ContractError, InputError, IRError, SlmError, UnsupportedError
from slmopt.ir.graph import Module
from slmopt.pipeline import Context, Exact, Pass, Pipeline, module_facts
from slmopt.plugins.discovery import registry
from slmopt.testing.numbers import SIZES, compute

if TYPE_CHECKING:
    import torch

__all__ = ["BrokenError", "RefusalError", "Trial", "prepare", "run_pass"]

_DECODING = "incremental"  # the fact that a module has @step


class BrokenError(Exception):
    """A check that does not hold. `check`: which; the message: what was found; `module`: on which, if on another."""

    def __init__(self, check: str, detail: str, module: Module | None = None) -> None:
        super().__init__(detail)
        self.check, self.module = check, module


class RefusalError(Exception):
    """The pass says that it does not support the module."""


@dataclass
class Trial:
    """A pass, a module before it and after it, and what it said it changed."""

    item: Pass
    before: Module
    after: Module
    report: Mapping[str, int]
    _outputs: dict[tuple[str, int], list[torch.Tensor]] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """What an exact pass may change; infinite for a lossy one without a `loss_bound`."""
        if isinstance(self.item.contract, Exact):
            return self.item.contract.tolerance
        bound = self.item.loss_bound
        return float("inf") if bound is None else bound

    def expected(self, graph: str, index: int) -> list[torch.Tensor]:
        """What a graph gave before, at one of the sizes."""
        place = (graph, index)
        if place not in self._outputs:
            self._outputs[place] = compute(self.before, graph, SIZES[index])
        return self._outputs[place]


def run_pass(item: Pass, module: Module) -> Mapping[str, int]:
    """Run a pass on a module as the pipeline does, without its probes; returns what it changed.

    BrokenError where it raises or breaks the contract, RefusalError where it does not support the module.
    """
    known = registry()
    context = Context(calibration=_calibration(module), rules=known.rules_for)
    try:
        ledger = Pipeline([item], verify=False, known=known.working_passes).run(module, context)
    except ContractError as error:
        raise BrokenError("contract", str(error)) from error
    except (UnsupportedError, InputError) as error:
        raise RefusalError(str(error)) from error
    except IRError as error:
        raise BrokenError("error", f"it raises IRError: {error}; to refuse a module, raise UnsupportedError") from error
    except Exception as error:
        raise BrokenError("error", f"it raises {type(error).__name__}: {error}") from error
    return ledger.rows[-1].changed


def _calibration(module: Module) -> Calibration:
    vocabulary = int(module.metadata.get("vocab") or 2)
    return Calibration(tuple(tuple((7 * i * i + j) % vocabulary for i in range(9)) for j in range(3)))


@functools.cache
def _providers(fact: str) -> tuple[type[Pass], ...]:
    """The passes that establish a fact, the simplest first: that ensures least, needs least, is told least."""

    def complexity(item: type[Pass]) -> tuple[int, int, int, str]:
        return len(item.ensures), len(item.requires), len(option_types(item)), item.name

    found = [item for item in registry().working_passes().values() if fact in item.ensures]
    return tuple(sorted(found, key=complexity))


def prepare(item: Pass, module: Module, *, follow: bool, decode: bool) -> None:
    """Run the passes that establish what `item` requires and, with `follow`, what it is to follow.

    With `decode`, the module gets @step where it can. RefusalError where a provider does not support the module.
    """
    registry().add_ops()
    wanted = [*sorted(item.requires), *(sorted(item.follows) if follow else ())]
    for fact in wanted:
        _establish(fact, module)
    if decode and "step" not in module.graphs and _providers(_DECODING):
        copied = module.copy()
        try:
            _establish(_DECODING, copied)
        except RefusalError:
            return
        module.graphs, module.weights, module.metadata = copied.graphs, copied.weights, copied.metadata


def _establish(fact: str, module: Module) -> None:
    if fact in module_facts(module):
        return
    providers = _providers(fact)
    if not providers:
        raise InputError(f"no known pass ensures {fact!r}: give check_pass a strategy of modules that have the fact")
    for need in sorted(providers[0].requires):
        _establish(need, module)
    try:
        Pipeline([providers[0]()], verify=False).run(module, Context(rules=registry().rules_for))
    except SlmError as error:
        raise RefusalError(f"{providers[0].name}: {error}") from error
    module.ledger = None
