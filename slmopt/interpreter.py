"""Reference execution in torch: the oracle of every test, differentiable, one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError, IRError
from slmopt.ir.dims import Dim, SymbolicDim
from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.types import DType

if TYPE_CHECKING:
    import torch

__all__ = ["bind_symbols", "forward", "initial_states", "run", "step_through"]


def bind_symbols(graph: Graph, shapes: Sequence[Sequence[int]]) -> dict[str, Dim]:
    """The value of each symbol of the inputs' types, from the shapes of actual inputs."""
    bound: dict[str, Dim] = {}
    if len(shapes) != len(graph.inputs):
        raise InputError(f"graph @{graph.name} takes {len(graph.inputs)} inputs, got {len(shapes)}")
    for value, shape in zip(graph.inputs, shapes, strict=True):
        fits = len(shape) == len(value.shape)
        for dim, size in zip(value.shape, shape, strict=False):
            if isinstance(dim, SymbolicDim) and len(dim.terms) == 1 and dim.terms[0][1] == 1 and len(dim.terms[0][0]) == 1:
                fits = fits and bound.setdefault(dim.terms[0][0][0], size) == size
            else:
                fits = fits and (dim == size or isinstance(dim, SymbolicDim))
        if not fits:
            raise InputError(f"graph @{graph.name}: input %{value.name} must be {value.type}, got shape {list(shape)}")
    return bound


def run(
    module: Module, graph: str | Graph, inputs: Sequence[torch.Tensor],
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> list[torch.Tensor]:  # fmt: skip
    """Execute a graph on concrete inputs; returns its outputs.

    Each weight is loaded where it is read and dropped afterwards, each value is dropped after its last use.
    `parameters` gives tensors to use instead of stored weights, by key: with `requires_grad` they collect gradients.
    """
    source = module.graph(graph) if isinstance(graph, str) else graph
    bound = source.copy(dims=bind_symbols(source, [tuple(x.shape) for x in inputs]))
    values: dict[Value, torch.Tensor] = dict(zip(bound.inputs, inputs, strict=True))
    last = {operand: op for op in bound.walk() for operand in op.operands if isinstance(operand, Value)}
    kept = set(bound.outputs)
    for op in bound.walk():
        results = _execute(op, module, values, parameters or {})
        values.update(zip(op.results, results, strict=True))
        for operand in op.operands:
            if isinstance(operand, Value) and last[operand] is op and operand not in kept:
                values.pop(operand, None)
    return [values[value] for value in bound.outputs]


def _execute(
    op: Op, module: Module, values: Mapping[Value, torch.Tensor], parameters: Mapping[str, torch.Tensor]
) -> tuple[Any, ...]:
    operands: list[Any] = []
    for operand in op.operands:
        if isinstance(operand, Weight):
            given = parameters.get(operand.key)
            operands.append(module.weights.float(operand.key) if given is None else given)
        else:
            operands.append(None if operand is None else values[operand])
    try:
        found = op.spec.reference(op, *operands)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise IRError(f"{op.describe()} failed in the interpreter: {error}") from error
    return found if isinstance(found, tuple) else (found,)


def forward(
    module: Module, ids: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Logits f32[b, s, vocab] of token ids i64[b, s]."""
    return run(module, "forward", [ids], parameters)[0]


def initial_states(graph: Graph, batch: int, capacity: int) -> list[torch.Tensor]:
    """Zeros for every state of a step graph."""
    import torch

    from slmopt.ir.torch_types import torch_dtype

    sizes: dict[str, Dim] = {"b": batch, "c": capacity}
    states = graph.inputs[len(graph.inputs) - graph.states :]
    types = [state.type.substitute(sizes) for state in states]
    return [torch.zeros([int(d) for d in t.shape], dtype=torch_dtype(DType(str(t.element)))) for t in types]  # type: ignore[arg-type]


def step_through(module: Module, ids: torch.Tensor, splits: Sequence[int], capacity: int | None = None) -> torch.Tensor:
    """Logits of ids [b, s] computed by @step in parts of the given lengths, which must add up to s."""
    import torch

    graph = module.graph("step")
    if sum(splits) != ids.shape[1]:
        raise InputError(f"splits {list(splits)} do not add up to {ids.shape[1]} tokens")
    states = initial_states(graph, ids.shape[0], capacity or ids.shape[1])
    parts, position = [], 0
    for length in splits:
        part = ids[:, position : position + length]
        logits, *states = run(module, graph, [part, torch.tensor(position), *states])
        parts.append(logits)
        position += length
    return torch.cat(parts, 1)
