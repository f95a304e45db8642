"""Reference execution in torch: the oracle of every test, differentiable, one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError, IRError
from slmopt.ir.dims import Dim, SymbolicDim
from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.types import DType
from slmopt.ir.weights import QuantizedTensor

if TYPE_CHECKING:
    import torch

__all__ = ["bind_symbols", "forward", "initial_states", "run", "step_through"]

_SLAB = 1 << 22  # elements of a quantized weight that are dequantized at a time


def bind_symbols(graph: Graph, shapes: Sequence[Sequence[int]]) -> dict[str, Dim]:
    """The value of each symbol of the inputs' types, from the shapes of actual inputs."""
    bound: dict[str, Dim] = {}
    if len(shapes) != len(graph.inputs):
        raise InputError(f"graph @{graph.name} takes {len(graph.inputs)} inputs, got {len(shapes)}")
    for value, shape in zip(graph.inputs, shapes, strict=True):
        fits = len(shape) == len(value.shape)
        for dim, size in zip(value.shape, shape, strict=False):
            name = _single_symbol(dim)
            if name is not None:
                fits = fits and bound.setdefault(name, size) == size
            else:
                fits = fits and (dim == size or isinstance(dim, SymbolicDim))
        if not fits:
            raise InputError(f"graph @{graph.name}: input %{value.name} must be {value.type}, got shape {list(shape)}")
    return bound


def _single_symbol(dim: Dim) -> str | None:
    """The name of a dimension that is one symbol and nothing else."""
    if isinstance(dim, SymbolicDim) and len(dim.terms) == 1 and dim.terms[0][1] == 1 and len(dim.terms[0][0]) == 1:
        return dim.terms[0][0][0]
    return None


def run(
    module: Module, graph: str | Graph, inputs: Sequence[torch.Tensor],
    parameters: Mapping[str, torch.Tensor] | None = None, *, wide: bool = False,
) -> list[torch.Tensor]:  # fmt: skip
    """Execute a graph on concrete inputs; returns its outputs.

    Each weight is loaded where it is read and dropped afterwards, each value is dropped after its last use.
    `parameters` gives tensors to use instead of stored weights, by key: with `requires_grad` they collect gradients.
    `wide` computes in float64: two graphs that are equal in real numbers then agree to about 1e-12, and no rounding
    of activations to 8 bits tips over from one to the other.
    """
    source = module.graph(graph) if isinstance(graph, str) else graph
    bound = source.copy(dims=bind_symbols(source, [tuple(x.shape) for x in inputs]))
    values: dict[Value, torch.Tensor] = dict(zip(bound.inputs, inputs, strict=True))
    last = {operand: op for op in bound.walk() for operand in op.operands if isinstance(operand, Value)}
    kept = set(bound.outputs)
    for op in bound.walk():
        results = _execute(op, module, values, parameters or {}, wide)
        values.update(zip(op.results, results, strict=True))
        for operand in op.operands:
            if isinstance(operand, Value) and last[operand] is op and operand not in kept:
                values.pop(operand, None)
    return [values[value] for value in bound.outputs]


def _execute(
    op: Op, module: Module, values: Mapping[Value, torch.Tensor], parameters: Mapping[str, torch.Tensor], wide: bool
) -> tuple[Any, ...]:
    operands: list[Any] = []
    for operand in op.operands:
        if isinstance(operand, Weight):
            given = parameters.get(operand.key)
            operands.append(_load(module, operand.key) if given is None else given)
        else:
            operands.append(None if operand is None else values[operand])
    if wide and op.name != "embedding":  # a table's rows are picked first: the whole of it would be twice as large
        operands = [_widen(operand) for operand in operands]
    try:
        found = op.spec.reference(op, *operands)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise IRError(f"{op.describe()} failed in the interpreter: {error}") from error
    results = found if isinstance(found, tuple) else (found,)
    return tuple(_widen(result) for result in results) if wide else results


def _widen(value: Any) -> Any:
    return value.double() if value is not None and value.is_floating_point() else value


def _load(module: Module, key: str) -> torch.Tensor:
    """A weight as float32 (integers as they are); quantized ones slab by slab, so that one float copy is all."""
    import torch

    value = module.weights.load(key)
    if not isinstance(value, QuantizedTensor):
        tensor: torch.Tensor = value
        return tensor.float() if tensor.is_floating_point() else tensor
    if value.codes.dim() != 2:
        return value.dequantize()
    rows, columns = value.codes.shape
    found, step = torch.empty(rows, columns), max(1, _SLAB // max(columns, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        minimum = None if value.minimum is None else value.minimum[part]
        found[part] = QuantizedTensor(value.type, value.codes[part], value.scales[part], minimum).dequantize()
    return found


def forward(
    module: Module, ids: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Logits f32[b, s, vocab] of token ids i64[b, s]."""
    return run(module, "forward", [ids], parameters)[0]


def initial_states(graph: Graph, batch: int, capacity: int, *, wide: bool = False) -> list[torch.Tensor]:
    """Zeros for every state of a step graph; `wide`: as float64 instead of the type the state is declared with."""
    import torch

    from slmopt.ir.torch_types import torch_dtype

    sizes: dict[str, Dim] = {"b": batch, "c": capacity}
    states = graph.inputs[len(graph.inputs) - graph.states :]
    types = [state.type.substitute(sizes) for state in states]
    elements = [torch.float64 if wide and t.element.is_float else torch_dtype(DType(str(t.element))) for t in types]
    shapes = [[int(d) for d in t.shape] for t in types]  # type: ignore[arg-type]
    return [torch.zeros(shape, dtype=element) for shape, element in zip(shapes, elements, strict=True)]


def step_through(
    module: Module, ids: torch.Tensor, splits: Sequence[int], capacity: int | None = None, *, wide: bool = False
) -> torch.Tensor:
    """Logits of ids [b, s] computed by @step in parts of the given lengths, which must add up to s.

    `wide` computes and keeps states in float64, whatever type they are declared with.
    """
    import torch

    graph = module.graph("step")
    if sum(splits) != ids.shape[1]:
        raise InputError(f"splits {list(splits)} do not add up to {ids.shape[1]} tokens")
    states = initial_states(graph, ids.shape[0], capacity or ids.shape[1], wide=wide)
    parts, position = [], 0
    for length in splits:
        part = ids[:, position : position + length]
        logits, *states = run(module, graph, [part, torch.tensor(position), *states], wide=wide)
        parts.append(logits)
        position += length
    return torch.cat(parts, 1)
