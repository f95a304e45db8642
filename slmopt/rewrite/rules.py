"""Rules: a pattern, and what replaces what it matches, by a function or by another pattern."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, overload

from slmopt.errors import IRError
from slmopt.ir.graph import Value, Weight
from slmopt.rewrite.matches import Match
from slmopt.rewrite.patterns import Pattern
from slmopt.rewrite.rewriter import Rewriter
from slmopt.rewrite.templates import build_from, check_template

__all__ = ["Build", "Rule", "replace", "rule"]

Build: TypeAlias = Callable[[Rewriter, Match], "Value | Weight | None"]


@dataclass(frozen=True)
class Rule:
    """Where `pattern` matches, `build` gives what replaces the matched op's result, or None to leave it.

    `kind` is what the rule is counted under, `text` the rewrite in words. `template`: what is built, where that is
    declared and not programmed.
    """

    kind: str
    pattern: Pattern
    build: Build
    text: str = ""
    template: Pattern | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise IRError(f"the rule {self.kind!r} has no pattern but {self.pattern!r}: begin with op(...)")
        if not self.text:
            written = inspect.getdoc(self.build) or ""
            object.__setattr__(self, "text", written.partition("\n")[0].rstrip(".") or f"{self.pattern} -> ...")


@overload
def rule(kind: Pattern, /) -> Callable[[Build], Rule]: ...
@overload
def rule(kind: str, pattern: Pattern, /) -> Callable[[Build], Rule]: ...
def rule(kind: str | Pattern, pattern: Pattern | None = None, /) -> Callable[[Build], Rule]:
    """Decorate a function to make a rule of it. The first line of its docstring says the rewrite.

        @rule(op("mul", any_("x"), op("sigmoid", any_("x"))))
        def silu(at, m):
            \"\"\"x * sigmoid(x) -> silu(x)\"\"\"
            return at.add("silu", m["x"])

    The function gets a `Rewriter` and a `Match`; it returns the value or weight that replaces the matched op's result,
    or None to leave it. What it is counted under is `kind`, or the function's name.
    """
    if isinstance(kind, str):
        if pattern is None:
            raise IRError(f"rule({kind!r}) lacks its pattern: rule({kind!r}, op(...))")
        name, found = kind, pattern
    else:
        name, found = "", kind

    def decorate(build: Build) -> Rule:
        return Rule(name or getattr(build, "__name__", "rule").strip("_"), found, build)

    return decorate


def replace(kind: str, pattern: Pattern, replacement: Pattern, text: str = "") -> Rule:
    """A rule that is declared: what `pattern` matches becomes `replacement`, written in the same words.

        replace("silu", op("mul", any_("x"), op("sigmoid", any_("x"))), op("silu", any_("x")))

    On the right, names stand for what the pattern bound; `constant(2.0)` is a number of the element type of the
    operands beside it; an attribute is a value, `any_("name")` for one that was bound, or a function of the match.
    `text` says the rewrite in words; without it, the patterns do. IRError where a name is read that is never bound.
    """
    if not isinstance(pattern, Pattern) or not isinstance(replacement, Pattern):
        raise IRError(f"the rule {kind!r}: replace(kind, pattern, replacement) takes two patterns")
    try:
        check_template(replacement, pattern)
    except IRError as error:
        raise IRError(f"the rule {kind!r}: {error}") from error

    def build(at: Rewriter, m: Match) -> Value | Weight | None:
        return build_from(replacement, at, m)

    return Rule(kind, pattern, build, text or f"{pattern} -> {replacement}", replacement)
