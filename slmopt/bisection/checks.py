"""Checks: a property that a module keeps or breaks, as the user writes it.

    perplexity<=+3%      at most 3% above the original's       outputs          the logits, within 1e-3
    perplexity<=12.5     at most 12.5                          outputs<=1e-4    within 1e-4 of the largest
    accuracy>=-2%        a metric, built in or a plugin's      compiles         the target supports and builds it
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from slmopt.errors import InputError, nearest

if TYPE_CHECKING:
    from slmopt.ir.graph import Module

__all__ = ["Check", "CheckText", "Limit", "Measured", "parse_check"]

_CHECK = re.compile(r"(metric:)?([a-z][a-z0-9_-]*)\s*(?:(<=|>=|<|>|==|=)\s*(\S.*?))?\s*\Z")
_LIMIT = re.compile(r"([+-]?)(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)\s*(%?)\Z")
_OUTPUTS = 1e-3


@dataclass(frozen=True)
class Measured:
    """What a check says of one module. value: the number it looked at, None where it looks at none."""

    holds: bool
    value: float | None
    words: str


class Check(Protocol):
    """A property of modules; `text` is as the user wrote it."""

    @property
    def text(self) -> str:
        """The check."""

    def prepare(self, original: Module) -> Measured:
        """Look at the original, which others are compared with; InputError where the check cannot be made of it."""

    def measure(self, module: Module) -> Measured:
        """Whether the property holds; a module that cannot be measured at all breaks it."""


@dataclass(frozen=True)
class Limit:
    """A bound on a number: a number itself, or a share of what the original has (0.03 for +3%)."""

    below: bool
    number: float
    relative: bool

    def bound(self, original: float) -> float:
        """The number that is allowed."""
        return original * (1 + self.number) if self.relative else self.number

    def holds(self, value: float, original: float) -> bool:
        """Whether a number keeps it; what is no number never does."""
        if math.isnan(value):
            return False
        return value <= self.bound(original) if self.below else value >= self.bound(original)

    def words(self, original: float) -> str:
        """`at most 4.76 (+3%)`."""
        share = f" ({100 * self.number:+.3g}% of the original's {original:.6g})" if self.relative else ""
        return f"{'at most' if self.below else 'at least'} {self.bound(original):.6g}{share}"


@dataclass(frozen=True)
class CheckText:
    """A check as written. kind: "outputs", "compiles", or the name of a metric."""

    text: str
    kind: str
    limit: Limit


def parse_check(text: str, metrics: tuple[str, ...] = ("perplexity",)) -> CheckText:
    """Parse a check; InputError says what is wrong and what is known."""
    known = ("outputs", "compiles", *metrics)
    match = _CHECK.match(text.strip())
    if match is None:
        raise InputError(f"{text!r} is no check: expected a property and a bound, such as 'perplexity<=+3%', "
                         "'outputs<=1e-3' or 'compiles'")  # fmt: skip
    prefix, kind, sign, bound = match.groups()
    if kind not in (metrics if prefix else known):
        raise InputError(f"check {text!r}: unknown property {kind!r}{nearest(kind, known)}; known: {', '.join(known)}")
    if sign in ("=", "=="):
        raise InputError(f"check {text!r}: a bound is written <= or >=")
    if kind == "compiles":
        if sign:
            raise InputError(f"check {text!r}: compiles takes no bound")
        return CheckText(text, kind, Limit(True, 0.0, False))
    if not sign:
        if kind == "outputs":
            return CheckText(text, kind, Limit(True, _OUTPUTS, False))
        raise InputError(f"check {text!r} lacks a bound, such as '{kind}<=+3%'")
    return CheckText(text, kind, _parse_limit(text, kind, sign, bound))


def _parse_limit(text: str, kind: str, sign: str, bound: str) -> Limit:
    match = _LIMIT.match(bound)
    if match is None:
        raise InputError(f"check {text!r}: {bound!r} is no bound: expected a number, or a share such as +3%")
    number = float(match[1] + match[2])
    if match[3] and not match[1]:
        raise InputError(f"check {text!r}: write +{bound} (more than the original) or -{bound} (less)")
    if kind == "outputs" and (match[3] or number < 0 or sign[0] == ">"):
        raise InputError(f"check {text!r}: outputs takes the largest difference allowed, as a share of the largest "
                         "logit, such as 'outputs<=1e-3'")  # fmt: skip
    return Limit(sign[0] == "<", number / 100 if match[3] else number, bool(match[3]))
