"""The order of passes: what each needs of those before it, checked before anything runs, and an order that holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmopt.errors import ContractError

if TYPE_CHECKING:
    from slmopt.pipeline import Pass

__all__ = ["check_order"]

_TRIES = 2000  # orders looked at before a message does without a suggestion


@dataclass(frozen=True)
class _Step:
    """A pass as far as its place matters. `text`: how a recipe writes it."""

    name: str
    text: str
    requires: frozenset[str]
    follows: frozenset[str]
    ensures: frozenset[str]
    breaks: frozenset[str]

    def leaves(self, known: AbstractSet[str]) -> frozenset[str]:
        """The facts that hold after it."""
        return frozenset(known) - self.breaks | self.ensures


def check_order(
    passes: Sequence[Pass], facts: AbstractSet[str] = frozenset(), known: Callable[[], Mapping[str, type[Pass]]] = dict
) -> None:
    """ContractError where a fact that a pass requires, or follows, does not hold when it would run.

    `facts` hold of the module already. `known` gives the passes there are, by name: where a fact comes from none of
    those given, the message suggests one. It names both passes and, where there is one, a whole order that holds.
    """
    from slmopt.options import describe_pass

    steps = [_step(item, describe_pass(item)) for item in passes]
    holding = frozenset(facts)
    for index, step in enumerate(steps):
        missing = _missing(step, holding, frozenset(facts), steps[:index], steps[index + 1 :])
        if missing:
            offered = [_step(item, name) for name, item in sorted(known().items())]
            cause = _explain(step, missing[0], steps[:index], steps[index + 1 :], offered)
            order = _arrange(steps, frozenset(facts), offered)
            hint = f"; an order that holds: {', '.join(order)}" if order else ""
            raise ContractError(f"{cause}{hint}")
        holding = step.leaves(holding)


def _step(item: Pass | type[Pass], text: str) -> _Step:
    return _Step(item.name, text, item.requires, item.follows, item.ensures, item.breaks)


def _missing(
    step: _Step, holding: frozenset[str], facts: frozenset[str], before: Sequence[_Step], after: Sequence[_Step]
) -> list[str]:
    """The facts that do not hold and that `step` requires, or follows where they are established at all.

    A pass that runs again further on need not follow: what it could not find now, it finds then.
    """
    missing = sorted(step.requires - holding)
    if step.name not in {other.name for other in after}:
        established = facts.union(*(other.ensures for other in (*before, *after)))
        missing += sorted((step.follows & established) - holding - step.requires)
    return missing


def _explain(
    step: _Step, fact: str, before: Sequence[_Step], after: Sequence[_Step], offered: Sequence[_Step]
) -> str:
    verb = "requires" if fact in step.requires else "is to follow"
    breaking = next((other for other in reversed(before) if fact in other.breaks), None)
    if breaking is not None:
        makers = [other.name for other in (*before, *after) if fact in other.ensures]
        again = f", or {makers[0]} again between them" if makers else ""
        return (f"pass {step.name} {verb} {fact!r}, which {breaking.name}, before it, breaks: "
                f"put {step.name} before {breaking.name}{again}")  # fmt: skip
    later = [other.name for other in after if fact in other.ensures]
    if later:
        return f"pass {step.name} {verb} {fact!r}, which {later[0]} ensures: put {later[0]} before {step.name}"
    names = " or ".join(other.name for other in offered if fact in other.ensures)
    if not names:
        return f"pass {step.name} {verb} {fact!r}, which no known pass ensures"
    return f"pass {step.name} {verb} {fact!r}, which {names} ensures: add it before {step.name}"


# --- a suggestion ------------------------------------------------------------------------------------------------
def _arrange(steps: Sequence[_Step], facts: frozenset[str], offered: Sequence[_Step]) -> list[str] | None:
    """The steps in an order that holds, as near to the one given as possible, with offered ones where facts need them.

    None where there is no such order, or none is found soon.
    """
    complete = _complete(list(steps), facts, offered)
    if complete is None:
        return None
    found = next(_orders(tuple(complete), facts, facts, (), {}), None)
    return None if found is None else [step.text for step in found]


def _complete(steps: list[_Step], facts: frozenset[str], offered: Sequence[_Step]) -> list[_Step] | None:
    """`steps` and, before the first that requires it, a provider of each fact that comes from nowhere else."""
    while True:
        ensured = facts.union(*(step.ensures for step in steps))
        lacking = next(((i, fact) for i, step in enumerate(steps) for fact in sorted(step.requires - ensured)), None)
        if lacking is None:
            return steps
        makers = [step for step in offered if lacking[1] in step.ensures]
        if not makers:
            return None
        steps.insert(lacking[0], min(makers, key=lambda step: (len(step.ensures), len(step.requires), step.name)))


def _orders(
    left: tuple[_Step, ...], holding: frozenset[str], facts: frozenset[str], done: tuple[_Step, ...],
    seen: dict[object, None],
) -> Iterator[tuple[_Step, ...]]:  # fmt: skip
    """Every order of the steps that are left, those first that keep to the order given."""
    if not left:
        yield done
        return
    state = (left, holding)
    if state in seen or len(seen) > _TRIES:
        return
    seen[state] = None
    for index, step in enumerate(left):
        rest = left[:index] + left[index + 1 :]
        if not _missing(step, holding, facts, done, rest):
            yield from _orders(rest, step.leaves(holding), facts, (*done, step), seen)
