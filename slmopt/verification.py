"""Verification of passes by numbers: probes before and after, @step against @forward, perplexity and its budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.errors import ContractError
from slmopt.evaluate import measure_perplexity
from slmopt.ir.text import print_graph
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
    """Computed once per model: the probe, its logits in the original and after the latest pass, the perplexity.

    `wide`: the latest logits are float64, because activations are rounded on the way: there, a difference in the last
    bit of float32 can tip a code over, and equal graphs would seem to differ. `text`: the @forward that they are of.
    """

    probe: Probe
    original: torch.Tensor
    latest: torch.Tensor
    wide: bool
    text: str
    perplexity: float | None = None
    latest_perplexity: float | None = None
    calibration: Any = None


class Verification:
    """Checks one pass after the other on one module. Never holds more than graphs and the logits of a small probe."""

    def __init__(self, module: Module, context: Context, budget: Budget, ledger: Ledger) -> None:
        self.context, self.budget = context, budget
        if not isinstance(ledger.baseline, _Baseline):
            ledger.baseline = _measure_baseline(ledger.original or module)
        self.baseline: _Baseline = ledger.baseline
        if self.baseline.text != print_graph(module.graph()):
            self._catch_up(module)
        if context.calibration is not None and self.baseline.calibration is not context.calibration:
            self.baseline.calibration = context.calibration
            self.baseline.perplexity = measure_perplexity(module, context.calibration, context.report)
            self.baseline.latest_perplexity = self.baseline.perplexity

    def _catch_up(self, module: Module) -> None:
        """Measure the module anew: what unverified passes did to it, the next one is not to answer for."""
        state, text = self.baseline, self.context.calibration
        state.text, state.wide = print_graph(module.graph()), _rounds(module.graph())
        state.latest = state.probe.forward(module, wide=state.wide)
        if state.calibration is not None and (text is None or text is state.calibration):
            state.latest_perplexity = measure_perplexity(module, state.calibration, self.context.report)

    @property
    def original_perplexity(self) -> float | None:
        """The perplexity of the original; None without text."""
        return self.baseline.perplexity

    def check(
        self, item: Pass, before: Module, after: Module, changed: frozenset[str], *, final: bool = True
    ) -> tuple[Drift, float | None]:  # fmt: skip
        """Drift and perplexity after `item`; ContractError where it broke its contract or the budget.

        `changed`: the graphs that the pass changed. The others are not run again: the weights they name are as they
        were, too, as keys are never redefined. Without `final` a pass that mends is to come: the budget waits for it.
        """
        state = self.baseline
        if "forward" in changed:
            self._check_forward(item, before, after)
            if isinstance(item.contract, Lossy) and state.calibration is not None:
                state.latest_perplexity = measure_perplexity(after, state.calibration, self.context.report)
        if final:
            self._check_budget(item)
        if "step" not in after.graphs or not _is_language_model(after.graph("step")):
            return measure_drift(state.original, state.latest), state.latest_perplexity
        if changed & {"forward", "step"}:
            self._check_step(item, after)
        rounded = _keeps_rounded(after.graph("step"))
        logits = state.probe.rounded_step(after, wide=state.wide) if rounded else state.latest
        return measure_drift(state.original, logits), state.latest_perplexity

    def _check_forward(self, item: Pass, before: Module, after: Module) -> None:
        state, wide = self.baseline, _rounds(after.graph())
        logits = state.probe.forward(after, wide=wide)
        if isinstance(item.contract, Exact):
            expected = state.latest if state.wide >= wide else state.probe.forward(before, wide=True)
            error = relative_error(expected, logits)
            if error > item.contract.tolerance:
                raise ContractError(
                    f"pass {item.name} is exact but changes the logits: the largest difference is {error:.3g} of the "
                    f"largest logit, and {item.contract.tolerance:g} is allowed; correct its rewrite, or declare it "
                    "Lossy"
                )
        elif not math.isfinite(relative_error(state.original, logits)):
            raise ContractError(f"pass {item.name} makes logits that are not finite numbers")
        state.latest, state.wide, state.text = logits, wide, print_graph(after.graph())

    def _check_step(self, item: Pass, module: Module) -> None:
        """@step against @forward, without rounding states: what rounding them does is measured as drift."""
        error = relative_error(self.baseline.latest, self.baseline.probe.step(module, wide=self.baseline.wide))
        if error > _STEP:
            raise ContractError(
                f"after pass {item.name}, @step does not give what @forward gives: the largest difference is "
                f"{error:.3g} of the largest logit, and {_STEP:g} is allowed"
            )

    def _check_budget(self, item: Pass) -> None:
        original, found, limit = self.baseline.perplexity, self.baseline.latest_perplexity, self.budget.perplexity
        if original is None or found is None or limit is None or found / original - 1 <= limit:
            return
        raise ContractError(
            f"pass {item.name} leaves the budget: perplexity went from {original:.4f} to {found:.4f} "
            f"({found / original - 1:+.2%}), and {limit:+.2%} is allowed"
        )


def _measure_baseline(original: Module) -> _Baseline:
    graph, probe = original.graph(), make_probe(original)
    logits = probe.forward(original, wide=_rounds(graph))
    return _Baseline(probe, logits, logits, _rounds(graph), print_graph(graph))


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
