"""Symbolic dimensions: integer polynomials over named sizes such as `b` (batch) and `s` (sequence)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias, Union

from slmopt.errors import IRError

__all__ = ["Dim", "SymbolicDim", "dim_symbols", "parse_dim", "product", "single_symbol", "substitute_dim", "symbol"]

Monomial: TypeAlias = tuple[str, ...]
Dim: TypeAlias = Union[int, "SymbolicDim"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_TAKEN = ("none", "true", "false", "nan", "inf")  # constants of the IR text
_MAX_NUMBER = 2**63
_MAX_TERMS, _MAX_FACTORS = 256, 64  # sizes of real models have a few: more would cost time without end


class SymbolicDim:
    """A polynomial such as `s`, `p + t` or `2*b*s - 1`; immutable, canonical, equal by value.

    Arithmetic that leaves only a constant returns a plain `int`, so `symbol("s") - symbol("s") == 0`.
    """

    __slots__ = ("terms",)
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        ordered = sorted(((m, c) for m, c in terms.items() if c), key=lambda term: (-len(term[0]), term[0]))
        object.__setattr__(self, "terms", tuple(ordered))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a symbolic dimension is immutable")

    def __reduce__(self) -> tuple[object, ...]:
        return (SymbolicDim, (dict(self.terms),))

    def __add__(self, other: Dim) -> Dim:
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other):
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return _simplify(terms)

    def __mul__(self, other: Dim) -> Dim:
        terms: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                monomial = tuple(sorted(left + right))
                terms[monomial] = terms.get(monomial, 0) + a * b
        return _simplify(terms)

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (other * -1)

    def __rsub__(self, other: int) -> Dim:
        return (self * -1) + other

    __radd__ = __add__
    __rmul__ = __mul__

    def divide(self, other: Dim) -> Dim | None:
        """The exact quotient by a monomial, or None where the division leaves a remainder."""
        divisor = _terms(other)
        if len(divisor) != 1:
            return 1 if self == other else None
        (monomial, coefficient), terms = divisor[0], {}
        for own, value in self.terms:
            rest = list(own)
            for name in monomial:
                if name not in rest:
                    return None
                rest.remove(name)
            if value % coefficient:
                return None
            terms[tuple(rest)] = value // coefficient
        return _simplify(terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymbolicDim) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __str__(self) -> str:
        text = ""
        for monomial, coefficient in self.terms:
            sign = "-" if coefficient < 0 else "+"
            factors = [str(abs(coefficient))] if abs(coefficient) != 1 or not monomial else []
            body = "*".join([*factors, *monomial])
            text += (f" {sign} " if text else ("-" if sign == "-" else "")) + body
        return text

    __repr__ = __str__


def symbol(name: str) -> SymbolicDim:
    """The dimension named `name`."""
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise IRError(
            f"{name!r} is no name for a dimension: expected letters, digits and underscores, not {', '.join(_TAKEN)}"
        )
    return SymbolicDim({(name,): 1})


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, SymbolicDim) else (((), int(dim)),)


def _simplify(terms: Mapping[Monomial, int]) -> Dim:
    kept = {monomial: coefficient for monomial, coefficient in terms.items() if coefficient}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    if len(kept) > _MAX_TERMS or any(len(monomial) > _MAX_FACTORS for monomial in kept):
        raise IRError(f"a dimension has at most {_MAX_TERMS} terms of {_MAX_FACTORS} factors each")
    return SymbolicDim(kept)


def product(dims: tuple[Dim, ...] | list[Dim]) -> Dim:
    """The product of all dimensions (1 for none): the number of elements of a shape."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def dim_symbols(dim: Dim) -> frozenset[str]:
    """The names a dimension depends on."""
    return frozenset(name for monomial, _ in _terms(dim) for name in monomial)


def single_symbol(dim: Dim) -> str | None:
    """The name of a dimension that is one symbol and nothing else."""
    if isinstance(dim, SymbolicDim) and len(dim.terms) == 1 and dim.terms[0][1] == 1 and len(dim.terms[0][0]) == 1:
        return dim.terms[0][0][0]
    return None


def substitute_dim(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """`dim` with each named symbol replaced."""
    if not isinstance(dim, SymbolicDim) or not values:
        return dim
    if (alone := single_symbol(dim)) is not None:  # most are
        return values.get(alone, dim)
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        factor: Dim = coefficient
        for name in monomial:
            factor = factor * (values[name] if name in values else symbol(name))
        total = total + factor
    return total


def parse_dim(text: str) -> Dim:
    """Parse `2*b*s - 1`; raises IRError on anything else."""
    tokens = re.findall(r"[0-9]+|[A-Za-z_][A-Za-z_0-9]*|\S", text)
    total: Dim = 0
    sign, factor, expect = 1, None, True
    for index, token in enumerate([*tokens, "+"]):
        if token in "+-" and not expect:
            total = total + (factor if factor is not None else 0) * sign
            sign, factor, expect = (1 if token == "+" else -1), None, True
        elif token == "-" and index == 0:
            sign = -1
        elif token == "*" and not expect:
            expect = True
        elif expect and (token.isdigit() or _NAME.fullmatch(token)):
            value: Dim = _read_number(token) if token.isdigit() else symbol(token)
            factor, expect = (value if factor is None else factor * value), False
        else:
            raise IRError(f"{text[:80]!r} is no dimension: expected a sum of products such as 2*b*s - 1")
    return total


def _read_number(digits: str) -> int:
    if len(digits) > 30 or int(digits) > _MAX_NUMBER:
        raise IRError(f"{digits[:30]} does not fit into 64 bits")
    return int(digits)
