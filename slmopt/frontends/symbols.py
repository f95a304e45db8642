"""Symbolic sizes of torch (sympy expressions) as dimensions of the IR."""

from __future__ import annotations

from typing import Any

from slmopt.errors import UnsupportedError
from slmopt.ir.dims import Dim, SymbolicDim, symbol

__all__ = ["Symbols"]


class Symbols:
    """Translates torch's size symbols, which are known by the name they were bound to (`b`, `s`)."""

    def __init__(self) -> None:
        self._names: dict[Any, Dim] = {}

    def bind(self, size: Any, name: str) -> None:
        """Call the symbolic size `name`; a size that tracing found to be a plain number stays one."""
        if not isinstance(size, int):
            self._names[size.node.expr] = symbol(name)

    def dim(self, size: Any, place: str) -> Dim:
        """The dimension a torch size stands for; UnsupportedError (naming `place`) where it is no polynomial."""
        if isinstance(size, int | SymbolicDim):
            return size
        return self._convert(size.node.expr, place)

    def _convert(self, expression: Any, place: str) -> Dim:
        if expression in self._names:
            return self._names[expression]
        if expression.is_Integer:
            return int(expression)
        parts = expression.args
        if expression.is_Add or expression.is_Mul:
            total: Dim = 0 if expression.is_Add else 1
            for part in parts:
                dim = self._convert(part, place)
                total = total + dim if expression.is_Add else total * dim
            return total
        if expression.is_Pow and parts[1].is_Integer and int(parts[1]) > 0:
            base, total = self._convert(parts[0], place), 1
            for _ in range(int(parts[1])):
                total = total * base
            return total
        if type(expression).__name__ in ("FloorDiv", "CleanDiv"):
            left, right = (self._convert(part, place) for part in parts)
            quotient = left.divide(right) if isinstance(left, SymbolicDim) else None
            if quotient is not None:
                return quotient
        raise UnsupportedError(f"{place}: the size {expression} is no sum of products of batch and sequence length")
