"""The verifier: every rule a module must keep, each broken one reported with the op and its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from slmopt.errors import IRError
from slmopt.ir.dims import Dim, SymbolicDim, dim_symbols
from slmopt.ir.graph import Attribute, Graph, Module, Op, Use, Value, Weight
from slmopt.ir.spec import Required
from slmopt.ir.types import TensorType

__all__ = ["verify", "verify_graph"]

_NAME = re.compile(r"\w+")


def verify(module: Module, *, weights: bool = True) -> None:
    """Raise IRError at the first rule that `module` breaks.

    `weights`: every weight named by an op must also be in the module's store, with the same type. A module that was
    parsed from text has an empty store, and is verified with `weights=False`.
    """
    for name, graph in module.graphs.items():
        if graph.name != name:
            raise IRError(f"module @{module.name}: graph @{graph.name} is filed under the name {name!r}")
        verify_graph(graph)
    _verify_weights(module, stored=weights)
    try:
        text = json.dumps(module.metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise IRError(f"module @{module.name}: metadata is not JSON: {error}") from error
    if json.loads(text) != module.metadata:
        raise IRError(f"module @{module.name}: metadata does not survive JSON: use lists and string keys alone")


def verify_graph(graph: Graph) -> None:
    """The rules of one graph: names, order, use lists, attributes, types, symbols, states."""
    place = f"graph @{graph.name}"
    _verify_names(graph, place)
    defined: set[int] = set(map(id, graph.inputs))
    reads: dict[int, list[Use]] = {}
    bound = _bound_symbols(graph)
    for value in graph.inputs:
        if value.op is not None:
            raise IRError(f"{place}: input %{value.name} is also the result of {value.op.describe()}")
        _verify_symbols(value.shape, bound, f"{place}: input %{value.name}: {value.type}")
    for op in graph.walk():
        _verify_op(op, f"{place}: {op.describe()}", defined, bound)
        for index, operand in enumerate(op.operands):
            if isinstance(operand, Value):
                reads.setdefault(id(operand), []).append(Use(op, index))
        defined.update(map(id, op.results))
    for value in graph.values():
        if _as_set(value.uses) != _as_set(reads.get(id(value), [])) or len(value.uses) != len(reads.get(id(value), [])):
            raise IRError(f"{place}: the use list of %{value.name} does not match the ops that read it; edit operands "
                          "with set_operand and remove ops with erase")  # fmt: skip
    _verify_outputs(graph, place, defined)


def _as_set(uses: list[Use]) -> set[tuple[int, int]]:
    return {(id(use.op), use.index) for use in uses}


def _verify_names(graph: Graph, place: str) -> None:
    seen: set[str] = set()
    for value in graph.values():
        if not _NAME.fullmatch(value.name):
            raise IRError(f"{place}: {value.name!r} is no name for a value: expected letters, digits and underscores")
        if value.name in seen:
            raise IRError(f"{place}: two values are named %{value.name}; take names from fresh_name")
        seen.add(value.name)


def _verify_op(op: Op, place: str, defined: set[int], bound: frozenset[str]) -> None:
    for index, operand in enumerate(op.operands):
        if isinstance(operand, Value) and id(operand) not in defined:
            raise IRError(f"{place}: operand {index}, %{operand.name}, is not defined before it is read")
        if not isinstance(operand, Value | Weight | None):
            raise IRError(f"{place}: operand {index} is {operand!r}: expected a Value, a Weight or None")
        if isinstance(operand, Weight):
            _verify_weight_type(operand, place)
    _verify_attributes(op, place, bound)
    for index, result in enumerate(op.results):
        if result.op is not op or result.index != index:
            raise IRError(f"{place}: result {index}, %{result.name}, does not point back at its op")
        _verify_symbols(result.shape, bound, f"{place} : {result.type}")
    try:
        inferred = op.spec.infer_types(op)
    except IRError as error:
        raise IRError(f"{place}: {error}") from error
    if inferred != tuple(result.type for result in op.results):
        written, found = (", ".join(map(str, types)) for types in ([r.type for r in op.results], inferred))
        raise IRError(f"{place} is written as {written or 'nothing'}, but its operands give {found or 'nothing'}")


def _verify_weight_type(weight: Weight, place: str) -> None:
    for dim in weight.type.shape:
        if isinstance(dim, SymbolicDim):
            raise IRError(f"{place}: weight @{weight.key} : {weight.type} has a symbolic size; a weight's is fixed")


def _verify_attributes(op: Op, place: str, bound: frozenset[str]) -> None:
    spec = op.spec
    for name in op.attributes:
        if name not in spec.attributes:
            raise IRError(f"{place} has no attribute {name!r}; it has: {', '.join(spec.attributes) or 'none'}")
    for name, default in spec.attributes.items():
        if name not in op.attributes:
            raise IRError(f"{place}: the attribute {name!r} is missing; every attribute of an op is present")
        value = op.attributes[name]
        if isinstance(default, Required) and not _fits(value, default.type):
            raise IRError(f"{place}: attribute {name} = {value!r} is no {default.type.__name__}")
        for dim in _dims(value):
            _verify_symbols((dim,), bound, f"{place}: attribute {name} = {value}")


def _fits(value: Attribute, expected: type) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int | SymbolicDim) and not isinstance(value, bool)
    return isinstance(value, expected)


def _dims(value: Attribute) -> Iterator[Dim]:
    if isinstance(value, SymbolicDim):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _dims(item)


def _bound_symbols(graph: Graph) -> frozenset[str]:
    """The symbols that an input's shape names alone, so that the shapes of actual inputs give their values."""
    alone = {str(dim) for value in graph.inputs for dim in value.shape if isinstance(dim, SymbolicDim)}
    return frozenset(name for name in alone if _NAME.fullmatch(name))


def _verify_symbols(shape: tuple[Dim, ...], bound: frozenset[str], place: str) -> None:
    for dim in shape:
        for name in sorted(dim_symbols(dim) - bound):
            raise IRError(f"{place}: the size {name!r} is not the size of any input's axis; "
                          f"known: {', '.join(sorted(bound)) or 'none'}")  # fmt: skip


def _verify_outputs(graph: Graph, place: str, defined: set[int]) -> None:
    for value in graph.outputs:
        if id(value) not in defined:
            raise IRError(f"{place} returns %{value.name}, which it does not define")
    if graph.states > min(len(graph.inputs), len(graph.outputs)):
        counts = f"{graph.states} states, {len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        raise IRError(f"{place} has {counts}: each state is an input and an output")
    for index in range(-graph.states, 0):
        before, after = graph.inputs[index], graph.outputs[index]
        if before.type != after.type:
            raise IRError(f"{place}: state %{before.name}: {before.type} is followed by %{after.name}: {after.type}; "
                          "a state keeps its type")  # fmt: skip


def _verify_weights(module: Module, *, stored: bool) -> None:
    """One key is one tensor: every op names it with the same type, and so does the store."""
    first: dict[str, tuple[TensorType, Op]] = {}
    for graph in module.graphs.values():
        for op in graph.walk():
            for operand in op.operands:
                if not isinstance(operand, Weight):
                    continue
                place = f"graph @{graph.name}: {op.describe()}"
                known, other = first.setdefault(operand.key, (operand.type, op))
                if known != operand.type:
                    raise IRError(f"{place} reads weight @{operand.key} as {operand.type}, "
                                  f"but {other.describe()} reads it as {known}")  # fmt: skip
                if stored:
                    _verify_stored(module, operand, place)


def _verify_stored(module: Module, weight: Weight, place: str) -> None:
    if weight.key not in module.weights:
        raise IRError(f"{place} reads weight @{weight.key}, which is not in the module's store")
    source = module.weights.source(weight.key)
    if source.type != weight.type:
        raise IRError(f"{place} reads weight @{weight.key} as {weight.type}, but the store has {source.type} "
                      f"({source.description}); a weight that is changed gets a new key")  # fmt: skip
