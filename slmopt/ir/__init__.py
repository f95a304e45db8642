"""The intermediate representation: types, graphs, ops, weights, text, verification. Imports no heavy package."""

from slmopt.ir.dims import Dim, SymbolicDim, symbol
from slmopt.ir.graph import Graph, Module, Op, Operand, Value, Weight
from slmopt.ir.text import parse_module
from slmopt.ir.types import DType, QuantizedType, TensorType, tensor

__all__ = [
    "DType", "Dim", "Graph", "Module", "Op", "Operand", "QuantizedType", "SymbolicDim", "TensorType", "Value", "Weight",
    "parse_module", "symbol", "tensor",
]  # fmt: skip
