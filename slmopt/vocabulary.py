"""Where a graph meets its vocabulary: embeddings that token ids index, linears that give logits. Found by structure."""

from __future__ import annotations

from slmopt.ir.graph import Graph, Op, Value

__all__ = ["output_linears", "reads_ids"]


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
