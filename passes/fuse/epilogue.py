"""The pass `fuse-epilogue`: what is done with a linear's result, done before it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Graph, Module, Op, Operand, Value
from slmopt.pipeline import Context, Pass

__all__ = ["FuseEpilogue"]

_ACTIVATIONS = ("silu", "gelu", "relu")


@dataclass(frozen=True)
class FuseEpilogue(Pass):
    """add(silu(linear(x, w, b)), r) -> linear(x, w, b, r) {activation = "silu"}, where nothing else reads the linear.

    Activations: silu, gelu (exact or by tanh), relu. The residual `r` must have the linear's own shape and type.
    """

    name: ClassVar[str] = "fuse-epilogue"
    follows: ClassVar[frozenset[str]] = frozenset({"raised"})

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changes: dict[str, int] = {}
        for graph in module.graphs.values():
            for op in graph.walk():
                kind = _fuse_activation(graph, op, context) or _fuse_residual(graph, op, context)
                if kind:
                    changes[kind] = changes.get(kind, 0) + 1
        return changes


def _only_read_by(value: Operand, op: Op, graph: Graph) -> Op | None:
    """The linear that computes `value`, where `op` alone reads it, once, and nothing was added to it yet."""
    if not isinstance(value, Value) or value.op is None or value.op.name != "linear":
        return None
    single = [use.op for use in value.uses] == [op] and value not in graph.outputs
    return value.op if single and _residual(value.op) is None else None


def _residual(op: Op) -> Operand:
    return op.operands[3] if len(op.operands) > 3 else None


def _fuse_activation(graph: Graph, op: Op, context: Context) -> str | None:
    linear = _only_read_by(op.operands[0], op, graph) if op.name in _ACTIVATIONS else None
    if linear is None or linear.attributes["activation"] is not None:
        return None
    name = "gelu_tanh" if op.attributes.get("approximate") else op.name
    if not context.permits(name, op):
        return None
    _merge(graph, linear, op, linear.operands, name)
    return name


def _fuse_residual(graph: Graph, op: Op, context: Context) -> str | None:
    if op.name != "add":
        return None
    # The later of two linears takes the other's result as its residual; hence the right operand is tried first.
    for index in (1, 0):
        linear, residual = _only_read_by(op.operands[index], op, graph), op.operands[1 - index]
        if linear is not None and isinstance(residual, Value) and residual.type == linear.result.type:
            if not context.permits("residual", op):
                return None
            x, weight, bias = (*linear.operands, None)[:3]
            _merge(graph, linear, op, (x, weight, bias, residual), linear.attributes["activation"])
            return "residual"
    return None


def _merge(graph: Graph, linear: Op, last: Op, operands: tuple[Operand, ...], activation: object) -> None:
    """Replace linear ... last by one linear where `last` was: there every operand is defined."""
    attributes = {**linear.attributes, "activation": activation}
    merged = graph.add("linear", operands, attributes, before=last, location=linear.location)  # type: ignore[arg-type]
    name = last.result.name
    graph.replace(last, merged.result)
    graph.erase(linear)
    merged.result.name = name
