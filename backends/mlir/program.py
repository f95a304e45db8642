"""The program: step functions of several sizes that share their weights, which are parameters outside of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from slmopt.backends.mlir.trace import import_functions, trace_problems
from slmopt.backends.mlir.weights import SCOPE, StoredWeight, builtin_type
from slmopt.ir.graph import Graph, Module, Weight
from slmopt.ir.step import TOKENS, step_sizes
from slmopt.ir.types import DType, QuantizedType

__all__ = ["Program", "State", "function_name", "program_of"]

_NUMPY = {
    DType.f64: "float64", DType.f32: "float32", DType.f16: "float16", DType.i64: "int64", DType.i32: "int32",
    DType.i8: "int8", DType.u8: "uint8", DType.bool: "bool",
}  # fmt: skip
_SIGNATURE = re.compile(r"^  func\.func @(\w+)\((.*?)\)( -> .*) \{$", re.MULTILINE)
_VTENSOR = re.compile(r"!torch\.vtensor<\[([0-9,]*)\],(\w+)>")


@dataclass(frozen=True)
class State:
    """A tensor that is kept between steps: its sizes, and its element as numpy names it."""

    shape: tuple[int, ...]
    element: str


@dataclass(frozen=True)
class Program:
    """The step graph at batch 1 with caches of `capacity` positions, for steps of each of `sizes` tokens."""

    graph: Graph
    weights: tuple[StoredWeight, ...]
    capacity: int
    sizes: tuple[int, ...]

    @property
    def states(self) -> list[State]:
        """What is kept between steps, zeros at first; codes are kept as the float32 numbers they stand for."""
        graph = self._sized(1)
        types = [value.type for value in graph.inputs[len(graph.inputs) - graph.states :]]
        elements = [DType.f32 if isinstance(type.element, QuantizedType) else type.element for type in types]
        return [State(tuple(int(size) for size in type.shape), _NUMPY[element])  # type: ignore[arg-type]
                for type, element in zip(types, elements, strict=True)]  # fmt: skip

    def problems(self) -> list[str]:
        """What cannot be compiled, each by op and place."""
        return trace_problems(self._sized(1), self.weights)

    def text(self, *, apart: bool = False) -> str:
        """The program in MLIR: functions (ids, position, state ...) -> (logits, state ...), and the parameters.

        `apart` computes the numbers that a narrow weight stands for by themselves, not inside the product.
        """
        functions = import_functions({function_name(size): self._sized(size) for size in self.sizes}, self.weights)
        symbols = self._symbols()
        declared = "".join(
            f'  util.global private @{symbol} = #flow.parameter.named<"{SCOPE}"::"{part.key}"> : {part.type}\n'
            for weight in self.weights for symbol, part in zip(symbols[weight.key], weight.parts, strict=True)
        )  # fmt: skip
        whole = _SIGNATURE.sub(lambda match: self._read_weights(match, symbols, apart), functions)
        return whole.replace("module {\n", "module @model {\n" + declared, 1)

    def _sized(self, tokens: int) -> Graph:
        return self.graph.copy(dims={**step_sizes(self.graph, 1, self.capacity, max(self.sizes)), TOKENS: tokens})

    def _symbols(self) -> dict[str, list[str]]:
        return {weight.key: [f"w{index}_{part}" for part in range(len(weight.parts))]
                for index, weight in enumerate(self.weights)}  # fmt: skip

    def _read_weights(self, signature: re.Match[str], symbols: dict[str, list[str]], apart: bool) -> str:
        """A function's signature without the weights, which it reads from the globals first."""
        arguments = signature[2].split(", %")
        inputs = len(arguments) - len(self.weights)
        reads = []
        for index, (weight, argument) in enumerate(zip(self.weights, arguments[inputs:], strict=True)):
            name, type = argument.lstrip("%").split(": ", 1)
            shape, element = _builtin(type)
            reads.append(weight.read(f"weight{index}", symbols[weight.key]))
            found, read = f"%weight{index}", builtin_type(shape, element)
            if apart and weight.is_narrow:
                reads.append(f"    {found}_apart = util.optimization_barrier {found} : {read}\n")
                found += "_apart"
            reads.append(f"    %{name} = torch_c.from_builtin_tensor {found} : {read} -> {type}\n")
        kept = ", %".join(arguments[:inputs])
        return f"  func.func @{signature[1]}({kept}){signature[3]} {{\n{''.join(reads)}".rstrip("\n")


def function_name(tokens: int) -> str:
    """The function of a step of so many tokens."""
    return f"step{tokens}"


def program_of(module: Module, capacity: int, sizes: Sequence[int]) -> Program:
    """The program of a module's @step."""
    graph = module.graph("step")
    used = {operand.key: operand.type for op in graph.walk() for operand in op.operands if isinstance(operand, Weight)}
    weights = tuple(StoredWeight(key, type) for key, type in used.items())
    return Program(graph, weights, capacity, tuple(sizes))


def _builtin(type: str) -> tuple[list[int], str]:
    """The sizes and the element of a torch tensor type as a builtin tensor has them."""
    match = _VTENSOR.fullmatch(type)
    if match is None:
        raise ValueError(f"torch-mlir gave an argument of type {type}")
    sizes = [int(size) for size in match[1].split(",") if size]
    return sizes, match[2].replace("si", "i").replace("ui", "i")
