"""The step graph as torch traces it, and what torch-mlir makes of that: functions in the torch dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slmopt.backends.mlir.references import reference_of
from slmopt.backends.mlir.weights import StoredWeight
from slmopt.errors import InputError, UnsupportedError
from slmopt.ir.graph import Graph, Op, Value, Weight
from slmopt.ir.types import DType, QuantizedType, TensorType

if TYPE_CHECKING:
    import torch

__all__ = ["import_functions", "trace_problems"]


def import_functions(functions: Mapping[str, Graph], weights: Sequence[StoredWeight]) -> str:
    """Functions in the torch dialect as text, one a line of signature and body, of graphs whose sizes are all known.

    Each takes the graph's inputs and then every weight, as the numbers it stands for. Token ids and the position are
    i32, states of codes float32.
    InputError without torch-mlir; UnsupportedError names the op that cannot be traced.
    """
    try:
        from torch_mlir import ir
        from torch_mlir.dialects import torch as torch_dialect
        from torch_mlir.extras.fx_importer import FxImporter
    except ImportError as error:
        raise InputError("compiling through MLIR needs the package torch-mlir: pip install 'slmopt[mlir]'") from error
    context = ir.Context()
    torch_dialect.register_dialect(context)
    importer = FxImporter(context=context)
    for name, graph in functions.items():
        traced, problems = _trace(graph, weights)
        if traced is None:
            raise UnsupportedError("\n  ".join(problems))
        importer.import_stateless_graph(traced.graph, func_name=name)
    return str(importer.module)


def trace_problems(graph: Graph, weights: Sequence[StoredWeight]) -> list[str]:
    """What of a graph cannot be traced, each by op and place."""
    return _trace(graph, weights)[1]


def _trace(graph: Graph, weights: Sequence[StoredWeight]) -> tuple[torch.fx.GraphModule | None, list[str]]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch_mlir.extras.fx_decomp_util import get_decomposition_table

    from slmopt.ir.torch_types import torch_dtype

    def compute(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = [tensor.to(torch_dtype(value.type.element)) if index < plain else tensor
                  for index, (value, tensor) in enumerate(zip(graph.inputs, given, strict=False))]  # fmt: skip
        values = dict(zip(graph.inputs, inputs, strict=True))
        tensors = {weight.key: tensor for weight, tensor in zip(weights, given[len(values) :], strict=True)}
        for op in graph.walk():
            values.update(zip(op.results, _apply(op, values, tensors), strict=True))
        return tuple(values[value] for value in graph.outputs)

    plain = len(graph.inputs) - graph.states
    types = [value.type.with_element(DType.i32) if index < plain else value.type
             for index, value in enumerate(graph.inputs)]  # fmt: skip
    types += [TensorType(weight.read_element, weight.type.shape) for weight in weights]
    with FakeTensorMode() as fake, torch.no_grad():
        inputs = [_empty(type) for type in types]
        pure = torch.func.functionalize(compute)
        with fake:
            try:
                return make_fx(pure, get_decomposition_table())(*inputs), []
            except _OpError as error:
                return None, [str(error)]


class _OpError(Exception):
    """One op cannot be traced."""


def _apply(op: Op, values: Mapping[Value, Any], tensors: Mapping[str, Any]) -> tuple[Any, ...]:
    operands = [tensors[o.key] if isinstance(o, Weight) else None if o is None else values[o] for o in op.operands]
    try:
        found = reference_of(op)(op, *operands)
    except Exception as error:  # whatever the reference of a plugin's op does with tensors that hold no numbers
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise _OpError(f"{op.describe()} cannot be traced by torch: {reason[0]}") from error
    return found if isinstance(found, tuple) else (found,)


def _empty(type: TensorType) -> torch.Tensor:
    import torch

    from slmopt.ir.torch_types import torch_dtype

    element = DType.f32 if isinstance(type.element, QuantizedType) else type.element
    return torch.empty([int(size) for size in type.shape], dtype=torch_dtype(element))  # type: ignore[arg-type]
