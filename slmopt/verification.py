"""Verification of passes by numbers: probes before and after, @step against @forward, perplexity and its budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.errors import ContractError
from slmopt.evaluate import measure_perplexity
from slmopt.ledger import Drift, Ledger
from slmopt.pipeline import Budget, Context, Exact, Lossy, Pass
from slmopt.probe import Probe, make_probe, measure_drift, relative_error

if TYPE_CHECKING:
    import torch

    from slmopt.ir.graph import Graph, Module

__all__ = ["Verification"]

_STEP = Exact().tolerance  # @step is derived from @forward: whatever passes did to both, they agree


@dataclass
class _Baseline:
    """Computed once per model: the probe, its logits in the original and after the latest pass, the perplexity."""

    probe: Probe
    original: torch.Tensor
    latest: torch.Tensor
    perplexity: float | None = None
    latest_perplexity: float | None = None
    calibration: Any = None


class Verification:
    """Checks one pass after the other on one module. Never holds more than graphs and the logits of a small probe."""

    def __init__(self, module: Module, context: Context, budget: Budget, ledger: Ledger) -> None:
        self.context, self.budget = context, budget
        if not isinstance(ledger.baseline, _Baseline):
            probe = make_probe(module)
            logits = probe.forward(module)
            ledger.baseline = _Baseline(probe, logits, logits)
        self.baseline: _Baseline = ledger.baseline
        if context.calibration is not None and self.baseline.calibration is not context.calibration:
            self.baseline.calibration = context.calibration
            self.baseline.perplexity = measure_perplexity(module, context.calibration, context.report)
            self.baseline.latest_perplexity = self.baseline.perplexity

    def original(self) -> tuple[Drift | None, float | None]:
        """Drift (none) and perplexity of the original."""
        return None, self.baseline.perplexity

    def check(self, item: Pass, before: Module, after: Module) -> tuple[Drift, float | None]:
        """Drift and perplexity after `item`; ContractError where it broke its contract or the budget."""
        state = self.baseline
        logits = state.probe.forward(after)
        if isinstance(item.contract, Exact):
            self._check_exact(item, item.contract, before, after, logits)
        elif not math.isfinite(relative_error(state.original, logits)):
            raise ContractError(f"pass {item.name} makes logits that are not finite numbers")
        state.latest = logits
        shown = logits
        if "step" in after.graphs and _is_language_model(after.graph("step")):
            self._check_step(item, after, logits)
            if _keeps_rounded(after.graph("step")):
                shown = state.probe.step(after)
        return measure_drift(state.original, shown), self._check_perplexity(item, after)

    def _check_exact(
        self, item: Pass, contract: Exact, before: Module, after: Module, logits: torch.Tensor
    ) -> None:
        """Float32 first. Where activations are rounded to 8 bits, a difference in the last bit of float32 can tip a
        code over; float64 then decides, in which it cannot."""
        error = relative_error(self.baseline.latest, logits)
        if error > contract.tolerance and _rounds(after.graph()) and _rounds(before.graph()):
            probe = self.baseline.probe
            error = relative_error(probe.forward(before, wide=True), probe.forward(after, wide=True))
        if error > contract.tolerance:
            raise ContractError(
                f"pass {item.name} is exact but changes the logits: the largest difference is {error:.3g} of the "
                f"largest logit, and {contract.tolerance:g} is allowed; correct its rewrite, or declare it Lossy"
            )

    def _check_step(self, item: Pass, module: Module, logits: torch.Tensor) -> None:
        """@step with float64 states against @forward: how far a rounded cache drifts is measured, not checked."""
        probe = self.baseline.probe
        found = probe.step(module, wide=True)
        expected = probe.forward(module, wide=True) if _rounds(module.graph()) else logits
        error = relative_error(expected, found)
        if error > _STEP:
            raise ContractError(
                f"after pass {item.name}, @step does not give what @forward gives: the largest difference is "
                f"{error:.3g} of the largest logit, and {_STEP:g} is allowed"
            )

    def _check_perplexity(self, item: Pass, module: Module) -> float | None:
        state = self.baseline
        if state.calibration is None or state.perplexity is None:
            return None
        if isinstance(item.contract, Lossy):
            state.latest_perplexity = measure_perplexity(module, state.calibration, self.context.report)
        found = state.latest_perplexity
        if found is not None and self.budget.perplexity is not None:
            increase = found / state.perplexity - 1
            if increase > self.budget.perplexity:
                raise ContractError(
                    f"pass {item.name} leaves the budget: perplexity went from {state.perplexity:.4f} to {found:.4f} "
                    f"({increase:+.2%}), and {self.budget.perplexity:+.2%} is allowed"
                )
        return found


def _rounds(graph: Graph) -> bool:
    """Whether activations are rounded on the way."""
    return any(
        op.attributes.get("act") is not None or any(str(result.type.element).startswith("q") for result in op.results)
        for op in graph.walk()
    )


def _is_language_model(step: Graph) -> bool:
    """Whether @step takes (ids, position, state ...)."""
    return len(step.inputs) == 2 + step.states


def _keeps_rounded(step: Graph) -> bool:
    """Whether a state is kept in a type narrower than float32."""
    states = step.inputs[len(step.inputs) - step.states :] if step.states else []
    return any(str(value.type.element) != "f32" for value in states)
