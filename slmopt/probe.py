"""Probes: fixed inputs on which a module is run before and after a pass, and what is compared."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.interpreter import run, step_through
from slmopt.ir.dims import Dim, dim_symbols, product, substitute_dim
from slmopt.ir.graph import Graph, Module
from slmopt.ir.types import DType
from slmopt.ledger import Drift

if TYPE_CHECKING:
    import torch

__all__ = ["Probe", "make_probe", "measure_drift", "measuring", "relative_error"]

_BATCH = 2
_LENGTH = 24
_LARGE = 50_000_000  # with more numbers of weights a probe is shorter: checking is to be quicker than compiling
_LARGE_LENGTH = 8
_LONGEST = 96  # probes grow to see past a window or chunk of at most about this size
_SEED = 20_240_229


@dataclass(frozen=True)
class Probe:
    """Inputs of @forward. The first is token ids [batch, positions] where the graph takes integers."""

    inputs: tuple[Any, ...]

    def forward(self, module: Module, *, wide: bool = False) -> torch.Tensor:
        """The first output of @forward: logits [b, s, vocab]."""
        with measuring():
            return run(module, "forward", list(self.inputs), wide=wide)[0]

    def step(self, module: Module, *, wide: bool = False) -> torch.Tensor:
        """The same logits through @step, its states not rounded: most of the positions at once, then the last one."""
        return self._step(module, [self.inputs[0].shape[1] - 1, 1], wide, rounded=False)

    def rounded_step(self, module: Module, *, wide: bool = False) -> torch.Tensor:
        """The same logits through @step at once, its states rounded to the types they are declared with."""
        return self._step(module, [self.inputs[0].shape[1]], wide, rounded=True)

    def _step(self, module: Module, splits: list[int], wide: bool, rounded: bool) -> torch.Tensor:
        with measuring():
            parts = [part for part in splits if part]
            return step_through(module, self.inputs[0], parts, wide=wide, rounded=rounded)


@contextmanager
def measuring() -> Iterator[None]:
    """Without gradients, in one thread: the same numbers on any number of cores, and a few positions take as long with
    more, which then wait for each other, long where the machine has other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def make_probe(module: Module) -> Probe:
    """Deterministic inputs for @forward: token ids drawn from the whole vocabulary, other inputs normal numbers.

    The length goes past attention windows and chunks of up to 88 positions; longer ones are not reached.
    """
    import torch

    graph = module.graph("forward")
    sizes = _sizes(module, graph)
    generator = random.Random(_SEED)
    torch_generator = torch.Generator().manual_seed(_SEED)
    inputs: list[torch.Tensor] = []
    for value in graph.inputs:
        names = {name for dim in value.shape for name in dim_symbols(dim)}
        bound = {name: sizes.get(name, 3) for name in names}
        shape = [int(substitute_dim(dim, bound)) for dim in value.shape]  # type: ignore[arg-type]
        if value.type.element in (DType.i64, DType.i32):
            count = int(torch.Size(shape).numel())
            drawn = [generator.randrange(_vocabulary(module, graph)) for _ in range(count)]
            inputs.append(torch.tensor(drawn).reshape(shape))
        else:
            inputs.append(torch.randn(shape, generator=torch_generator))
    return Probe(tuple(inputs))


def _sizes(module: Module, graph: Graph) -> dict[str, Dim]:
    numbers = sum(product(type.shape) for type in module.weight_types().values())
    length = _LARGE_LENGTH if isinstance(numbers, int) and numbers > _LARGE else _LENGTH
    for op in graph.walk():
        for name in ("window", "chunk"):
            size = op.attributes.get(name)
            if isinstance(size, int) and size + 8 <= _LONGEST:
                length = max(length, size + 8)
    context = module.metadata.get("context")
    if isinstance(context, int) and context > 0:
        length = min(length, context)
    return {str(module.metadata.get("batch", "b")): _BATCH, str(module.metadata.get("sequence", "s")): length}


def _vocabulary(module: Module, graph: Graph) -> int:
    size = module.metadata.get("vocab") or (graph.outputs[0].shape[-1] if graph.outputs[0].shape else 2)
    return size if isinstance(size, int) and size > 0 else 2


def relative_error(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest difference relative to the largest expected magnitude; infinite where either is not a number."""
    import torch

    scale = float(expected.abs().max()) if expected.numel() else 0.0
    error = float((expected - found).abs().max()) if expected.numel() else 0.0
    finite = bool(torch.isfinite(found).all()) and bool(torch.isfinite(expected).all())
    if not finite:
        same = torch.equal(torch.nan_to_num(expected), torch.nan_to_num(found)) and not bool(torch.isnan(found).any())
        return 0.0 if same else float("inf")
    return error / scale if scale else error


def measure_drift(expected: torch.Tensor, found: torch.Tensor) -> Drift:
    """Drift of logits [..., vocab]."""
    reference, other = expected.float().log_softmax(-1), found.float().log_softmax(-1)
    divergence = (reference.exp() * (reference - other)).nansum(-1).mean()
    agree = (expected.argmax(-1) == found.argmax(-1)).float().mean()
    return Drift(relative_error(expected, found), max(float(divergence), 0.0), float(agree))
