"""Running modules in float64 and comparing what they give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmopt.interpreter import run, step_through
from slmopt.ir.graph import Graph, Module, Value
from slmopt.ir.types import DType
from slmopt.probe import relative_error

if TYPE_CHECKING:
    import torch

__all__ = [
    "SIZES", "Difference", "all_finite", "compare", "compute", "compute_step", "is_decoding", "perturbed", "rounds",
]  # fmt: skip

# One position alone; then enough of them to see past every window that the strategies draw.
SIZES: tuple[Mapping[str, int], ...] = ({"b": 1, "s": 1}, {"b": 2, "s": 7})
_LAST = SIZES[-1]
_SPLITS = ([3, 1, 3], [7])
_SEED = 20_240_305
_NOISE = 1e-3  # of inputs around 1: below it, what float32 rounds off of numbers that cancel would count as a fault


@dataclass(frozen=True)
class Difference:
    """The largest difference of one output, relative to its largest number. `where` says of what and at which sizes."""

    error: float
    where: str


def compute(
    module: Module, name: str, sizes: Mapping[str, int], parameters: Mapping[str, torch.Tensor] | None = None, *,
    wide: bool = True,
) -> list[torch.Tensor]:  # fmt: skip
    """What a graph gives, in float64 or float32, on inputs that depend on their place, type and the sizes alone."""
    import torch

    graph = module.graph(name)
    inputs = [_input(module, graph, i, sizes) for i in range(len(graph.inputs))]
    if not wide:
        inputs = [value.float() if value.is_floating_point() else value for value in inputs]
    with torch.no_grad():
        return run(module, name, inputs, parameters, wide=wide)


def _input(module: Module, graph: Graph, index: int, sizes: Mapping[str, int]) -> torch.Tensor:
    import torch

    value = graph.inputs[index]
    bound = {"b": 2, "s": 7, "t": 3, "c": 16, "m": 7, **sizes}
    shape = [int(dim) for dim in value.type.substitute(bound).shape]  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(_SEED + index)
    if value.type.element in (DType.i64, DType.i32):
        return torch.randint(0, _rows(module, value), shape, generator=generator)
    if value.type.element == DType.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _rows(module: Module, value: Value) -> int:
    size = module.metadata.get("vocab")
    return size if isinstance(size, int) and size > 0 and value.type.rank else 2


def is_decoding(module: Module) -> bool:
    """Whether @step takes (ids, position, states ...) and gives one output, as @forward does."""
    if not {"forward", "step"} <= module.graphs.keys():
        return False
    step = module.graph("step")
    one = len(step.outputs) == 1 + step.states and len(module.graph("forward").inputs) == 1
    return one and len(step.inputs) == 2 + step.states and step.inputs[1].type.rank == 0


def compute_step(module: Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The first output of @forward, and the same through @step in parts, states unrounded."""
    import torch

    graph = module.graph("forward")
    inputs = [_input(module, graph, 0, _LAST)]
    with torch.no_grad():
        whole = run(module, "forward", inputs, wide=True)[0]
        return [(whole, step_through(module, inputs[0], parts, wide=True, rounded=False)) for parts in _SPLITS]


def compare(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], where: str) -> Difference:
    """The output that differs most; infinite where a shape differs."""
    worst = Difference(0.0, where)
    for index, (before, after) in enumerate(zip(expected, found, strict=True)):
        if before.shape != after.shape:
            shapes = f"has shape {list(after.shape)}, not {list(before.shape)}"
            return Difference(float("inf"), f"output {index} of {where} {shapes}")
        error = relative_error(before.double().flatten(), after.double().flatten())
        largest = float(before.double().abs().max()) if before.numel() else 0.0
        if 0 < largest < _NOISE and math.isfinite(error):
            error *= largest / _NOISE
        if error > worst.error:
            worst = Difference(error, f"output {index} of {where}")
    return worst


def rounds(graph: Graph) -> bool:
    """Whether activations are rounded on the way: a number on the edge between two codes may fall either way."""
    return any(
        op.attributes.get("act") is not None or any(str(value.type.element).startswith("q") for value in op.results)
        for op in graph.walk()
    )


def all_finite(values: Sequence[torch.Tensor]) -> bool:
    """Whether every number is one."""
    return all(bool(value.isfinite().all()) for value in values)


def perturbed(module: Module) -> dict[str, torch.Tensor]:
    """The float weights with every number off by at most its last bit in float32: what storing them may do to them."""
    import torch

    found = {}
    for index, (key, type) in enumerate(module.weight_types().items()):
        if type.element.is_float:
            weight = module.weights.float(key).double()
            noise = torch.rand(weight.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
            found[key] = weight * (1 + (noise - 0.5) * 2**-23)
    return found
