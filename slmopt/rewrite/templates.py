"""Templates: the right side of a declarative rule, written in the words of patterns, made into a build function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slmopt.errors import IRError, nearest
from slmopt.ir.graph import Operand, Value, Weight
from slmopt.rewrite.matches import Match
from slmopt.rewrite.patterns import AbsentPattern, AnyPattern, ConstantPattern, OpPattern, Pattern
from slmopt.rewrite.rewriter import Rewriter

__all__ = ["bound_names", "build_from", "check_template"]


def bound_names(pattern: Pattern) -> Iterator[str]:
    """Every name that a pattern may bind."""
    if isinstance(pattern, AnyPattern | ConstantPattern):
        yield pattern.name
    if isinstance(pattern, OpPattern):
        yield pattern.bind
        yield from (value.name for value in pattern.attributes.values() if isinstance(value, AnyPattern))
    for part in pattern.parts():
        yield from bound_names(part)


def check_template(template: Pattern, pattern: Pattern) -> None:
    """IRError where a template says what can only be matched, not built, or reads a name that `pattern` never binds."""
    known = [name for name in dict.fromkeys(bound_names(pattern)) if name]
    _check(template, known)


def _check(template: Pattern, known: list[str]) -> None:
    if isinstance(template, OpPattern):
        if len(template.names) != 1 or template.open or template.uses is not None or template.where or template.bind:
            raise IRError(f"{template} cannot be built: a replacement names one op, all its operands and attributes")
        for value in template.attributes.values():
            if isinstance(value, Pattern):
                _check(value, known)
        for part in template.operands:
            _check(part, known)
    elif isinstance(template, AnyPattern):
        _check_name(template, template.name, known)
    elif isinstance(template, ConstantPattern):
        if template.value is None:
            _check_name(template, template.name, known)
    elif not isinstance(template, AbsentPattern):
        raise IRError(f"{template} cannot be built: a replacement is made of op, any_, weight and constant")


def _check_name(template: Pattern, name: str, known: list[str]) -> None:
    if name not in known:
        raise IRError(f"the replacement reads {name or str(template)!r}, which the pattern does not bind"
                      f"{nearest(name, known)}; it binds {', '.join(known) or 'nothing'}")  # fmt: skip


def build_from(template: Pattern, at: Rewriter, m: Match) -> Value | Weight:
    """What a template says, built from a match."""
    if isinstance(template, OpPattern):
        attributes = {name: _attribute(value, m) for name, value in template.attributes.items()}
        return at.add(template.names[0], *_operands(template, at, m), **attributes)
    if isinstance(template, AnyPattern):
        return m[template.name]
    assert isinstance(template, ConstantPattern)  # check_template lets nothing else through
    return at.constant(_number(template, m), at.root.result.type)


def _operands(template: OpPattern, at: Rewriter, m: Match) -> list[Operand]:
    """Constants get the element type of the first operand that is none, else that of the result."""
    built: list[Operand] = [
        None if isinstance(part, ConstantPattern | AbsentPattern) else build_from(part, at, m)
        for part in template.operands
    ]
    like = next((operand.type for operand in built if operand is not None), at.root.result.type)
    for index, part in enumerate(template.operands):
        if isinstance(part, ConstantPattern):
            built[index] = at.constant(_number(part, m), like)
    return built


def _number(template: ConstantPattern, m: Match) -> float:
    return m.number(template.name) if template.value is None else template.value


def _attribute(value: Any, m: Match) -> Any:
    if isinstance(value, AnyPattern):
        return m.attribute(value.name)
    return value(m) if callable(value) else value
