"""Constant folding: what depends on weights and numbers alone is computed once, as a derived weight or a constant."""

from __future__ import annotations

from typing import Any

from slmopt.ir.dims import SymbolicDim
from slmopt.ir.graph import Attribute, Graph, Module, Op, Operand, Value, Weight
from slmopt.ir.ops import elementwise, reduce, shape
from slmopt.ir.types import DType
from slmopt.pipeline import Context
from slmopt.rewrite import derive_weight, erase_unused

__all__ = ["fold_constants"]

_FOLDABLE = frozenset(spec.name for specs in (elementwise, reduce, shape) for spec in specs.SPECS) - {"dimension"}
# Made where they are read: storing them saves nothing, or (a transposed matrix) hides what the matrix is.
_NEVER_STORED = frozenset({"constant", "full", "arange", "expand", "permute"})
_SMALL = 4096


def fold_constants(module: Module, graph: Graph, context: Context) -> int:
    """Fold every largest expression that is known at compile time; returns how many."""
    folded = _fold_scalar_weights(module, graph, context)
    known: dict[Value, Op] = {}
    for op in graph.walk():
        if op.name in _FOLDABLE and _is_static(op) and all(_is_known(module, o, known) for o in op.operands):
            known[op.result] = op
    for value, op in known.items():
        read = any(use.op.results[0] not in known for use in value.uses) and value not in graph.outputs
        if read and _worth_storing(op) and context.permits("folded", op):
            _fold(module, graph, op)
            folded += 1
    return folded


def _is_static(op: Op) -> bool:
    symbolic = any(isinstance(dim, SymbolicDim) for result in op.results for dim in result.shape)
    return not symbolic and not any(isinstance(value, SymbolicDim) for value in op.attributes.values())


def _is_known(module: Module, operand: Operand, known: dict[Value, Op]) -> bool:
    if isinstance(operand, Value):
        return operand in known
    return operand is None or (isinstance(operand.type.element, DType) and operand.key in module.weights)


def _worth_storing(op: Op) -> bool:
    type = op.result.type
    if op.name in _NEVER_STORED:
        return type.shape == () and op.name != "constant"
    weights = {o.key: o.type.elements for part in _expression(op) for o in part.operands if isinstance(o, Weight)}
    limit = max(_SMALL, sum(count for count in weights.values() if isinstance(count, int)))
    return isinstance(type.elements, int) and type.elements <= limit


def _expression(last: Op) -> list[Op]:
    """The ops that the result of `last` is computed by, each once, operands first."""
    found: dict[Op, None] = {}

    def visit(op: Op) -> None:
        for operand in op.operands:
            if isinstance(operand, Value) and operand.op is not None and operand.op not in found:
                visit(operand.op)
        found[op] = None

    visit(last)
    return list(found)


def _fold(module: Module, graph: Graph, last: Op) -> None:
    ops = _expression(last)
    keys = tuple(dict.fromkeys(o.key for op in ops for o in op.operands if isinstance(o, Weight)))
    compute = _evaluator(ops, keys)
    new: Value | Weight
    if last.result.shape == ():
        number = compute(*(module.weights.float(key) for key in keys)).item()
        new = _constant(graph, last, number, str(last.result.type.element), last.result.name)
    else:
        base = keys[0] if keys else last.location or graph.name
        type = last.result.type
        new = derive_weight(module, f"{base}.{last.name}", keys, type, _describe(last.result), compute)
    for use in list(last.result.uses):
        use.op.set_operand(use.index, new)
    erase_unused(graph, last)


def _constant(graph: Graph, before: Op, value: float, element: str, hint: str) -> Value:
    attributes: dict[str, Attribute] = {"value": value, "element": element}
    return graph.add("constant", (), attributes, before=before, hint=hint, location=before.location).result


def _evaluator(ops: list[Op], keys: tuple[str, ...]) -> Any:
    """A function of the tensors of `keys` that computes what the last of `ops` gives; independent of the graph."""
    copied = Graph("constant")
    mapping: dict[Value, Value] = {}
    for op in ops:
        operands = [mapping[o] if isinstance(o, Value) else o for o in op.operands]
        mapping[op.result] = copied.add(op.name, operands, op.attributes, types=[op.result.type]).result
    last = mapping[ops[-1].result]

    def compute(*tensors: Any) -> Any:
        weights, values = dict(zip(keys, tensors, strict=True)), dict[Value, Any]()
        for op in copied.walk():
            operands = [values[o] if isinstance(o, Value) else weights[o.key] if o else None for o in op.operands]
            values[op.result] = op.spec.reference(op, *operands)
        return values[last].contiguous()

    return compute


def _describe(operand: Operand) -> str:
    """The expression as people read it; equal expressions have equal descriptions."""
    if not isinstance(operand, Value) or operand.op is None:
        return f"@{operand.key}" if isinstance(operand, Weight) else "_"
    op = operand.op
    if op.name == "constant":
        return str(op.attributes["value"])
    attributes = [f"{name}={_attribute(value)}" for name, value in op.attributes.items()]
    return f"{op.name}({', '.join([*map(_describe, op.operands), *attributes])})"


def _attribute(value: Attribute) -> str:
    return "[" + ", ".join(map(_attribute, value)) + "]" if isinstance(value, tuple) else str(value)


def _fold_scalar_weights(module: Module, graph: Graph, context: Context) -> int:
    """A stored single number (a buffer such as an embedding's scale) is a constant."""
    folded = 0
    for op in graph.walk():
        for index, operand in enumerate(op.operands):
            if not isinstance(operand, Weight) or operand.type.shape != () or operand.key not in module.weights:
                continue
            if context.permits("folded", op):
                number, hint = module.weights.float(operand.key).item(), operand.key.rpartition(".")[2]
                op.set_operand(index, _constant(graph, op, number, str(operand.type.element), hint))
                folded += 1
    return folded
