"""Patterns over operands and a greedy driver: rules of a few lines each, applied until none matches.

    rule("silu", op("mul", any_("x"), op("sigmoid", any_("x"))))(lambda at, m: at.add("silu", m["x"]))

A pattern describes a value by the op that made it, down to what it binds by name. A name that occurs twice must bind
the same operand both times. Commutative ops match in either order, and matching backtracks.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import TypeAlias

from slmopt.errors import IRError
from slmopt.ir.graph import Attribute, Graph, Module, Op, Operand, Value, Weight
from slmopt.ir.types import TensorType
from slmopt.journal import Journal, current_journal, place_of

__all__ = [
    "COMMUTATIVE", "Build", "Match", "Pattern", "Rewriter", "Rule", "any_", "constant", "constant_value",
    "derive_weight", "either", "erase_unused", "match", "on_last_axis", "op", "rewrite", "rule", "weight",
]  # fmt: skip

COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum", "eq", "ne", "logical_and", "logical_or"})
_ROUNDS = 1000

Bindings: TypeAlias = Mapping[str, "Value | Weight | float"]


# --- patterns ----------------------------------------------------------------------------------------------------
class Pattern:
    """What an operand looks like. `find` gives every way to match it, as the names bound so far and by it."""

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        """Every way `operand` matches; nothing where it does not."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Any(Pattern):
    name: str
    where: Callable[[Value | Weight], bool] | None
    weights_only: bool = False

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        if operand is None or (self.weights_only and not isinstance(operand, Weight)):
            return
        if self.where is None or self.where(operand):
            yield from _bind(self.name, operand, bound)


@dataclass(frozen=True)
class _Constant(Pattern):
    value: float | None
    name: str
    tolerance: float

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        found = constant_value(operand)
        if found is not None and (self.value is None or math.isclose(found, self.value, rel_tol=self.tolerance)):
            yield from _bind(self.name, found, bound)


@dataclass(frozen=True)
class _Either(Pattern):
    options: tuple[Pattern, ...]

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        for option in self.options:
            yield from option.find(operand, bound)


@dataclass(frozen=True)
class _Op(Pattern):
    names: tuple[str, ...]
    operands: tuple[Pattern, ...]
    bind: str
    once: bool
    where: Callable[[Op], bool] | None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    open: bool = False

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        made_by = operand.op if isinstance(operand, Value) else None
        if made_by is None or made_by.name not in self.names or (self.once and len(operand.uses) != 1):  # type: ignore[union-attr]
            return
        if any(made_by.attributes[name] != value for name, value in self.attributes.items()):
            return
        if self.where is not None and not self.where(made_by):
            return
        for start in _bind(self.bind, operand, bound):  # type: ignore[arg-type]
            yield from self._operands(made_by, start)

    def _operands(self, made_by: Op, bound: Bindings) -> Iterator[Bindings]:
        given = made_by.operands
        rest = any(extra is not None for extra in given[len(self.operands) :]) and not self.open
        if rest or len(given) < len(self.operands):
            return
        yield from _find_all(self.operands, given, bound)
        if made_by.name in COMMUTATIVE and self.operands:
            yield from _find_all(self.operands, given[::-1], bound)


def _find_all(patterns: Sequence[Pattern], operands: Sequence[Operand], bound: Bindings) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for found in patterns[0].find(operands[0], bound):
        yield from _find_all(patterns[1:], operands[1:], found)


def _bind(name: str, found: Value | Weight | float, bound: Bindings) -> Iterator[Bindings]:
    if not name:
        yield bound
    elif name not in bound:
        yield {**bound, name: found}
    elif bound[name] is found or (not isinstance(found, Value) and bound[name] == found):
        yield bound


def any_(name: str = "", where: Callable[[Value | Weight], bool] | None = None) -> Pattern:
    """Any value or weight, bound to `name`; `where` may refuse it."""
    return _Any(name, where)


def weight(name: str = "", where: Callable[[Value | Weight], bool] | None = None) -> Pattern:
    """A weight operand, bound to `name`."""
    return _Any(name, where, weights_only=True)


def constant(value: float | None = None, name: str = "", tolerance: float = 1e-6) -> Pattern:
    """A number known at compile time: any where `value` is None, else within `tolerance` relative to it."""
    return _Constant(value, name, tolerance)


def either(*options: Pattern) -> Pattern:
    """Whatever one of the patterns matches, tried in order."""
    return _Either(options)


def op(
    names: str | tuple[str, ...], *operands: Pattern | EllipsisType, bind: str = "", once: bool = False,
    where: Callable[[Op], bool] | None = None, **attributes: Attribute,
) -> Pattern:  # fmt: skip
    """The result of an op. Operands left out of the pattern must be absent in the op, unless `...` ends the pattern.

    `bind` names the value itself, `once` wants it read in one place only, `where` may refuse; attributes that are given
    must be equal.
    """
    patterns = tuple(pattern for pattern in operands if isinstance(pattern, Pattern))
    if operands[len(patterns) :] not in ((), (...,)):
        raise TypeError("... stands for the remaining operands and comes last")
    given = (names,) if isinstance(names, str) else names
    return _Op(given, patterns, bind, once, where, attributes, len(patterns) < len(operands))


def on_last_axis(found: Op) -> bool:
    """Whether an op with an `axis` works along the last axis of its first operand; for `where`."""
    operand, axis = found.operands[0], found.attributes["axis"]
    return operand is not None and isinstance(axis, int) and axis % max(operand.type.rank, 1) == operand.type.rank - 1


def constant_value(operand: Operand) -> float | None:
    """The number that every element of an operand is, where the graph says so; else None."""
    made_by = operand.op if isinstance(operand, Value) else None
    if made_by is None or made_by.name not in ("constant", "full"):
        return None
    return made_by.attributes["value"]  # type: ignore[return-value]


# --- matches -----------------------------------------------------------------------------------------------------
class Match:
    """The op a pattern matched and the operands it bound, by name."""

    def __init__(self, root: Op, bindings: Bindings) -> None:
        self.root, self._bindings = root, bindings

    def __contains__(self, name: str) -> bool:
        return name in self._bindings

    def __getitem__(self, name: str) -> Value | Weight:
        found = self._bindings[name]
        if not isinstance(found, Value | Weight):
            raise TypeError(f"{name!r} is bound to the number {found}")
        return found

    def value(self, name: str) -> Value:
        """A bound operand that is a value."""
        found = self[name]
        if not isinstance(found, Value):
            raise TypeError(f"{name!r} is bound to a weight, not to a value")
        return found

    def weight(self, name: str) -> Weight:
        """A bound operand that is a weight."""
        found = self[name]
        if not isinstance(found, Weight):
            raise TypeError(f"{name!r} is bound to a value, not to a weight")
        return found

    def number(self, name: str) -> float:
        """A bound constant."""
        found = self._bindings[name]
        if isinstance(found, Value | Weight):
            raise TypeError(f"{name!r} is bound to an operand, not to a number")
        return found

    def op(self, name: str) -> Op:
        """The op that made a bound value."""
        made_by = self.value(name).op
        if made_by is None:
            raise TypeError(f"{name!r} is bound to an input of the graph")
        return made_by


def match(operand: Operand, pattern: Pattern) -> Match | None:
    """The first way `pattern` matches what an op made, or None."""
    if not isinstance(operand, Value) or operand.op is None:
        return None
    found = next(pattern.find(operand, {}), None)
    return None if found is None else Match(operand.op, found)


# --- rules -------------------------------------------------------------------------------------------------------
class Rewriter:
    """What a rule builds with: new ops go directly before the matched op and take its place in the source model."""

    def __init__(self, module: Module, graph: Graph, root: Op) -> None:
        self.module, self.graph, self.root = module, graph, root
        self.created: list[Op] = []

    def add(self, name: str, *operands: Operand, **attributes: Attribute) -> Value:
        """Add an op with one result."""
        hint, place = _renamed(self.root.result, name), self.root.location
        made = self.graph.add(name, operands, attributes, before=self.root, hint=hint, location=place)
        self.created.append(made)
        return made.result

    def again(self, made_by: Op, *operands: Operand) -> Value:
        """The same op, attributes included, on other operands."""
        return self.add(made_by.name, *operands, **made_by.attributes)

    def derive(
        self, suffix: str, source: Weight, type: TensorType, description: str, compute: Callable[..., object]
    ) -> Weight | None:
        """A weight computed from another one; None where the module has the text of `source` but not its numbers."""
        if source.key not in self.module.weights:
            return None
        text = f"{description} of @{source.key}"
        return derive_weight(self.module, f"{source.key}.{suffix}", (source.key,), type, text, compute)


def derive_weight(
    module: Module, key: str, inputs: tuple[str, ...], type: TensorType, description: str,
    compute: Callable[..., object],
) -> Weight:  # fmt: skip
    """A weight computed from others when it is asked for; the same description again gives the same key."""
    store, count, name = module.weights, 1, key
    while name in store and (store.source(name).description, store.source(name).type) != (description, type):
        count += 1
        name = f"{key}.{count}"
    return Weight(store.derive(name, inputs, type, description, compute), type)


Build: TypeAlias = Callable[[Rewriter, Match], "Value | Weight | None"]


@dataclass(frozen=True)
class Rule:
    """Where `pattern` matches, `build` gives what replaces the matched op's result, or None to leave it.

    `kind` is what the rule is counted under.
    """

    kind: str
    pattern: Pattern
    build: Build


def rule(kind: str, pattern: Pattern) -> Callable[[Build], Rule]:
    """Decorate a build function to make a rule of it."""
    return lambda build: Rule(kind, pattern, build)


def rewrite(module: Module, rules: Sequence[Rule]) -> dict[str, int]:
    """Apply rules to every graph until none matches; returns how often each kind applied.

    Rules are tried in order on each op, from the graph's inputs to its outputs. What a rewrite leaves unread is erased
    at once, so that use counts are true. Raises IRError naming the rule where a replacement has another type, or where
    rules undo each other forever.
    """
    counts: dict[str, int] = {}
    table: dict[str, list[Rule]] = {}
    for entry in rules:
        for name in _root_names(entry.pattern):
            table.setdefault(name, []).append(entry)
    for graph in module.graphs.values():
        for _ in range(_ROUNDS):
            applied = _sweep(module, graph, table)
            if not applied:
                break
            for kind in applied:
                counts[kind] = counts.get(kind, 0) + 1
        else:
            raise IRError(f"rules undo each other in graph @{graph.name}: {', '.join(sorted(set(applied)))} never end")
    return counts


def _root_names(pattern: Pattern) -> tuple[str, ...]:
    if isinstance(pattern, _Either):
        return tuple(dict.fromkeys(name for option in pattern.options for name in _root_names(option)))
    if not isinstance(pattern, _Op):
        raise TypeError("a rule's pattern must begin with an op")
    return pattern.names


def _sweep(module: Module, graph: Graph, table: Mapping[str, list[Rule]]) -> list[str]:
    """Try every op once; returns the kinds that applied."""
    applied: list[str] = []
    journal = current_journal()
    for root in graph.walk():
        for entry in table.get(root.name, ()):
            start = time.perf_counter()
            done = _apply(module, graph, root, entry, journal)
            journal.spend(entry.kind, time.perf_counter() - start)
            if done:
                applied.append(entry.kind)
                break
    return applied


def _apply(module: Module, graph: Graph, root: Op, entry: Rule, journal: Journal) -> bool:
    place = place_of(root)
    if not journal.permits(entry.kind, place):
        return False
    for found in entry.pattern.find(root.results[0], {}):
        at = Rewriter(module, graph, root)
        new = entry.build(at, Match(root, found))
        old = root.results[0]
        if new is not None and new is not old and not (isinstance(new, Weight) and old in graph.outputs):
            if new.type != old.type:
                raise IRError(f"the rule {entry.kind!r} replaces {root.describe()}: {old.type} by {new.type}")
            _replace(graph, old, new, at.created)
            journal.record(entry.kind, place)
            return True
        for made in reversed(at.created):
            erase_unused(graph, made)
    return False


def _replace(graph: Graph, old: Value, new: Value | Weight, created: Sequence[Op]) -> None:
    if isinstance(new, Weight):
        for use in list(old.uses):
            use.op.set_operand(use.index, new)
    else:
        graph.replace_uses(old, new)
        _take_name(graph, old, new, new.op in created)
    for made in (*reversed(created), old.op):
        if made is not None:
            erase_unused(graph, made)


def _renamed(old: Value, name: str) -> str:
    """The name of a value, as it would be had op `name` made it: `attn_add_2` -> `attn_rope`."""
    made_by = old.op.name if old.op is not None else ""
    return re.sub(rf"(?<![a-z]){made_by}(_\d+)*$", name, old.name)


def _take_name(graph: Graph, old: Value, new: Value, created: bool) -> None:
    """What stands for a value is called as it was; an op that loses a trailing view takes the view's shorter name."""
    same_place = new.op is not None and old.op is not None and new.op.location == old.op.location
    if created and new.op is not None:
        wanted = _renamed(old, new.op.name)
        if wanted != old.name and not new.name.startswith(wanted):
            graph.rename(new, wanted)
        elif wanted == old.name:
            new.name, old.name = old.name, new.name
    elif same_place and len(old.name) < len(new.name) and new.name.startswith(old.name):
        new.name, old.name = old.name, new.name


def erase_unused(graph: Graph, made: Op) -> None:
    """Erase an op that nobody reads, and what was made for it alone."""
    pending = [made]
    while pending:
        dead = pending.pop()
        if dead.graph is not graph or any(r.uses or r in graph.outputs for r in dead.results):
            continue
        pending += [o.op for o in dead.operands if isinstance(o, Value) and o.op is not None]
        graph.erase(dead)
