"""The pass `fuse-act-quant`: activations are quantized once, where they are produced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Graph, Module, Op, Value
from slmopt.ir.ops.language import QUANTIZED_ROWS
from slmopt.ir.types import DType
from slmopt.pipeline import Context, Pass

__all__ = ["FuseActQuant"]

_OUTPUT = str(QUANTIZED_ROWS)


@dataclass(frozen=True)
class FuseActQuant(Pass):
    """linear(rms_norm(x), w) {act = "q8"} -> linear(rms_norm(x) {output = "q8g32"}, w).

    Linears that quantize the value they read share one quantize_rows of it; a norm or gated unit that only such ops
    read gives quantized rows itself. A norm that others read too keeps its float32 result, beside a quantize_rows.
    """

    name: ClassVar[str] = "fuse-act-quant"
    follows: ClassVar[frozenset[str]] = frozenset({"quantized"})

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changes: dict[str, int] = {}
        for graph in module.graphs.values():
            _share(graph, changes, context)
            for op in graph.walk():
                wide = op.attributes.get("output") == str(DType.f32)
                if wide and _only_quantized(graph, op) and context.permits(op.name, op):
                    _quantize_output(graph, op)
                    changes[op.name] = changes.get(op.name, 0) + 1
        return changes


def _share(graph: Graph, changes: dict[str, int], context: Context) -> None:
    """Make the quantization in every linear {act = "q8"} an op of its own, one for each value."""
    rows: dict[int, Value] = {}
    for op in graph.walk():
        if op.name == "quantize_rows":
            rows.setdefault(id(op.operands[0]), op.result)
        if op.name != "linear" or op.attributes["act"] != "q8" or not context.permits("linear", op):
            continue
        x = op.value(0)
        if x.type.element != QUANTIZED_ROWS:
            if id(x) not in rows:
                place = x.op.location if x.op is not None else op.location
                made = graph.add("quantize_rows", (x,), before=op, hint=f"{x.name}_q8", location=place)
                rows[id(x)] = made.result
            op.set_operand(0, rows[id(x)])
        op.attributes["act"] = None
        changes["linear"] = changes.get("linear", 0) + 1


def _only_quantized(graph: Graph, op: Op) -> bool:
    value = op.result
    return bool(value.uses) and value not in graph.outputs and all(u.op.name == "quantize_rows" for u in value.uses)


def _quantize_output(graph: Graph, op: Op) -> None:
    attributes = {**op.attributes, "output": _OUTPUT}
    made = graph.add(op.name, op.operands, attributes, before=op, location=op.location)
    name = op.result.name
    for user in op.result.users:
        graph.replace(user, made.result)
    graph.erase(op)
    made.result.name = name
