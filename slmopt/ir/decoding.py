"""Decoding with state, derived from the graph of a whole sequence."""

from __future__ import annotations

from collections.abc import Sequence

from slmopt.errors import IRError, UnsupportedError
from slmopt.ir.dims import SymbolicDim, dim_symbols, symbol
from slmopt.ir.graph import Graph, Op, Operand, Value
from slmopt.ir.step import CAPACITY, CHUNK, POSITION, TOKENS, StepBuilder
from slmopt.ir.types import DType, Element, TensorType

__all__ = ["derive_step"]


def derive_step(forward: Graph, sequence: str, cache: Element) -> tuple[Graph, dict[str, int]]:
    """The graph @step of `forward`, whose positions run along the axes named `sequence`, and what was done.

    Counts the ops rewritten by their rule, by name, and the states."""
    _check_symbols(forward, sequence)
    graph = Graph("step")
    mapping: dict[int, Value] = {}
    for value in forward.inputs:
        mapping[id(value)] = graph.add_input(value.name, value.type.substitute({sequence: symbol(TOKENS)}))
    builder = StepBuilder(graph, graph.add_input(POSITION, TensorType(DType.i64, ())), sequence, cache)
    changes: dict[str, int] = {}
    for op in forward.walk():
        operands = tuple(mapping[id(o)] if isinstance(o, Value) else o for o in op.operands)
        builder.op = op
        if op.spec.mixes is not None and op.spec.mixes(op, sequence):
            results = _apply_rule(builder, op, operands)
            changes[op.name] = changes.get(op.name, 0) + 1
        else:
            results = _copy(builder, op, operands)
        mapping.update({id(old): new for old, new in zip(op.results, results, strict=True)})
    builder.finish([mapping[id(value)] for value in forward.outputs])
    graph.erase_dead()
    return graph, {**changes, **({"state": graph.states} if graph.states else {})}


def _copy(builder: StepBuilder, op: Op, operands: Sequence[Operand]) -> Sequence[Value]:
    attributes = {name: builder.renamed(value) for name, value in op.attributes.items()}
    names = [result.name for result in op.results]
    return builder.graph.add(op.name, operands, attributes, hint=names, location=op.location).results


def _apply_rule(builder: StepBuilder, op: Op, operands: tuple[Operand, ...]) -> Sequence[Value]:
    if op.spec.step is None:
        place = f" at {op.location}" if op.location else ""
        raise UnsupportedError(
            f"op without a step rule: {op.name}{place} (%{op.results[0].name}) combines positions of the axis "
            f"{builder.sequence!r}, and nothing says what it must remember between steps; give its OpSpec a `step`, "
            "or raise it to an op that has one"
        )
    results: tuple[Value, ...] = op.spec.step(builder, op, operands)
    expected = [builder.renamed_type(result.type) for result in op.results]
    if [result.type for result in results] != expected:
        found = ", ".join(str(result.type) for result in results)
        raise IRError(f"{op.describe()}: its step rule gave {found}, expected {', '.join(map(str, expected))}")
    return results


def _check_symbols(forward: Graph, sequence: str) -> None:
    """The names that @step brings in are free, and there is a sequence to step along."""
    if forward.states:
        raise UnsupportedError(f"graph @{forward.name} has states already: @step is derived from a graph without")
    used = {
        name for value in forward.values() for dim in value.shape if isinstance(dim, SymbolicDim)
        for name in dim_symbols(dim)
    }  # fmt: skip
    if sequence not in used:
        raise UnsupportedError(f"graph @{forward.name} has no axis named {sequence!r} to step along")
    for name in {TOKENS, CAPACITY, CHUNK} & used - {sequence}:
        raise IRError(f"graph @{forward.name} already has a dimension {name!r}, which @step needs for itself")
