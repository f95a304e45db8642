"""Checks of rules: a pattern that can never match, by the specs of its ops, is an error and not a rule that is silent.

Rules are checked when they are used, not when they are made: ops of plugins may become known in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from slmopt.errors import IRError, nearest
from slmopt.ir.types import parse_element
from slmopt.rewrite.patterns import AnyPattern, OpPattern, Pattern

if TYPE_CHECKING:
    from slmopt.ir.spec import OpSpec
    from slmopt.rewrite.rules import Rule

__all__ = ["check_rules"]


def check_rules(rules: Iterable[Rule]) -> None:
    """IRError names the rule, the part of its pattern and what is wrong: op, attribute or number of operands."""
    seen: set[int] = set()
    for entry in rules:
        for template in (False, True):
            pattern = entry.template if template else entry.pattern
            if pattern is None:
                continue
            try:
                _check(pattern, seen, template)
            except IRError as error:
                what = "cannot be built" if template else "can never match"
                raise IRError(f"the rule {entry.kind!r} {what}: {error}") from error


def _check(pattern: Pattern, seen: set[int], template: bool) -> None:
    if id(pattern) in seen:
        return
    if isinstance(pattern, OpPattern):
        from slmopt.ir.ops import registry

        for name in pattern.names:
            spec = registry.lookup(name)
            _check_attributes(pattern, spec)
            _check_operands(pattern, spec)
            if template:
                spec.complete_attributes(dict.fromkeys(pattern.attributes))
    for part in pattern.parts():
        _check(part, seen, template)
    if not template:
        seen.add(id(pattern))


def _check_attributes(pattern: OpPattern, spec: OpSpec) -> None:
    for name in pattern.attributes:
        if name not in spec.attributes:
            known = ", ".join(spec.attributes) or "none"
            raise IRError(f"{spec.name} has no attribute {name!r}{nearest(name, spec.attributes)}; it has: {known}")


def _check_operands(pattern: OpPattern, spec: OpSpec) -> None:
    variadic = bool(spec.operands) and spec.operands[-1].startswith("*")
    fixed = spec.operands[:-1] if variadic else spec.operands
    least = len([name for name in fixed if not name.endswith("?")])
    count = len(pattern.operands)
    if (count > len(fixed) and not variadic) or (count < least and not pattern.open):
        raise IRError(f"{spec.name} takes ({', '.join(spec.operands)}), {pattern} has {count} operands")
    for name, part in zip(spec.operands, pattern.operands, strict=False):
        if isinstance(part, AnyPattern):
            if part.uses == 0:
                raise IRError(f"operand {name} of {spec.name} is read by it, and uses=0 wants it unread")
            if part.element:
                parse_element(part.element)  # IRError where there is no such type
