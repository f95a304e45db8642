"""The verifier: what every graph must keep, whatever a pass did to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from slmopt.errors import IRError
from slmopt.ir.dims import Dim, SymbolicDim, dim_symbols
from slmopt.ir.graph import Attribute, Graph, Module, Op, Use, Value, Weight
from slmopt.ir.spec import Required
from slmopt.ir.types import DType

__all__ = ["verify", "verify_graph"]


def verify(module: Module, *, weights: bool = False) -> None:
    """Check every graph of a module and the weights they name; IRError quotes the op and its place.

    A weight the store knows must have the type the ops name it with. With `weights`, the store must know every weight;
    without, a module may have none of them, as one that was parsed from text.
    """
    for name, graph in module.graphs.items():
        if name != graph.name:
            raise IRError(f"module @{module.name}: the graph under the name @{name} calls itself @{graph.name}")
        verify_graph(graph)
    _verify_weights(module, weights)
    try:
        same = json.loads(json.dumps(module.metadata, allow_nan=False)) == module.metadata
    except (TypeError, ValueError, RecursionError) as error:
        raise IRError(f"module @{module.name}: metadata is not JSON: {error}") from error
    if not same:
        raise IRError(f"module @{module.name}: metadata does not survive JSON: use lists, and texts as keys")


def verify_graph(graph: Graph) -> None:
    """Check one graph: names, definitions before uses, use lists, operands, attributes, types, outputs, states."""
    defined: set[int] = set()
    names: dict[str, str] = {}
    for value in graph.inputs:
        if value.op is not None:
            raise IRError(f"graph @{graph.name}: input %{value.name} is the result of {value.op.describe()}")
        _define(graph, value, defined, names, "an input")
    for op in graph.walk():
        with _about(op):
            _verify_op(graph, op, defined, names)
    _verify_outputs(graph, defined)
    _verify_uses(graph)
    _verify_sizes(graph)


@contextmanager
def _about(op: Op) -> Iterator[None]:
    """An error in the block is about `op`."""
    try:
        yield
    except IRError as error:
        error.op = op
        raise


def _verify_op(graph: Graph, op: Op, defined: set[int], names: dict[str, str]) -> None:
    _verify_operands(graph, op, defined)
    _verify_attributes(graph, op)
    _verify_types(graph, op)
    for index, value in enumerate(op.results):
        if value.op is not op or value.index != index:
            raise IRError(f"{_place(graph, op)}: %{value.name} does not know that it is result {index} of this op")
        _define(graph, value, defined, names, op.describe())


def _place(graph: Graph, op: Op) -> str:
    return f"graph @{graph.name}, {op.describe()}"


def _define(graph: Graph, value: Value, defined: set[int], names: dict[str, str], where: str) -> None:
    if value.name in names:
        raise IRError(f"graph @{graph.name}: %{value.name} is defined twice, by {names[value.name]} and by {where}")
    names[value.name] = where
    defined.add(id(value))


def _verify_operands(graph: Graph, op: Op, defined: set[int]) -> None:
    try:
        op.spec.check_operands(op)
    except IRError as error:
        raise IRError(f"{_place(graph, op)}: {error}") from error
    for index, operand in enumerate(op.operands):
        if operand is None:
            continue
        if isinstance(operand, Weight):
            continue
        if not isinstance(operand, Value):
            raise IRError(f"{_place(graph, op)}: operand {index} is {operand!r}, expected a value, a weight or none")
        if id(operand) not in defined:
            raise IRError(f"{_place(graph, op)}: operand {index}, %{operand.name}, {_why_undefined(graph, operand)}")
        if Use(op, index) not in operand.uses:
            raise IRError(f"{_place(graph, op)}: %{operand.name} does not list this op among its uses")


def _why_undefined(graph: Graph, value: Value) -> str:
    maker = value.op
    if maker is None:
        return f"is an input of another graph than @{graph.name}"
    if maker.graph is None:
        return f"is the result of {maker.describe()}, which was erased"
    if maker.graph is not graph:
        return f"is the result of an op of graph @{maker.graph.name}"
    return f"is used before it is defined by {maker.describe()}"


def _verify_attributes(graph: Graph, op: Op) -> None:
    try:
        complete = op.spec.complete_attributes(op.attributes, op.location)
    except IRError as error:
        raise IRError(f"{_place(graph, op)}: {error}") from error
    missing = [name for name in complete if name not in op.attributes]
    if missing:
        raise IRError(f"{_place(graph, op)}: attribute {missing[0]!r} is missing; write it even if it is the default")


    for name, default in op.spec.attributes.items():
        value = op.attributes[name]
        truth = isinstance(value, bool) and op.attributes.get("element") == DType.bool  # a constant or full of truth
        if isinstance(default, Required) and not truth and not _fits(value, default.type):
            raise IRError(f"{_place(graph, op)}: attribute {name} = {value!r}, expected {default.type.__name__}")


def _fits(value: Attribute, expected: type) -> bool:
    """Whether an attribute has the kind its spec asks for; a size may be symbolic, a number may be whole."""
    if isinstance(value, bool):
        return expected is bool
    kinds = {int: (int, SymbolicDim), float: (int, float)}.get(expected, (expected,))
    return isinstance(value, kinds)


def _verify_sizes(graph: Graph) -> None:
    """Every symbol occurs in the shape of an input: nothing else says what it is when the graph runs."""
    known = {name for value in graph.inputs for dim in value.shape for name in dim_symbols(dim)}
    for op in graph.walk():
        for dim in (*_dims(tuple(op.attributes.values())), *(dim for value in op.results for dim in value.shape)):
            for name in sorted(dim_symbols(dim) - known):
                with _about(op):
                    raise IRError(
                        f"{_place(graph, op)}: the size {name!r} is in no input's shape; "
                        f"sizes of inputs are {', '.join(sorted(known)) or 'numbers'}"
                    )


def _dims(value: Attribute) -> Iterator[Dim]:
    if isinstance(value, SymbolicDim):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _dims(item)


def _verify_types(graph: Graph, op: Op) -> None:
    try:
        inferred = op.spec.infer_types(op)
    except IRError as error:
        raise IRError(f"graph @{graph.name}, %{op.results[0].name if op.results else '?'}: {error}") from error
    if len(inferred) != len(op.results):
        raise IRError(f"{_place(graph, op)}: {len(op.results)} results, expected {len(inferred)}")
    for value, type in zip(op.results, inferred, strict=True):
        if value.type != type:
            raise IRError(f"{_place(graph, op)}: %{value.name} has type {value.type}, its operands give {type}")


def _verify_outputs(graph: Graph, defined: set[int]) -> None:
    for index, value in enumerate(graph.outputs):
        if id(value) not in defined:
            raise IRError(f"graph @{graph.name}: output {index}, %{value.name}, {_why_undefined(graph, value)}")
    if graph.states < 0 or graph.states > min(len(graph.inputs), len(graph.outputs)):
        raise IRError(
            f"graph @{graph.name} has {graph.states} states, but {len(graph.inputs)} inputs and "
            f"{len(graph.outputs)} outputs: each state is an input and an output"
        )
    before = graph.inputs[len(graph.inputs) - graph.states :]
    after = graph.outputs[len(graph.outputs) - graph.states :]
    for old, new in zip(before, after, strict=True):
        if old.type != new.type:
            raise IRError(f"graph @{graph.name}: state %{old.name}: {old.type} is followed by %{new.name}: {new.type}")


def _verify_uses(graph: Graph) -> None:
    for value in graph.values():
        for use in value.uses:
            reads = use.index < len(use.op.operands) and use.op.operands[use.index] is value
            if use.op.graph is not graph or not reads:
                raise IRError(f"graph @{graph.name}: %{value.name} lists a use that is none: {use.op.describe()}")


def _verify_weights(module: Module, required: bool) -> None:
    named: dict[str, tuple[Weight, str]] = {}
    for graph in module.graphs.values():
        for op in graph.walk():
            for operand in op.operands:
                if isinstance(operand, Weight):
                    with _about(op):
                        _verify_weight(module, operand, _place(graph, op), named, required)


def _verify_weight(
    module: Module, weight: Weight, place: str, named: dict[str, tuple[Weight, str]], required: bool
) -> None:
    if weight.key in module.weights:
        if module.weights.type(weight.key) != weight.type:
            raise IRError(
                f"{place}: weight @{weight.key} is named as {weight.type}, the store has "
                f"{module.weights.type(weight.key)} ({module.weights.source(weight.key).description})"
            )
    elif required:
        raise IRError(f"{place}: weight @{weight.key} is not in the store; add or derive it before naming it")
    first, where = named.setdefault(weight.key, (weight, place))
    if first.type != weight.type:
        raise IRError(
            f"weight @{weight.key} is {first.type} in {where}, but {weight.type} in {place}: a key has one type"
        )
