"""Cutting units of a group out of a module: weights are sliced, and the graph gets the sizes that are left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.ir.coupling import Axis, Group
from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.types import TensorType

if TYPE_CHECKING:
    import torch

__all__ = ["cut_units", "left_of"]


def cut_units(module: Module, group: Group, cut: frozenset[int], instead: Mapping[str, Weight] | None = None) -> None:
    """Cut units of a group out of every graph of a module.

    `instead` gives weights to read instead of others, by key: such as are cut already, and refitted.
    """
    left = {axis: group.kept(axis, cut) for axis in group.places}
    weights = dict(instead or {})
    for graph in module.graphs.values():
        for value in graph.inputs:
            value.type = _type(value.type, value, left)
        for op in graph.walk():
            for index, operand in enumerate(op.operands):
                if not isinstance(operand, Weight):
                    continue
                if operand.key not in weights and any(axis in left for axis in _axes(operand)):
                    weights[operand.key] = left_of(module, operand, left)
                if operand.key in weights:
                    op.set_operand(index, weights[operand.key])
        _resize(graph, left)


def left_of(module: Module, weight: Weight, left: Mapping[Axis, list[int]]) -> Weight:
    """A weight without the positions that are cut along its axes; they are picked each time it is loaded."""
    kept = {axis.index: tuple(left[axis]) for axis in _axes(weight) if axis in left}
    key = module.weights.fresh_key(f"{weight.key}.cut")
    type = weight.type.with_shape(*(len(kept.get(index, ())) or size for index, size in enumerate(weight.type.shape)))
    words = " and ".join(f"{len(own)} of {weight.type.shape[index]} along axis {index}" for index, own in kept.items())
    return Weight(module.weights.derive(key, (weight.key,), type, f"{words} of @{weight.key}", _Pick(kept)), type)


@dataclass(frozen=True)
class _Pick:
    """Picks positions along some axes."""

    kept: Mapping[int, tuple[int, ...]]

    takes_stored = True

    def __call__(self, weight: torch.Tensor) -> Any:
        import torch

        for axis, positions in self.kept.items():
            weight = weight.index_select(axis, torch.tensor(positions))
        return weight


def _axes(tensor: Value | Weight) -> list[Axis]:
    name = tensor.key if isinstance(tensor, Weight) else tensor
    return [Axis(name, index) for index in range(tensor.type.rank)]


def _type(type: TensorType, value: Value, left: Mapping[Axis, list[int]]) -> TensorType:
    sizes = [len(left[axis]) if axis in left else size for axis, size in zip(_axes(value), type.shape, strict=True)]
    return type.with_shape(*sizes)


def _resize(graph: Graph, left: Mapping[Axis, list[int]]) -> None:
    """Sizes in attributes and types, in order: each op is looked at with its operands as they are now."""
    for op in graph.walk():
        if "shape" in op.attributes:
            op.attributes["shape"] = _type(op.results[0].type, op.results[0], left).shape
        if op.name == "slice":
            _move_slice(op, left)
        for value, type in zip(op.results, op.spec.infer_types(op), strict=True):
            value.type = type


def _move_slice(op: Op, left: Mapping[Axis, list[int]]) -> None:
    """A range of positions is what is left of it."""
    x, number = op.value(0), op.attributes["axis"]
    assert isinstance(number, int)
    kept = left.get(Axis(x, number % x.type.rank))
    start, stop = op.attributes["start"], op.attributes["stop"]
    if kept is not None and isinstance(start, int):
        end = stop if isinstance(stop, int) else None
        op.attributes["start"] = sum(position < start for position in kept)
        op.attributes["stop"] = None if end is None else sum(position < end for position in kept)
