"""The trail of a recipe: the module after each of its passes, from one run, and where a check breaks on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmopt.bisection.checks import Measured
from slmopt.ir.verify import verify
from slmopt.ir.weights import WeightStore
from slmopt.pipeline import Context, Pass, Pipeline

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["Breaking", "Trail", "find_breaking", "freeze", "record_trail"]


@dataclass(frozen=True)
class Trail:
    """The original and the module after each pass that ran; `error`: what the next pass raised, if one did.

    Modules share tensors, and what passes derive is computed when it is asked for: a trail costs graphs, not weights.
    """

    modules: tuple[Module, ...]
    error: Exception | None = None


def freeze(module: Module) -> Module:
    """A copy that does not see what is added to the original's weights later, nor its ledger."""
    copied = module.copy()
    store = WeightStore()
    store.restore({key: module.weights.source(key) for key in module.weights})
    copied.weights, copied.metadata, copied.ledger = store, deepcopy(module.metadata), None
    return copied


def record_trail(
    module: Module, passes: Sequence[Pass], context: Context, known: Callable[[], Mapping[str, type[Pass]]] = dict
) -> Trail:
    """Run the recipe once, without comparing numbers: an exact pass that drifts is to be found, not refused.

    ContractError where the order of passes is wrong, IRError where the module is.
    """
    verify(module, weights=True)
    work = freeze(module)
    pipeline = Pipeline(passes, verify=False, known=known)
    pipeline.check_order(frozenset(module.metadata.get("facts", ())), context.calibration is not None)
    modules = [freeze(module)]
    try:
        pipeline.run(work, context, lambda item, after: modules.append(freeze(after)))
    except Exception as error:
        return Trail(tuple(modules), error)
    return Trail(tuple(modules))


@dataclass(frozen=True)
class Breaking:
    """The check holds of modules[index] and not of modules[index + 1]: pass `index` breaks it."""

    index: int
    before: Measured
    after: Measured


def find_breaking(
    modules: Sequence[Module], measure: Callable[[Module], Measured], original: Measured
) -> Breaking | None:
    """Where a check that holds of the first module and not of the last breaks; None where it holds of the last.

    By binary search: of several such places it finds one.
    """
    low, high = 0, len(modules) - 1
    before, after = original, measure(modules[high]) if high else original
    if after.holds:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        found = measure(modules[middle])
        if found.holds:
            low, before = middle, found
        else:
            high, after = middle, found
    return Breaking(low, before, after)
