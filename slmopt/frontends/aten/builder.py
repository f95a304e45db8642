"""What a conversion rule works with: the graph being built, the node being converted, the types torch gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from slmopt.dense_masks import structure_of
from slmopt.errors import IRError, UnsupportedError
from slmopt.frontends.symbols import Symbols
from slmopt.ir.dims import Dim, SymbolicDim
from slmopt.ir.graph import Attribute, Graph, Operand, Value, Weight
from slmopt.ir.torch_types import element_of
from slmopt.ir.types import DType, TensorType
from slmopt.ir.weights import WeightStore
from slmopt.masks import MaskStructure

__all__ = ["Argument", "Builder", "StructuralMask"]

Number: TypeAlias = bool | int | float
Argument: TypeAlias = Any  # Value, Weight, StructuralMask, Dim, Number, dtype, str, None, or a list of these


@dataclass(frozen=True)
class StructuralMask:
    """A mask [batch, 1, queries, keys] known by its structure; it becomes numbers only where an op wants numbers."""

    batch: Dim
    queries: Dim
    keys: Dim
    mask: str
    window: int | None
    chunk: int | None

    @property
    def attributes(self) -> dict[str, Attribute]:
        """The structure, as attributes of `attention` and `attention_mask`."""
        return {"mask": self.mask, "window": self.window, "chunk": self.chunk}


class Builder:
    """Adds ops for one FX node at a time, named and placed after the module that the node was traced in."""

    def __init__(self, graph: Graph, symbols: Symbols, weights: WeightStore) -> None:
        self.graph, self.symbols, self.weights = graph, symbols, weights
        self.node: Node | None = None
        self.location = ""
        self._masks: dict[Value | Weight, MaskStructure | None] = {}
        self.hint = ""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The node's positional arguments as torch has them: FX nodes and plain numbers."""
        return self.node.args if self.node is not None else ()

    @property
    def results(self) -> int:
        """How many tensors the node gives."""
        found = self.node.meta["val"] if self.node is not None else None
        return len(found) if isinstance(found, list | tuple) else 1

    # --- the node's result, as torch saw it --------------------------------------------------------------------------
    def result_type(self, index: int | None = None) -> TensorType:
        """The type of the node's result (or of its `index`-th result)."""
        found: Any = self.node.meta["val"] if self.node is not None else None
        found = found if index is None else found[index]
        if not isinstance(found, torch.Tensor):
            raise UnsupportedError(f"{self.place()} gives {type(found).__name__}, not a tensor")
        return self.tensor_type(found)

    def tensor_type(self, value: torch.Tensor) -> TensorType:
        """The type of a traced tensor."""
        return TensorType(element_of(value.dtype), tuple(self.symbols.dim(size, self.place()) for size in value.shape))

    @property
    def element(self) -> DType:
        """The element type of the node's result."""
        element = self.result_type().element
        if not isinstance(element, DType):
            raise IRError(f"{self.place()}: torch gives no quantized values")
        return element

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The shape of the node's result."""
        return self.result_type().shape

    def place(self) -> str:
        """How messages quote the node: `aten.topk.default (at model.layers.0.mlp)`."""
        target = str(self.node.target) if self.node is not None else "the graph"
        return f"{target}{f' (at {self.location})' if self.location else ''}"

    # --- adding ops --------------------------------------------------------------------------------------------------
    def add(self, name: str, operands: Sequence[Operand], attributes: Mapping[str, Attribute] | None = None) -> Value:
        """Add an op with one result."""
        return self.graph.add(
            name, operands, attributes, hint=f"{self.hint}_{name}" if self.hint else name, location=self.location
        ).result

    def operand(self, argument: Argument, element: DType | None = None) -> Value | Weight:
        """An argument as a tensor of the given element type: numbers become constants, other types are cast."""
        if isinstance(argument, StructuralMask):
            argument = self.add(
                "attention_mask", (), {"queries": argument.queries, "keys": argument.keys, **argument.attributes}
            )
        if isinstance(argument, SymbolicDim):
            argument = self.add("dimension", (), {"value": argument})
        if isinstance(argument, Value | Weight):
            return argument if element is None else self.cast(argument, element)
        if isinstance(argument, bool | int | float):
            return self.constant(argument, element or _element_of_number(argument))
        raise UnsupportedError(f"{self.place()}: expected a tensor or a number, got {argument!r}")

    def constant(self, number: Number, element: DType) -> Value:
        """One number."""
        kind = float if element.is_float else bool if element == DType.bool else int
        return self.add("constant", (), {"value": kind(number), "element": str(element)})

    def full(self, shape: Sequence[Dim], number: Number, element: DType) -> Value:
        """A tensor of one number."""
        kind = float if element.is_float else bool if element == DType.bool else int
        return self.add("full", (), {"shape": tuple(shape), "value": kind(number), "element": str(element)})

    def cast(self, x: Value | Weight, element: DType) -> Value | Weight:
        """`x` converted, where it is not of that element type already."""
        return x if x.type.element == element else self.add("cast", (x,), {"element": str(element)})

    def reshape(self, x: Value | Weight, shape: Sequence[Dim]) -> Value | Weight:
        """`x` under another shape, where it does not have it already."""
        return x if x.type.shape == tuple(shape) else self.add("reshape", (x,), {"shape": tuple(shape)})

    def expand(self, x: Value | Weight, shape: Sequence[Dim]) -> Value | Weight:
        """`x` broadcast to a shape, where it does not have it already."""
        return x if x.type.shape == tuple(shape) else self.add("expand", (x,), {"shape": tuple(shape)})

    def permute(self, x: Value | Weight, axes: Sequence[int]) -> Value | Weight:
        """Result axis i is axis axes[i] of `x`."""
        ordered = list(axes) == list(range(x.type.rank))
        return x if ordered else self.add("permute", (x,), {"axes": tuple(axes)})

    def slice(self, x: Value | Weight, axis: int, start: Dim, stop: Dim, step: int = 1) -> Value | Weight:
        """x[start:stop:step] along an axis; stop is the number of positions where all the rest is meant."""
        size = x.type.shape[axis]
        if start == 0 and stop == size and step == 1:
            return x
        rest = stop == size and isinstance(size, SymbolicDim)
        return self.add("slice", (x,), {"axis": axis, "start": start, "stop": None if rest else stop, "step": step})

    def concat(self, parts: Sequence[Value | Weight], axis: int) -> Value | Weight:
        """The parts one after another."""
        return parts[0] if len(parts) == 1 else self.add("concat", tuple(parts), {"axis": axis})

    def mask_structure(self, mask: Value | Weight) -> MaskStructure | None:
        """The structure of a mask that the model computed itself; looked at once, however many layers share it."""
        if mask not in self._masks:
            self._masks[mask] = structure_of(mask, self.weights)
        return self._masks[mask]

    def unsupported(self, what: str) -> UnsupportedError:
        """An error that names the node and what it asks for."""
        return UnsupportedError(f"{self.place()}: {what} is not supported")


def _element_of_number(number: Number) -> DType:
    return DType.bool if isinstance(number, bool) else DType.i64 if isinstance(number, int) else DType.f32
