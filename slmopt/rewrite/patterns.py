"""Patterns: what an operand looks like, described by the op that made it, down to what is bound by name.

A name that occurs twice must bind the same thing both times. Commutative ops match in either order, and matching
backtracks. The same words, on the right side of a declarative rule, say what is built (`slmopt.rewrite.templates`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, TypeAlias

from slmopt.errors import IRError
from slmopt.ir.graph import Attribute, Op, Operand, Value, Weight

__all__ = [
    "COMMUTATIVE", "AbsentPattern", "AnyPattern", "Bindings", "ConstantPattern", "EitherPattern", "OpPattern",
    "Pattern", "any_", "constant", "constant_value", "either", "on_last_axis", "op", "weight",
]  # fmt: skip

COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum", "eq", "ne", "logical_and", "logical_or"})

Bindings: TypeAlias = Mapping[str, "Value | Weight | Attribute"]


class Pattern:
    """What an operand looks like. `find` gives every way to match it, as the names bound so far and by it."""

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        """Every way `operand` matches; nothing where it does not."""
        raise NotImplementedError

    def parts(self) -> tuple[Pattern, ...]:
        """The patterns that this one is made of."""
        return ()


@dataclass(frozen=True)
class AnyPattern(Pattern):
    """See `any_` and `weight`."""

    name: str
    where: Callable[[Any], bool] | None
    uses: int | None = None
    weights_only: bool = False
    element: str = ""

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        if operand is None or (self.weights_only and not isinstance(operand, Weight)):
            return
        if self.element and str(operand.type.element) != self.element:
            return
        if self.uses is not None and _reads(operand) != self.uses:
            return
        if self.where is None or self.where(operand):
            yield from _bind(self.name, operand, bound)

    def __str__(self) -> str:
        return self.name or "_"


@dataclass(frozen=True)
class ConstantPattern(Pattern):
    """See `constant`."""

    value: float | None
    name: str
    tolerance: float

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        found = constant_value(operand)
        if found is not None and (self.value is None or math.isclose(found, self.value, rel_tol=self.tolerance)):
            yield from _bind(self.name, found, bound)

    def __str__(self) -> str:
        return self.name or "constant" if self.value is None else f"{self.value:g}"


@dataclass(frozen=True)
class AbsentPattern(Pattern):
    """An optional operand that is not there: `None` among the operands of `op`."""

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        if operand is None:
            yield bound

    def __str__(self) -> str:
        return "_"


@dataclass(frozen=True)
class EitherPattern(Pattern):
    """See `either`."""

    options: tuple[Pattern, ...]

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        for option in self.options:
            yield from option.find(operand, bound)

    def parts(self) -> tuple[Pattern, ...]:
        return self.options

    def __str__(self) -> str:
        return " | ".join(map(str, self.options))


@dataclass(frozen=True)
class OpPattern(Pattern):
    """See `op`."""

    names: tuple[str, ...]
    operands: tuple[Pattern, ...]
    bind: str
    uses: int | None
    where: Callable[[Op], bool] | None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    open: bool = False

    def find(self, operand: Operand, bound: Bindings) -> Iterator[Bindings]:
        made_by = operand.op if isinstance(operand, Value) else None
        if made_by is None or made_by.name not in self.names:
            return
        if self.uses is not None and _reads(operand) != self.uses:
            return
        for named in _bind(self.bind, operand, bound):
            for start in self._attributes(made_by, named):
                if self.where is None or self.where(made_by):
                    yield from self._operands(made_by, start)

    def _attributes(self, made_by: Op, bound: Bindings) -> Iterator[Bindings]:
        for name, wanted in self.attributes.items():
            value = made_by.attributes[name]
            if isinstance(wanted, AnyPattern):
                fits = wanted.where is None or wanted.where(value)
                found = next(_bind(wanted.name, value, bound), None) if fits else None
                if found is None:
                    return
                bound = found
            elif not (wanted(value) if callable(wanted) else value == wanted):
                return
        yield bound

    def _operands(self, made_by: Op, bound: Bindings) -> Iterator[Bindings]:
        given = made_by.operands
        rest = any(extra is not None for extra in given[len(self.operands) :]) and not self.open
        if rest or len(given) < len(self.operands):
            return
        yield from _find_all(self.operands, given, bound)
        if made_by.name in COMMUTATIVE and self.operands:
            yield from _find_all(self.operands, given[::-1], bound)

    def parts(self) -> tuple[Pattern, ...]:
        return self.operands

    def __str__(self) -> str:
        shown = [*map(str, self.operands), *(["..."] if self.open else [])]
        shown += [f"{name}={_attribute_text(value)}" for name, value in self.attributes.items()]
        return f"{'|'.join(self.names)}({', '.join(shown)})"


def _attribute_text(value: Any) -> str:
    return str(value) if isinstance(value, Pattern) else "..." if callable(value) else repr(value)


def _reads(operand: Operand) -> int:
    """In how many places a value is read, as an output too; a weight counts as read once."""
    if not isinstance(operand, Value):
        return 1
    graph = operand.op.graph if operand.op is not None else None
    outputs = () if graph is None else graph.outputs
    return len(operand.uses) + sum(output is operand for output in outputs)


def _find_all(patterns: Sequence[Pattern], operands: Sequence[Operand], bound: Bindings) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for found in patterns[0].find(operands[0], bound):
        yield from _find_all(patterns[1:], operands[1:], found)


def _bind(name: str, found: Any, bound: Bindings) -> Iterator[Bindings]:
    if not name:
        yield bound
    elif name not in bound:
        yield {**bound, name: found}
    elif bound[name] is found or (not isinstance(found, Value) and bound[name] == found):
        yield bound


# --- the words that patterns are written in --------------------------------------------------------------------------
def any_(
    name: str = "", where: Callable[[Any], bool] | None = None, *, uses: int | None = None, element: str = ""
) -> Pattern:
    """Any value or weight, bound to `name`; `where` may refuse it, `uses` is the number of places that read it.

    With `element` only one of that element type, such as f32. As an attribute of `op`, it binds the attribute's value.
    """
    return AnyPattern(name, where, uses, element=element)


def weight(name: str = "", where: Callable[[Weight], bool] | None = None, *, element: str = "") -> Pattern:
    """A weight operand, bound to `name`; with `element` only one of that element type, such as f32."""
    return AnyPattern(name, where, weights_only=True, element=element)


def constant(value: float | None = None, name: str = "", tolerance: float = 1e-6) -> Pattern:
    """A number known at compile time: any where `value` is None, else within `tolerance` relative to it."""
    return ConstantPattern(value, name, tolerance)


def either(*options: Pattern) -> Pattern:
    """Whatever one of the patterns matches, tried in order."""
    return EitherPattern(options)


def op(
    names: str | tuple[str, ...], *operands: Pattern | EllipsisType | None, bind: str = "", once: bool = False,
    uses: int | None = None, where: Callable[[Op], bool] | None = None,
    **attributes: Attribute | Pattern | Callable[[Any], Any],
) -> Pattern:  # fmt: skip
    """The result of an op. Operands left out of the pattern must be absent in the op, unless `...` ends the pattern.

    An operand None must be absent as well. `bind` names the value itself; `uses` is the number of places that read it,
    outputs of the graph included, and `once` stands for `uses=1`; `where` may refuse the op. An attribute that is given
    must be equal, or accepted by the function given for it, or is bound to a name by `any_("name")`.
    """
    written = [AbsentPattern() if operand is None else operand for operand in operands]
    patterns = tuple(pattern for pattern in written if isinstance(pattern, Pattern))
    if written[len(patterns) :] not in ([], [...]):
        raise IRError(f"op({names!r}, ...): operands are patterns; ... stands for the remaining ones and comes last")
    for name, value in attributes.items():
        if isinstance(value, Pattern) and (not isinstance(value, AnyPattern) or value.weights_only):
            raise IRError(f"op({names!r}, {name}={value}): an attribute is a value, a function of it, or any_(name)")
    given = (names,) if isinstance(names, str) else tuple(names)
    wanted = {name: tuple(value) if isinstance(value, list) else value for name, value in attributes.items()}
    return OpPattern(given, patterns, bind, 1 if once else uses, where, wanted, len(patterns) < len(operands))


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
