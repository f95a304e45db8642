"""Reference execution in torch: the oracle of every test, differentiable, one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError, IRError
from slmopt.ir.dims import Dim, SymbolicDim, single_symbol
from slmopt.ir.graph import Graph, Module, Op, Value, Weight
from slmopt.ir.step import step_sizes
from slmopt.ir.types import DType, QuantizedType
from slmopt.ir.weights import QuantizedTensor

if TYPE_CHECKING:
    import torch

__all__ = ["bind_symbols", "forward", "initial_states", "run", "step_through"]

Substitutes = Mapping[str, Callable[..., Any]]

_SLAB = 1 << 18  # elements of a quantized weight that are dequantized at a time


def bind_symbols(graph: Graph, shapes: Sequence[Sequence[int]]) -> dict[str, Dim]:
    """The value of each symbol of the inputs' types, from the shapes of actual inputs."""
    bound: dict[str, Dim] = {}
    if len(shapes) != len(graph.inputs):
        raise InputError(f"graph @{graph.name} takes {len(graph.inputs)} inputs, got {len(shapes)}")
    for value, shape in zip(graph.inputs, shapes, strict=True):
        fits = len(shape) == len(value.shape)
        for dim, size in zip(value.shape, shape, strict=False):
            name = single_symbol(dim)
            if name is not None:
                fits = fits and bound.setdefault(name, size) == size
            else:
                fits = fits and (dim == size or isinstance(dim, SymbolicDim))
        if not fits:
            raise InputError(f"graph @{graph.name}: input %{value.name} must be {value.type}, got shape {list(shape)}")
    return bound


def run(
    module: Module, graph: str | Graph, inputs: Sequence[torch.Tensor],
    parameters: Mapping[str, torch.Tensor] | None = None, *, wide: bool = False,
    observe: Callable[[Value, torch.Tensor], None] | None = None, substitutes: Substitutes = MappingProxyType({}),
) -> list[torch.Tensor]:  # fmt: skip
    """Execute a graph on concrete inputs; returns its outputs.

    Each weight is loaded where it is read and dropped afterwards, each value is dropped after its last use.
    `parameters` gives tensors to use instead of stored weights, by key: with `requires_grad` they collect gradients.
    `wide` computes in float64: two graphs that are equal in real numbers then agree to about 1e-12, and no rounding
    of activations to 8 bits tips over from one to the other. `observe` sees the result of every op, as it is computed.
    `substitutes` compute ops of a name instead of their `reference`, as it would: for what must be quick.
    """
    source = module.graph(graph) if isinstance(graph, str) else graph
    bound = source.copy(dims=bind_symbols(source, [tuple(x.shape) for x in inputs]))
    plain = len(inputs) - source.states  # a state keeps its type: writing into it rounds
    given = [_widen(value) if wide and index < plain else value for index, value in enumerate(inputs)]
    values: dict[Value, torch.Tensor] = dict(zip(bound.inputs, given, strict=True))
    last = {operand: op for op in bound.walk() for operand in op.operands if isinstance(operand, Value)}
    kept = set(bound.outputs)
    for op, original in zip(bound.walk(), source.walk(), strict=True):
        results = _execute(op, module, values, parameters or {}, wide, substitutes)
        for value, seen, result in zip(op.results, original.results, results, strict=True):
            if observe is not None:
                observe(seen, result)
            if value in last or value in kept:
                values[value] = result
        for operand in op.operands:
            if isinstance(operand, Value) and last[operand] is op and operand not in kept:
                values.pop(operand, None)
    return [values[value] for value in bound.outputs]


def _execute(
    op: Op, module: Module, values: Mapping[Value, torch.Tensor], parameters: Mapping[str, torch.Tensor], wide: bool,
    substitutes: Substitutes,
) -> tuple[Any, ...]:  # fmt: skip
    operands: list[Any] = []
    for operand in op.operands:
        if isinstance(operand, Weight):
            given = parameters.get(operand.key)
            operands.append(module.weights.stored(operand.key) if given is None else given)
        else:
            operands.append(None if operand is None else values[operand])
    try:
        found = _apply(op, operands, wide, substitutes)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise IRError(f"{op.describe()} failed in the interpreter: {error}") from error
    results = found if isinstance(found, tuple) else (found,)
    return tuple(_widen(result) for result in results) if wide else results


def _apply(op: Op, operands: list[Any], wide: bool, substitutes: Substitutes) -> Any:
    """The op's reference on stored weights. Of a matrix only a slab, or the rows read, is widened at a time."""
    stored = [isinstance(operand, Weight) for operand in op.operands]
    if op.name == "embedding" and stored[1] and _in_parts(operands[1]):
        rows, operands[0] = operands[0].unique(return_inverse=True)
        operands[1] = _rows(operands[1], rows)
    if op.name == "linear" and stored[1] and _in_parts(operands[1]):
        operands[2:] = [_float(o, wide) if s else o for o, s in zip(operands[2:], stored[2:], strict=True)]
        return _linear(op, operands, wide)
    wide = wide and op.name != "embedding"  # of a table few rows are read: the result alone is widened
    compute = substitutes.get(op.name, op.spec.reference)
    return compute(op, *(_float(o, wide) if s else o for o, s in zip(operands, stored, strict=True)))


def _linear(op: Op, operands: list[Any], wide: bool) -> Any:
    """A linear with a stored weight [n, k], some of the n outputs at a time."""
    import torch

    x, weight = operands[:2]
    bias, residual = [*operands[2:], None, None][:2]
    rows, columns = weight.codes.shape if isinstance(weight, QuantizedTensor) else weight.shape
    step = max(1, _SLAB // max(columns, 1))

    def outputs(part: slice) -> Any:
        added = (None if bias is None else bias[part], None if residual is None else residual[..., part])
        return op.spec.reference(op, x, _float(_rows(weight, part), wide), *added)

    parts = (outputs(slice(start, start + step)) for start in range(0, max(rows, 1), step))
    first = next(parts)
    if rows <= step:
        return first
    if first.requires_grad:
        return torch.cat([first, *parts], -1)
    found = first.new_empty(*first.shape[:-1], rows)  # small results kept between the slabs would tear up the heap
    found[..., :step] = first
    for start, part in zip(range(step, rows, step), parts, strict=True):
        found[..., start : start + step] = part
    return found


def _in_parts(weight: Any) -> bool:
    """Whether a matrix is widened part by part: quantized ones, and large ones that collect no gradient."""
    return isinstance(weight, QuantizedTensor) or (weight.numel() > _SLAB and not weight.requires_grad)


def _rows(tensor: Any, rows: Any) -> Any:
    """Some rows of a matrix."""
    if not isinstance(tensor, QuantizedTensor):
        return tensor[rows]
    minimum = None if tensor.minimum is None else tensor.minimum[rows]
    return QuantizedTensor(tensor.type, tensor.codes[rows], tensor.scales[rows], minimum)


def _float(weight: Any, wide: bool) -> Any:
    """A stored weight as float32 or float64 numbers; integers as they are."""
    if isinstance(weight, QuantizedTensor):
        weight = weight.dequantize()
    if weight is None or not weight.is_floating_point():
        return weight
    return weight.double() if wide else weight.float()


def _widen(value: Any) -> Any:
    return value.double() if value.is_floating_point() else value


def forward(
    module: Module, ids: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Logits f32[b, s, vocab] of token ids i64[b, s]."""
    return run(module, "forward", [ids], parameters)[0]


def initial_states(
    graph: Graph, batch: int, capacity: int, *, chunk: int | None = None, rounded: bool = True
) -> list[torch.Tensor]:  # fmt: skip
    """Zeros for every state of a step graph, in the type it is declared with, or float64 where `rounded` is False.

    `chunk` is the most tokens a step will take; None: any number. A state of codes is float32: the numbers they stand
    for."""
    import torch

    from slmopt.ir.torch_types import torch_dtype

    sizes = step_sizes(graph, batch, capacity, chunk or capacity)
    states = graph.inputs[len(graph.inputs) - graph.states :]
    types = [state.type.substitute(sizes) for state in states]
    plain = [DType.f32 if isinstance(t.element, QuantizedType) else t.element for t in types]
    elements = [torch_dtype(e) if rounded or not e.is_float else torch.float64 for e in plain]
    shapes = [[int(d) for d in t.shape] for t in types]  # type: ignore[arg-type]
    return [torch.zeros(shape, dtype=element) for shape, element in zip(shapes, elements, strict=True)]


def step_through(
    module: Module, ids: torch.Tensor, splits: Sequence[int], capacity: int | None = None, *, wide: bool = False,
    rounded: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Logits of ids [b, s] computed by @step in parts of the given lengths, which must add up to s.

    `wide` computes in float64. `rounded=False` keeps states in float64, whatever type they are declared with.
    """
    import torch

    graph = module.graph("step")
    if sum(splits) != ids.shape[1]:
        raise InputError(f"splits {list(splits)} do not add up to {ids.shape[1]} tokens")
    chunk = max(splits, default=1)
    states = initial_states(graph, ids.shape[0], capacity or ids.shape[1], chunk=chunk, rounded=rounded)
    parts, position = [], 0
    for length in splits:
        part = ids[:, position : position + length]
        logits, *following = run(module, graph, [part, torch.tensor(position), *states], wide=wide)
        states = [new.to(old.dtype) for old, new in zip(states, following, strict=True)]
        parts.append(logits)
        position += length
    return torch.cat(parts, 1)
