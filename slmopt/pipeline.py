"""Passes and the pipeline that runs, verifies and measures them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from slmopt.contract import FACTS, Loads, Snapshot, changed_graphs, check_kept, check_report, check_step, print_graphs
from slmopt.declaration import check_class, check_declaration, check_options
from slmopt.errors import ContractError, InputError, IRError
from slmopt.ir.graph import Module, Op, Value
from slmopt.ir.verify import verify
from slmopt.ir.weights import watch_loads
from slmopt.journal import current_journal, open_journal, place_of
from slmopt.ledger import Ledger, Row, measure_size
from slmopt.memory import peak_memory, return_freed_memory
from slmopt.order import check_order
from slmopt.ties import check_ties

if TYPE_CHECKING:
    from slmopt.calibrate import Calibration
    from slmopt.rewrite import Rule
    from slmopt.statistics import Statistics
    from slmopt.verification import Verification

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


def _load_nothing(path: str) -> Module:
    raise InputError(f"the model {path} cannot be read here: this context was made without a way to load models")


@dataclass
class Context:
    """What a pass may ask for while it runs.

    target: what is compiled for, if known. calibration: documents of token ids, if a text was given.
    report: tells a progress bar what is being done and the share of it that is done.
    rules: the rewrite rules that plugins add to the pass of a name.
    original: the module before the first pass, to compare with; not to be edited. A pipeline that goes on from another
    one, in one program, keeps the first one's; of a module read from a file it is what was read. None outside of one.
    load: reads the model at a path, for a pass that is given one.
    """

    target: Any = None
    calibration: Calibration | None = None
    report: Callable[[str, float], None] = field(default=lambda what, share: None)
    rules: Callable[[str], Sequence[Rule]] = field(default=lambda name: ())
    original: Module | None = None
    load: Callable[[str], Module] = _load_nothing

    def permits(self, kind: str, op: Op) -> bool:
        """Ask before each rewrite that is made by hand, not by rules; where it says no, leave `op` as it is.

        Passes that ask are bisected and timed rewrite by rewrite. To be asked only where the rewrite will be made.
        """
        journal, place = current_journal(), place_of(op)
        permitted = journal.permits(kind, place)
        if permitted:
            journal.grant(kind, place)
        return permitted

    def statistics(
        self, module: Module, values: Iterable[Value], *, second_moments: bool = False
    ) -> dict[Value, Statistics]:
        """Mean, mean square and maximum per channel of values of @forward over the calibration text.

        Such as what a linear reads: `context.statistics(module, [op.value(0)])`. See `slmopt.statistics`. ContractError
        where no text was given: a pass that asks declares `calibrated = True`, so that this shows before anything runs.
        """
        from slmopt.statistics import collect_statistics

        if self.calibration is None:
            raise ContractError("statistics of activations need calibration text and none is given: a pass that asks "
                                "for them declares `calibrated: ClassVar[bool] = True`")  # fmt: skip
        return collect_statistics(
            module, values, self.calibration, second_moments=second_moments, report=self.report
        )


class Pass:
    """Base of passes. A pass is a frozen dataclass: its fields are its options, its docstring's first line the rewrite.

    name: how recipes call it. contract: whether it keeps the numbers.
    requires: facts about the module that must hold before it runs. follows: facts that must hold before it runs where
    any pass of the pipeline establishes them, because what it looks for comes with them. ensures: facts that hold
    afterwards. breaks: facts that no longer hold where it changed anything.
    calibrated: it cannot run without `context.calibration`. compares: it looks at `context.original`. mends: it wins
    back what lossy passes before it lost, so that the budget is looked at after it and not before. unties: it may give
    ops that read one weight several.
    Claims that `slmopt.testing.check_pass` proves: idempotent: it finds nothing in its own result. loss_bound: of a
    lossy pass, the largest change of any output, relative to its largest number.
    """

    name: ClassVar[str]
    contract: ClassVar[Contract] = Exact()
    requires: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset()
    breaks: ClassVar[frozenset[str]] = frozenset()
    calibrated: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    mends: ClassVar[bool] = False
    unties: ClassVar[bool] = False
    idempotent: ClassVar[bool] = False
    loss_bound: ClassVar[float | None] = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        check_class(cls)

    def __post_init__(self) -> None:
        """Check the options; a pass with a check of its own begins it with `super().__post_init__()`."""
        check_options(self)

    def run(self, module: Module, context: Context) -> dict[str, int]:
        """Edit `module` in place; returns what changed, counted by kind ({}: nothing).

        Where it raises, or breaks a rule, the module is put back as it was; numbers that were written into a tensor
        are not.
        """
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
    return frozenset(module.metadata.get(FACTS, ()))


class Pipeline:
    """Passes in order. `verify=False` leaves out what needs the weights: probes, drift and perplexity.

    `known` gives the passes there are, by name; it is asked only where the order is wrong, to suggest another.
    """

    def __init__(
        self, passes: Sequence[Pass], budget: Budget | None = None, *, verify: bool = True,
        known: Callable[[], Mapping[str, type[Pass]]] = dict, observers: Sequence[Observer] = (),
    ) -> None:  # fmt: skip
        for item in passes:
            check_declaration(type(item))
        self.passes, self.budget, self.verify = tuple(passes), budget or Budget(), verify
        self.known, self.observers = known, tuple(observers)

    def check_order(self, facts: frozenset[str] = frozenset(), calibrated: bool = True) -> None:
        """ContractError where a pass would run without a fact that it needs, or without calibration text."""
        check_order(self.passes, facts, self.known)
        for item in self.passes:
            if item.calibrated and not calibrated:
                raise ContractError(f"pass {item.name} needs calibration text and none is given: give one with --text")

    def run(
        self, module: Module, context: Context | None = None, observe: Callable[[Pass, Module], None] | None = None
    ) -> Ledger:
        """Run every pass on `module`, in place; returns the ledger, which goes on from `module.ledger`.

        After each pass the IR is verified and, unless `verify=False`, the probe is run: ContractError names the pass
        that drifts, leaves the budget, changes what it must not or says what is not so. Where a pass fails, `module`
        and its ledger are what the passes before it made of them. `observe` sees the module after each pass.
        """
        from slmopt.verification import Verification

        context = context or Context()
        return_freed_memory()
        self.check_order(module_facts(module), context.calibration is not None)
        verify(module, weights=self.verify)
        ledger = module.ledger.branch() if isinstance(module.ledger, Ledger) else Ledger()
        if ledger.original is None:
            ledger.original = _branch(module)
        if context.original is None:
            context = replace(context, original=ledger.original)
        start = time.perf_counter()
        verification = Verification(module, context, self.budget, ledger) if self.verify else None
        if not ledger.rows:
            perplexity = verification.original_perplexity if verification else None
            seconds = time.perf_counter() - start
            row = Row("original", {}, measure_size(module), None, perplexity, 0.0, seconds, peak_memory())
            ledger.rows.append(row)
        try:
            self._run_passes(module, context, verification, ledger, observe)
        finally:
            module.ledger = ledger
        context.report("done", 1.0)
        for observer in self.observers:
            observer.on_ledger(ledger, module)
        return ledger

    def _run_passes(
        self, module: Module, context: Context, verification: Verification | None, ledger: Ledger,
        observe: Callable[[Pass, Module], None] | None,
    ) -> None:  # fmt: skip
        texts, before = print_graphs(module), None
        for index, item in enumerate(self.passes):
            context.report(item.name, index / len(self.passes))
            for observer in self.observers:
                observer.before_pass(item, module)
            before, baseline = Snapshot(module, texts, before), copy(ledger.baseline)
            final = not any(other.mends for other in self.passes[index + 1 :])
            try:
                row, texts = _run_pass(item, module, context, before, verification, ledger, final)
            except BaseException as error:
                if changes := before.describe_changes(module):
                    error.add_note(f"what the pass {item.name} had done, before it was undone:\n{changes}")
                before.restore(module)
                ledger.baseline = baseline
                raise
            ledger.rows.append(row)
            return_freed_memory()
            if observe is not None:
                observe(item, module)
            for observer in self.observers:
                observer.after_pass(item, module, row)


def _branch(module: Module) -> Module:
    """The module as it is: what passes add later does not show in its graphs, and its tensors are shared."""
    copied = module.copy()
    copied.ledger = None
    return copied


def _run_pass(
    item: Pass, module: Module, context: Context, before: Snapshot, verification: Verification | None, ledger: Ledger,
    final: bool,
) -> tuple[Row, dict[str, str]]:  # fmt: skip
    """Run and check one pass; gives its row and the texts of the graphs after it. `final`: no pass mends after it."""
    from slmopt.options import describe_pass

    name = describe_pass(item)
    loads, start = Loads(), time.perf_counter()
    try:
        with open_journal() as journal, watch_loads(loads):
            report = item.run(module, context)
    except Exception as error:
        error.add_note(f"while running the pass {name}")
        raise
    seconds, start = time.perf_counter() - start, time.perf_counter()
    check_kept(item, before, module, loads)
    try:
        verify(module, weights=verification is not None)
    except IRError as error:
        raise ContractError(f"pass {item.name} leaves a module that breaks the IR's rules: {error}") from error
    texts = print_graphs(module)
    changed = changed_graphs(before.texts, texts)
    check_report(item, report, before, module, texts)
    maker = next((row.name for row in ledger.rows if "step" in row.graphs), "another pass")
    check_step(item, before.module, module, changed, maker, lossy=isinstance(item.contract, Lossy))
    check_ties(item, before.module, module, changed)
    _set_facts(item, module, bool(report))
    try:
        drift, perplexity = (None, None) if verification is None else verification.check(
            item, before.module, module, changed, final=final
        )  # fmt: skip
    except Exception as error:
        error.add_note(f"while checking the pass {name}")
        raise
    row = Row(
        name, dict(report), measure_size(module), drift, perplexity, seconds, time.perf_counter() - start,
        peak_memory(), journal.spent, tuple(sorted(changed)),
    )  # fmt: skip
    return row, texts


def _set_facts(item: Pass, module: Module, changed: bool) -> None:
    facts = (module_facts(module) - (item.breaks if changed else frozenset())) | item.ensures
    if facts:
        module.metadata[FACTS] = sorted(facts)
    else:
        module.metadata.pop(FACTS, None)
