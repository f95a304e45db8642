"""Matches: the op that a pattern was found at, and what it bound, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from slmopt.errors import IRError, nearest
from slmopt.ir.graph import Attribute, Op, Operand, Value, Weight
from slmopt.rewrite.patterns import Bindings, Pattern

__all__ = ["Match", "find_matches", "match"]


class Match:
    """The op a pattern matched (`root`) and what it bound, by name. Asking for what is not there is an IRError."""

    def __init__(self, root: Op, bindings: Bindings) -> None:
        self.root, self._bindings = root, bindings

    def __contains__(self, name: str) -> bool:
        return name in self._bindings

    def __getitem__(self, name: str) -> Value | Weight:
        found = self._find(name)
        if not isinstance(found, Value | Weight):
            raise IRError(f"{name!r} is bound to {found!r}, which is no operand: ask for .number or .attribute")
        return found

    def _find(self, name: str) -> Value | Weight | Attribute:
        if name not in self._bindings:
            bound = ", ".join(self._bindings) or "nothing"
            raise IRError(f"the match at {self.root.describe()} binds no {name!r}{nearest(name, self._bindings)}; "
                          f"it binds {bound}")  # fmt: skip
        return self._bindings[name]

    def value(self, name: str) -> Value:
        """A bound operand that is a value."""
        found = self[name]
        if not isinstance(found, Value):
            raise IRError(f"{name!r} is bound to a weight, not to a value")
        return found

    def weight(self, name: str) -> Weight:
        """A bound operand that is a weight."""
        found = self[name]
        if not isinstance(found, Weight):
            raise IRError(f"{name!r} is bound to a value, not to a weight")
        return found

    def number(self, name: str) -> float:
        """A bound constant, or a bound attribute that is a number."""
        found = self._find(name)
        if isinstance(found, Value | Weight):
            raise IRError(f"{name!r} is bound to an operand, not to a number")
        if not isinstance(found, int | float):
            raise IRError(f"{name!r} is bound to the attribute {found!r}, not to a number")
        return found

    def attribute(self, name: str) -> Attribute:
        """A bound attribute."""
        found = self._find(name)
        if isinstance(found, Value | Weight):
            raise IRError(f"{name!r} is bound to an operand, not to an attribute")
        return found

    def op(self, name: str) -> Op:
        """The op that made a bound value."""
        made_by = self.value(name).op
        if made_by is None:
            raise IRError(f"{name!r} is bound to an input of the graph, which no op made")
        return made_by


def match(operand: Operand, pattern: Pattern) -> Match | None:
    """The first way `pattern` matches what an op made, or None."""
    if not isinstance(operand, Value) or operand.op is None:
        return None
    found = next(pattern.find(operand, {}), None)
    return None if found is None else Match(operand.op, found)


def find_matches(ops: Iterable[Op], pattern: Pattern) -> Iterator[Match]:
    """The first match at each of some ops: of a graph (`graph.walk()`) or a block (`block.ops`), in order."""
    for op in ops:
        found = match(op.results[0], pattern) if op.results and op.graph is not None else None
        if found is not None:
            yield found
