"""Passes and the pipeline that runs, verifies and measures them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from slmopt.errors import ContractError, IRError
from slmopt.ir.graph import Module, Op
from slmopt.ir.verify import verify
from slmopt.journal import current_journal, open_journal, place_of
from slmopt.ledger import Ledger, Row, measure_size
from slmopt.memory import peak_memory, return_freed_memory

if TYPE_CHECKING:
    from slmopt.calibrate import Calibration
    from slmopt.rewrite import Rule

__all__ = ["Budget", "Context", "Contract", "Exact", "Lossy", "Observer", "Pass", "Pipeline", "module_facts"]


@dataclass(frozen=True)
class Exact:
    """The pass keeps the numbers: max |difference of logits| at most `tolerance` times max |logit|."""

    tolerance: float = 1e-4


@dataclass(frozen=True)
class Lossy:
    """The pass changes the numbers; the recipe's budget says by how much it may."""


Contract = Exact | Lossy


@dataclass(frozen=True)
class Budget:
    """What lossy passes together may cost. perplexity: the largest relative increase, 0.03 for +3%; None: no limit."""

    perplexity: float | None = None


@dataclass
class Context:
    """What a pass may ask for while it runs.

    target: what is compiled for, if known. calibration: documents of token ids, if a text was given.
    report: tells a progress bar what is being done and the share of it that is done.
    rules: the rewrite rules that plugins add to the pass of a name.
    """

    target: Any = None
    calibration: Calibration | None = None
    report: Callable[[str, float], None] = field(default=lambda what, share: None)
    rules: Callable[[str], Sequence[Rule]] = field(default=lambda name: ())

    def permits(self, kind: str, op: Op) -> bool:
        """Ask before each rewrite that is made by hand, not by rules; where it says no, leave `op` as it is.

        Passes that ask are bisected and timed rewrite by rewrite. To be asked only where the rewrite will be made.
        """
        journal, place = current_journal(), place_of(op)
        permitted = journal.permits(kind, place)
        if permitted:
            journal.record(kind, place)
        return permitted


class Pass:
    """Base of passes. A pass is a frozen dataclass: its fields are its options, its docstring's first line the rewrite.

    name: how recipes call it. contract: whether it keeps the numbers. requires, ensures: facts about the module that
    must hold before it runs and that hold afterwards. calibrated: it cannot run without `context.calibration`.
    """

    name: ClassVar[str]
    contract: ClassVar[Contract] = Exact()
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset()
    calibrated: ClassVar[bool] = False

    def run(self, module: Module, context: Context) -> dict[str, int]:
        """Edit `module` in place; returns what changed, counted by kind ({}: nothing)."""
        raise NotImplementedError


class Observer(Protocol):
    """Sees what a pipeline does. It must not edit what it sees."""

    def before_pass(self, item: Pass, module: Module) -> None:
        """`item` is about to run on `module`."""

    def after_pass(self, item: Pass, module: Module, row: Row) -> None:
        """`item` has run and was found in order; `row` is what was measured."""

    def on_ledger(self, ledger: Ledger, module: Module) -> None:
        """All passes have run."""


def module_facts(module: Module) -> frozenset[str]:
    """The facts that passes have established about a module; they travel in its metadata."""
    return frozenset(module.metadata.get("facts", ()))


class Pipeline:
    """Passes in order. `verify=False` leaves out what needs the weights: probes, drift and perplexity.

    `providers` maps a fact to the names of passes that ensure it, for messages.
    """

    def __init__(
        self, passes: Sequence[Pass], budget: Budget | None = None, *, verify: bool = True,
        providers: Mapping[str, Sequence[str]] | None = None, observers: Sequence[Observer] = (),
    ) -> None:  # fmt: skip
        self.passes, self.budget, self.verify = tuple(passes), budget or Budget(), verify
        self.providers, self.observers = providers or {}, tuple(observers)

    def check_order(self, facts: frozenset[str] = frozenset(), calibrated: bool = True) -> None:
        """ContractError where a pass comes before another that ensures what it requires, or lacks calibration text."""
        known = set(facts)
        for index, item in enumerate(self.passes):
            for fact in sorted(item.requires - known):
                later = [other.name for other in self.passes[index + 1 :] if fact in other.ensures]
                if later:
                    raise ContractError(f"pass {item.name} requires {fact!r}, which {later[0]} ensures: "
                                        f"put {later[0]} before {item.name}")  # fmt: skip
                names = " or ".join(self.providers.get(fact, ())) or "no known pass"
                raise ContractError(f"pass {item.name} requires {fact!r}, which {names} ensures: "
                                    f"add it before {item.name}")  # fmt: skip
            if item.calibrated and not calibrated:
                raise ContractError(f"pass {item.name} needs calibration text and none is given: give one with --text")
            known |= item.ensures

    def run(
        self, module: Module, context: Context | None = None, observe: Callable[[Pass, Module], None] | None = None
    ) -> Ledger:
        """Run every pass on `module`, in place; returns the ledger, which goes on from `module.ledger`.

        After each pass the IR is verified and, unless `verify=False`, the probe is run: ContractError names the pass
        that drifts, leaves the budget or changes what it must not. `observe` sees the module after each pass.
        """
        from slmopt.verification import Verification

        context = context or Context()
        return_freed_memory()
        self.check_order(module_facts(module), context.calibration is not None)
        verify(module, weights=self.verify)
        ledger = module.ledger.branch() if isinstance(module.ledger, Ledger) else Ledger()
        start = time.perf_counter()
        verification = Verification(module, context, self.budget, ledger) if self.verify else None
        if not ledger.rows:
            perplexity = verification.original_perplexity if verification else None
            seconds = time.perf_counter() - start
            row = Row("original", {}, measure_size(module), None, perplexity, 0.0, seconds, peak_memory())
            ledger.rows.append(row)
        for index, item in enumerate(self.passes):
            context.report(item.name, index / len(self.passes))
            for observer in self.observers:
                observer.before_pass(item, module)
            ledger.rows.append(_run_pass(item, module, context, verification))
            if observe is not None:
                observe(item, module)
            for observer in self.observers:
                observer.after_pass(item, module, ledger.rows[-1])
        context.report("done", 1.0)
        module.ledger = ledger
        for observer in self.observers:
            observer.on_ledger(ledger, module)
        return ledger


def _run_pass(item: Pass, module: Module, context: Context, verification: Any) -> Row:
    from slmopt.options import describe_pass

    before = module.copy()
    sources = {key: module.weights.source(key) for key in module.weights}
    versions = _versions(sources)
    start = time.perf_counter()
    try:
        with open_journal() as journal:
            changed = item.run(module, context)
    except Exception as error:
        error.add_note(f"while running the pass {describe_pass(item)}")
        raise
    seconds = time.perf_counter() - start
    _check_kept(item, before, module, sources)
    for key, version in _versions(sources).items():
        if version != versions[key]:
            raise ContractError(f"pass {item.name} wrote into the tensor of weight @{key}: derive another one instead")
    try:
        verify(module, weights=verification is not None)
    except IRError as error:
        raise ContractError(f"pass {item.name} leaves a module that breaks the IR's rules: {error}") from error
    if item.ensures:
        module.metadata["facts"] = sorted(module_facts(module) | item.ensures)
    start = time.perf_counter()
    drift, perplexity = verification.check(item, before, module) if verification is not None else (None, None)
    return Row(
        describe_pass(item), changed, measure_size(module), drift, perplexity, seconds, time.perf_counter() - start,
        peak_memory(), journal.spent,
    )  # fmt: skip


def _versions(sources: Mapping[str, Any]) -> dict[str, int | None]:
    """How often each tensor that is held in memory has been written to, as torch counts."""
    held = {key: source.held() for key, source in sources.items() if source.held is not None and not source.inputs}
    return {key: getattr(value, "_version", None) for key, value in held.items()}


def _check_kept(item: Pass, before: Module, after: Module, sources: Mapping[str, Any]) -> None:
    """A pass adds weights and never changes those that are there, and it keeps what callers of @forward see."""
    for key, source in sources.items():
        if key not in after.weights or after.weights.source(key) is not source:
            raise ContractError(f"pass {item.name} changed the stored weight @{key}: "
                                "keys are never redefined; add a key and point the op at it")  # fmt: skip
    for name, graph in before.graphs.items():
        if name != "forward":
            continue
        if name not in after.graphs:
            raise ContractError(f"pass {item.name} removed the graph @{name}")
        for side in ("inputs", "outputs"):
            old = [str(value) if side == "outputs" else repr(value) for value in _signature(graph, side)]
            new = [str(value) if side == "outputs" else repr(value) for value in _signature(after.graphs[name], side)]
            if old != new:
                raise ContractError(f"pass {item.name} changed the {side} of @{name}: ({', '.join(old)}) became "
                                    f"({', '.join(new)})")  # fmt: skip


def _signature(graph: Any, side: str) -> list[Any]:
    return list(graph.inputs) if side == "inputs" else [value.type for value in graph.outputs]
