"""Which weights are matrices that may change their storage: read by nothing but linears and embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.types import DType, TensorType

__all__ = ["Matrix", "float_matrices", "output_linears", "reads_ids", "set_weight"]

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


def output_linears(graph: Graph) -> set[Op]:
    """The linears whose result reaches an output through no other linear: the head, where there is one."""
    found: set[Op] = set()
    seen: set[int] = set()
    waiting: list[Value] = list(graph.outputs[: len(graph.outputs) - graph.states])
    while waiting:
        value = waiting.pop()
        if id(value) in seen or value.op is None:
            continue
        seen.add(id(value))
        if value.op.name == "linear":
            found.add(value.op)
        else:
            waiting += [operand for operand in value.op.operands if isinstance(operand, Value)]
    return found


def reads_ids(op: Op) -> bool:
    """Whether an embedding's index comes straight from an input of the graph."""
    index = op.operands[0]
    while isinstance(index, Value) and index.op is not None and index.op.name in ("reshape", "cast"):
        index = index.op.operands[0]
    return isinstance(index, Value) and index.op is None
