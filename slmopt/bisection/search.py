"""Bisection: the first pass of a recipe that breaks a property, and the smallest set of its rewrites that does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slmopt.bisection.case import make_case
from slmopt.bisection.checks import Check, Measured, parse_check
from slmopt.bisection.finding import Finding
from slmopt.bisection.isolate import Isolated, Subject, isolate
from slmopt.bisection.properties import CommandCheck, CompilesCheck, Texts, make_check
from slmopt.bisection.reproducer import check_directory, write_reproducer
from slmopt.bisection.trail import Breaking, Trail, find_breaking, freeze, record_trail
from slmopt.errors import InputError, SlmError

if TYPE_CHECKING:
    from slmopt.ir.graph import Module
    from slmopt.metrics import Document
    from slmopt.pipeline import Context, Pass
    from slmopt.recipe import Recipe

__all__ = ["bisect"]

_DOCUMENTS = 64

Report = Callable[[str, float], None]


def _silent(what: str, share: float) -> None:
    return None


def bisect(
    module: Module, recipe: str | os.PathLike[str] | Recipe | Sequence[str | Pass], check: str | None = None, *,
    command: str | None = None, text: str | None = None, text_tokens: int | None = None, target: str | None = None,
    reproducer: str | os.PathLike[str] | None = None, report: Report = _silent,
) -> Finding | None:  # fmt: skip
    """The first pass of a recipe that breaks a property, and the smallest set of its rewrites that does.

    `check`: "outputs<=1e-3", "perplexity<=+3%", another metric, or "compiles"; `command` instead: a shell command that
    exits with 0 where the property holds (see `CommandCheck`). `text` (contents, not a path) is for perplexity, metrics
    and calibration. `reproducer`: a directory to write that shows the fault on its own. None where nothing breaks: the
    property holds after the last pass.

    The recipe is run once; passes may break their contracts on the way. Where a pass raises and the property holds
    until then, that is what is found. Raises InputError where the check is wrong, or the original itself breaks it.
    """
    from slmopt.api import resolve_recipe

    if (check is None) == (command is None):
        raise InputError("give either a check, such as 'outputs<=1e-3', or a command")
    if reproducer is not None:
        check_directory(reproducer)
    passes, _ = resolve_recipe(recipe)
    if not passes:
        raise InputError("the recipe has no passes")
    for key in module.weight_types():
        if key not in module.weights:
            raise InputError(f"@{module.name} has no weights (@{key} is missing): give the model's directory, or draw "
                             "them with slmopt.stand_in.add_stand_ins(module, drawn=True)")  # fmt: skip
    texts = _read_texts(module, text, text_tokens)
    made = _make_check(check, command, texts, target)
    context = _context(module, texts, target)
    return _Search(module, passes, made, texts, context, report).run(reproducer)


@dataclass
class _Search:
    module: Module
    passes: Sequence[Pass]
    check: Check
    texts: Texts
    context: Context
    report: Report
    evaluations: int = 0

    def run(self, reproducer: str | os.PathLike[str] | None) -> Finding | None:
        """What `bisect` gives."""
        from slmopt.plugins.discovery import registry

        self.report("recipe", 0.0)
        trail = record_trail(self.module, self.passes, self.context, registry().working_passes)
        start, original = self._start(trail)
        breaking = find_breaking(trail.modules[start:], self.measure, original)
        if breaking is None and trail.error is None:
            return None
        if breaking is not None:
            index = start + breaking.index
            subject = Subject(self.passes[index], trail.modules[index], trail.modules[index + 1], self.context)
        else:
            index = len(trail.modules) - 1
            subject = Subject(self.passes[index], trail.modules[index], None, self.context, trail.error)
        isolated = isolate(subject, self.measure)
        finding = self._finding(index, breaking, subject, isolated)
        if reproducer is None:
            return finding
        self.report("reproducer", 0.9)
        case = make_case(subject, isolated, self.check, self.texts)
        return replace(finding, reproducer=write_reproducer(case, finding, reproducer))

    def measure(self, module: Module) -> Measured:
        """The check, counted."""
        self.evaluations += 1
        self.report(self.check.text, min(0.1 + 0.02 * self.evaluations, 0.9))
        return self.check.measure(module)

    def _start(self, trail: Trail) -> tuple[int, Measured]:
        """The first module of the trail that the property holds of: the original, or the first one that compiles."""
        self.evaluations += 1
        original = found = self.check.prepare(trail.modules[0])
        for index, module in enumerate(trail.modules):
            if index:
                found = self.measure(module)
            if found.holds:
                return index, found
            if not isinstance(self.check, CompilesCheck):
                break
        raise InputError(f"the original itself breaks {self.check.text}: {original.words}")

    def _finding(self, index: int, breaking: Breaking | None, subject: Subject, isolated: Isolated) -> Finding:
        from slmopt.options import describe_pass

        if breaking is None:
            before = Measured(True, None, "the property holds")
            after = Measured(False, None, f"it raises {type(subject.error).__name__}: {subject.error}")
        else:
            before, after = breaking.before, breaking.after
        return Finding(
            self.check.text, tuple(describe_pass(item) for item in self.passes), index,
            describe_pass(subject.item), _owner(subject), before, after, breaking is None,
            isolated.means, isolated.names, isolated.candidates, isolated.found, 1, subject.runs, self.evaluations,
            difference=_difference(subject, isolated),
        )  # fmt: skip


def _difference(subject: Subject, isolated: Isolated) -> tuple[str, ...]:
    """What the pass did to the IR, with what was isolated alone."""
    from slmopt.bisection.hybrid import Hybrids
    from slmopt.ir.diff import diff

    after = subject.after
    if after is None:
        return ()
    try:
        if isolated.means == "rewrites":
            after = subject.run(frozenset(isolated.names))
        elif isolated.means == "definitions":
            after = Hybrids(subject.before, after).build(frozenset(isolated.names))
    except SlmError:
        return ()
    return () if after is None else tuple(str(diff(subject.before, after)).splitlines())


def _owner(subject: Subject) -> str:
    from slmopt.plugins.discovery import registry

    if subject.offered:
        return registry().passes[subject.item.name].source
    return f"{type(subject.item).__module__}.{type(subject.item).__qualname__}"


def _make_check(check: str | None, command: str | None, texts: Texts, target: str | None) -> Check:
    from slmopt.plugins.discovery import registry

    if command is not None:
        return CommandCheck(command)
    return make_check(parse_check(check or "", tuple(registry().metrics)), texts, target)


def _read_texts(module: Module, text: str | None, tokens: int | None) -> Texts:
    from slmopt.api import TEXT_TOKENS
    from slmopt.calibrate import SEPARATOR, tokenize_documents
    from slmopt.metrics import ModuleSubject, read_documents

    if text is None:
        return Texts()
    parts = [part for part in text.split(SEPARATOR) if part.strip()]
    limit, subject, count, used = tokens or TEXT_TOKENS, ModuleSubject(module), _DOCUMENTS, 0
    while True:  # of a long text no more is tokenized than about what is used
        documents = read_documents(subject, SEPARATOR.join(parts[:count]))
        if sum(len(document.ids) for document in documents) >= limit or count >= len(parts):
            break
        count *= 2
    kept: list[Document] = []
    for document in documents:
        if kept and used + len(document.ids) > limit:
            break
        kept.append(document)
        used += len(document.ids)
    return Texts(tokenize_documents(module.metadata, SEPARATOR.join(parts[:count])).head(limit), tuple(kept))


def _context(module: Module, texts: Texts, target: str | None) -> Context:
    from slmopt.api import load
    from slmopt.pipeline import Context
    from slmopt.plugins.discovery import registry
    from slmopt.target import parse_target

    known = registry()
    known.add_ops()
    known.check_rules()
    parsed = None if target is None else parse_target(target)
    return Context(parsed, texts.calibration, rules=known.rules_for, original=freeze(module), load=load)
