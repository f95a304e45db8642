"""Within a pass: the smallest set of its rewrites, or of the definitions it changed, that breaks the property."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from slmopt.bisection.checks import Measured
from slmopt.bisection.hybrid import Hybrids
from slmopt.bisection.minimal import find_minimal
from slmopt.bisection.trail import freeze
from slmopt.ir.verify import verify
from slmopt.journal import open_journal
from slmopt.pipeline import Context, Pass, Pipeline

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["Isolated", "Subject", "isolate"]

Means = Literal["rewrites", "definitions", "pass"]
_SORTED = 100  # candidates that are measured one by one, to find a smaller set where several act together


@dataclass
class Subject:
    """A pass, the module before it and what it does to it. `error`: what it raises there; `module` is None then.

    runs: how often the pass was run alone. made: the rewrites of the latest run, in order, also where it raised.
    """

    item: Pass
    before: Module
    after: Module | None
    context: Context
    error: Exception | None = None
    runs: int = 0
    made: tuple[str, ...] = ()

    @property
    def offered(self) -> bool:
        """Whether the pass is one that slmopt or a plugin offers under its name."""
        from slmopt.plugins.discovery import registry

        known = registry()
        return self.item.name in known.passes and known.find_pass(self.item.name) is type(self.item)

    def run(self, allowed: Container[str] | None = None) -> Module:
        """The module after the pass with some of its rewrites.

        Whatever the pass raises goes through; IRError where it leaves a module that breaks the IR's rules.
        """
        self.runs += 1
        module = freeze(self.before)
        with open_journal(allowed) as journal:
            try:
                if self.error is not None:  # what the pipeline finds wrong counts too
                    Pipeline([self.item], verify=False).run(module, self.context)
                else:
                    self.item.run(module, self.context)
            finally:
                self.made = tuple(dict.fromkeys(journal.entries))
        verify(module, weights=True)
        if self.after is not None and "facts" in self.after.metadata:
            module.metadata["facts"] = list(self.after.metadata["facts"])
        return module

    def raises(self, allowed: Container[str] | None = None) -> bool:
        """Whether it raises the same kind of error with some of its rewrites."""
        try:
            self.run(allowed)
        except Exception as error:
            return type(error) is type(self.error)
        return False


@dataclass(frozen=True)
class Isolated:
    """What within the pass breaks the property.

    means: "rewrites" that the pass writes in its journal, as "kind at @graph/%value"; "definitions" of values that it
    changed, as "@graph/%value"; or the whole "pass", where neither can be separated. names: those found. candidates: of
    how many. found: what the check says of the module with these alone.
    """

    means: Means
    names: tuple[str, ...] = ()
    candidates: int = 0
    found: Measured | None = None


def isolate(subject: Subject, measure: Callable[[Module], Measured]) -> Isolated:
    """The smallest set of rewrites that breaks the property; see `find_minimal`. Where the pass raises: that makes it.

    A pass that asks its journal for nothing, or breaks the property by what it does besides, is taken apart by the
    definitions of values: a module with some of them from after the pass and the others from before it.
    """
    if subject.error is not None:
        return _isolate_error(subject)
    found = _isolate_rewrites(subject, measure)
    return found or _isolate_definitions(subject, measure) or Isolated("pass")


def _isolate_error(subject: Subject) -> Isolated:
    asked = _Asked()
    again = subject.raises(asked)
    tried = list(dict.fromkeys([*subject.made, *asked.names()[-1:]]))  # those made, and the one that was at work then
    if not again or not tried or subject.raises(frozenset()):
        return Isolated("pass")
    if not subject.raises(frozenset(tried)):
        tried = asked.names()
    return Isolated("rewrites", find_minimal(tried, subject.raises), len(tried))


class _Asked(Container[str]):
    """Permits every rewrite and remembers those that were asked for, in order."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def __contains__(self, name: object) -> bool:
        self._names[str(name)] = None
        return True

    def names(self) -> list[str]:
        return list(self._names)


def _isolate_rewrites(subject: Subject, measure: Callable[[Module], Measured]) -> Isolated | None:
    results: dict[frozenset[str], Measured | None] = {}

    def judge(allowed: frozenset[str]) -> Measured | None:
        """None where some rewrites without the others make no module."""
        if allowed not in results:
            try:
                module = subject.run(allowed)
            except Exception:  # a pass need not stand having half of its rewrites refused
                results[allowed] = None
            else:
                results[allowed] = measure(module)
        return results[allowed]

    try:
        subject.run()
    except Exception:  # it does not do the same twice
        return None
    return _minimize("rewrites", subject.made, judge)


def _isolate_definitions(subject: Subject, measure: Callable[[Module], Measured]) -> Isolated | None:
    if subject.after is None:
        return None
    hybrids = Hybrids(subject.before, subject.after)

    def judge(chosen: frozenset[str]) -> Measured | None:
        module = hybrids.build(chosen)
        return None if module is None else measure(module)

    return _minimize("definitions", hybrids.names, judge)


def _minimize(
    means: Means, candidates: Sequence[str], judge: Callable[[frozenset[str]], Measured | None]
) -> Isolated | None:
    """None where all candidates together do not break the property, or none of them does already."""

    def fails(chosen: frozenset[str]) -> bool:
        found = judge(chosen)
        return found is not None and not found.holds

    if not candidates or not fails(frozenset(candidates)) or fails(frozenset()):
        return None
    names = find_minimal(candidates, fails)
    if len(names) > 1 and len(candidates) <= _SORTED:
        names = min(names, find_minimal(_by_damage(candidates, judge), fails), key=len)
        names = tuple(name for name in candidates if name in names)
    return Isolated(means, names, len(candidates), judge(frozenset(names)))


def _by_damage(candidates: Sequence[str], judge: Callable[[frozenset[str]], Measured | None]) -> list[str]:
    """Candidates by how far each alone moves the number, the worst first: where many small errors add up, the fewest
    that go over the limit are the largest."""
    nothing = judge(frozenset())
    start = 0.0 if nothing is None or nothing.value is None else nothing.value

    def damage(name: str) -> float:
        found = judge(frozenset([name]))
        return 0.0 if found is None or found.value is None else abs(found.value - start)

    return sorted(candidates, key=damage, reverse=True)
