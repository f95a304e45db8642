"""Which weights are matrices that may change their storage: read by nothing but linears and embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from slmopt.ir.graph import Module, Op, Weight
from slmopt.ir.types import DType, TensorType

__all__ = ["Matrix", "float_matrices", "set_weight"]

_WEIGHT = 1  # the operand of a linear and of an embedding that holds the matrix


@dataclass
class Matrix:
    """A float weight [n, k] and every op that reads it, over all graphs of the module."""

    key: str
    type: TensorType
    users: list[Op] = field(default_factory=list)


def float_matrices(module: Module) -> list[Matrix]:
    """The float weights [n, k] that only linears (as weight) and embeddings (as table) read, in order of first use."""
    found: dict[str, Matrix] = {}
    others: set[str] = set()
    for graph in module.graphs.values():
        for op in graph.walk():
            for index, operand in enumerate(op.operands):
                if not isinstance(operand, Weight):
                    continue
                if op.name in ("linear", "embedding") and index == _WEIGHT:
                    found.setdefault(operand.key, Matrix(operand.key, operand.type)).users.append(op)
                else:
                    others.add(operand.key)
    return [m for m in found.values() if m.key not in others and isinstance(m.type.element, DType) and m.type.rank == 2]


def set_weight(users: Iterable[Op], weight: Weight) -> None:
    """Let linears and embeddings read another matrix."""
    for op in users:
        op.set_operand(_WEIGHT, weight)
