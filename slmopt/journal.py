"""The journal of a pass: which rewrites it makes, where and how long they take, and which of them it may make.

The driver of rules (`slmopt.rewrite`) and passes that edit graphs by hand (`Context.permits`) write into the journal
that is open. `slmopt bisect` opens one that permits some rewrites only, and so finds those that break a property.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from slmopt.ir.graph import Op

__all__ = ["Journal", "Spent", "current_journal", "open_journal", "place_of"]


@dataclass(frozen=True)
class Spent:
    """How often rewrites of one kind were made, and the seconds that looking for them and making them took."""

    count: int = 0
    seconds: float = 0.0


@dataclass
class Journal:
    """`entries`: the rewrites made in order, each as "kind at @graph/%value". `allowed`: those permitted; None: all."""

    allowed: Container[str] | None = None
    entries: list[str] = field(default_factory=list)
    _spent: dict[str, Spent] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)
    _granted: str = ""

    def permits(self, kind: str, place: str) -> bool:
        """Whether a rewrite may be made."""
        return self.allowed is None or f"{kind} at {place}" in self.allowed

    def record(self, kind: str, place: str) -> None:
        """A rewrite was made."""
        self.entries.append(f"{kind} at {place}")
        found = self._spent.get(kind, Spent())
        self._spent[kind] = Spent(found.count + 1, found.seconds)

    def spend(self, kind: str, seconds: float) -> None:
        """Time went into rewrites of a kind, whether or not one was made."""
        found = self._spent.get(kind, Spent())
        self._spent[kind] = Spent(found.count, found.seconds + seconds)
        self._since, self._granted = time.perf_counter(), ""

    def grant(self, kind: str, place: str) -> None:
        """A rewrite will be made by hand now: what it took to find it, and to make the one before, goes to its kind."""
        self.record(kind, place)
        self.spend(kind, time.perf_counter() - self._since)
        self._granted = kind

    def close(self) -> None:
        """The pass has ended: the time since the last rewrite that was made by hand goes to its kind."""
        if self._granted:
            self.spend(self._granted, time.perf_counter() - self._since)

    @property
    def spent(self) -> Mapping[str, Spent]:
        """Count and time of each kind of which a rewrite was made."""
        return {kind: spent for kind, spent in self._spent.items() if spent.count}


_OPEN: ContextVar[Journal | None] = ContextVar("journal", default=None)


def current_journal() -> Journal:
    """The journal that is open; one that permits everything, and that nobody reads, where none is."""
    return _OPEN.get() or Journal()


@contextmanager
def open_journal(allowed: Container[str] | None = None) -> Iterator[Journal]:
    """Open a journal for the block. Of nested journals the outermost that restricts decides for the inner ones too."""
    outer = _OPEN.get()
    journal = Journal(outer.allowed if allowed is None and outer is not None else allowed)
    token = _OPEN.set(journal)
    try:
        yield journal
    finally:
        journal.close()
        _OPEN.reset(token)
        if outer is not None:
            outer.entries += journal.entries


def place_of(op: Op) -> str:
    """Where an op is, as journals say it: `@graph/%value`."""
    graph = op.graph.name if op.graph is not None else ""
    return f"@{graph}/%{op.results[0].name}" if op.results else f"@{graph}/{op.name}"
