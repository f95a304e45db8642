"""Values in SSA form, weights, and what ops read: operands and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from slmopt.errors import IRError
from slmopt.ir.dims import Dim, SymbolicDim, substitute_dim
from slmopt.ir.types import TensorType

if TYPE_CHECKING:
    from slmopt.ir.graph import Op

__all__ = ["Attribute", "Operand", "Use", "Value", "Weight", "operand_type", "substitute_attribute"]

Attribute: TypeAlias = "bool | int | float | str | Dim | tuple[Attribute, ...] | None"


@dataclass(frozen=True)
class Weight:
    """A reference to a tensor of the module's weight store. Two operands may name one key: that is aliasing."""

    key: str
    type: TensorType


@dataclass(frozen=True)
class Use:
    """One place where a value is read: operand `index` of `op`."""

    op: Op
    index: int


class Value:
    """What an op or a graph input produces. `op` is None for a graph input."""

    __slots__ = ("index", "name", "op", "type", "uses")

    def __init__(self, name: str, type: TensorType, op: Op | None = None, index: int = 0) -> None:
        self.name, self.type, self.op, self.index = name, type, op, index
        self.uses: list[Use] = []

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of the value's type."""
        return self.type.shape

    @property
    def users(self) -> list[Op]:
        """The ops that read this value, each once, in the order they began to."""
        return list(dict.fromkeys(use.op for use in self.uses))

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


Operand: TypeAlias = Value | Weight | None


def substitute_attribute(value: Attribute, dims: Mapping[str, Dim]) -> Attribute:
    """An attribute with each named dimension in it replaced."""
    if isinstance(value, SymbolicDim):
        return substitute_dim(value, dims)
    return tuple(substitute_attribute(item, dims) for item in value) if isinstance(value, tuple) else value


def operand_type(operand: Operand) -> TensorType:
    """The type of a value or weight; IRError for an absent optional operand."""
    if operand is None:
        raise IRError("an absent operand has no type")
    return operand.type
