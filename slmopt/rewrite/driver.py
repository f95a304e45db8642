"""The greedy driver: rules are tried on every op, again and again, until none matches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from slmopt.errors import IRError
from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.journal import Journal, current_journal, place_of
from slmopt.rewrite.checks import check_rules
from slmopt.rewrite.matches import Match
from slmopt.rewrite.patterns import EitherPattern, OpPattern, Pattern
from slmopt.rewrite.rewriter import Rewriter, renamed
from slmopt.rewrite.rules import Rule

__all__ = ["erase_unused", "rewrite"]

_ROUNDS = 1000


def rewrite(module: Module, rules: Sequence[Rule], within: Iterable[Op] | None = None) -> dict[str, int]:
    """Apply rules to every graph until none matches; returns how often each kind applied.

    Rules are tried in order on each op, from the graph's inputs to its outputs. What a rewrite leaves unread is erased
    at once, so that use counts are true. `within` limits them to matches that end at one of these ops, such as those of
    a block, or at what replaced them. Raises IRError naming the rule where it can never match, where a replacement has
    another type, or where rules undo each other forever.
    """
    check_rules(rules)
    counts: dict[str, int] = {}
    table: dict[str, list[Rule]] = {}
    for entry in rules:
        for name in _root_names(entry.pattern, entry.kind):
            table.setdefault(name, []).append(entry)
    scope = None if within is None else set(within)
    for graph in module.graphs.values():
        for _ in range(_ROUNDS):
            applied = _sweep(module, graph, table, scope)
            if not applied:
                break
            for kind in applied:
                counts[kind] = counts.get(kind, 0) + 1
        else:
            raise IRError(f"rules undo each other in graph @{graph.name}: {', '.join(sorted(set(applied)))} never end")
    return counts


def _root_names(pattern: Pattern, kind: str) -> tuple[str, ...]:
    if isinstance(pattern, EitherPattern):
        return tuple(dict.fromkeys(name for option in pattern.options for name in _root_names(option, kind)))
    if not isinstance(pattern, OpPattern):
        raise IRError(f"the rule {kind!r}: a rule's pattern must begin with an op, not with {pattern}")
    return pattern.names


def _sweep(
    module: Module, graph: Graph, table: Mapping[str, list[Rule]], scope: set[Op] | None
) -> list[str]:
    """Try every op once; returns the kinds that applied."""
    applied: list[str] = []
    journal = current_journal()
    for root in graph.walk():
        if scope is not None and root not in scope:
            continue
        for entry in table.get(root.name, ()):
            start = time.perf_counter()
            created = _apply(module, graph, root, entry, journal)
            journal.spend(entry.kind, time.perf_counter() - start)
            if created is not None:
                applied.append(entry.kind)
                if scope is not None:
                    scope.update(created)
                break
    return applied


def _apply(module: Module, graph: Graph, root: Op, entry: Rule, journal: Journal) -> list[Op] | None:
    """The ops that the rule made where it applied at `root`, else None."""
    place = place_of(root)
    if not journal.permits(entry.kind, place):
        return None
    old = root.results[0]
    for found in entry.pattern.find(old, {}):
        at = Rewriter(module, graph, root)
        new = _build(entry, at, Match(root, found), place)
        if new is not None and new is not old and not (isinstance(new, Weight) and old in graph.outputs):
            if new.type != old.type:
                raise IRError(f"the rule {entry.kind!r} replaces {root.describe()}: {old.type} by {new.type}")
            _replace(graph, old, new, at.created)
            journal.record(entry.kind, place)
            return at.created
        for made in reversed(at.created):
            erase_unused(graph, made)
    return None


def _build(entry: Rule, at: Rewriter, m: Match, place: str) -> Value | Weight | None:
    try:
        new: object = entry.build(at, m)
    except IRError as error:
        raise IRError(f"the rule {entry.kind!r} at {place}: {error}") from error
    except Exception as error:
        error.add_note(f"in the rule {entry.kind!r} at {place}")
        raise
    if new is None or isinstance(new, Value | Weight):
        return new
    hint = ": return its result" if isinstance(new, Op) else ""
    raise IRError(f"the rule {entry.kind!r} at {place} returned {new!r}, expected a value, a weight or None{hint}")


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


def _take_name(graph: Graph, old: Value, new: Value, created: bool) -> None:
    """What stands for a value is called as it was; an op that loses a trailing view takes the view's shorter name."""
    same_place = new.op is not None and old.op is not None and new.op.location == old.op.location
    if created and new.op is not None:
        wanted = renamed(old, new.op.name)
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
