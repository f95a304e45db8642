"""Golden checks of rewrites: text before and after, and equal numbers at several sizes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import torch

from slmopt.interpreter import run
from slmopt.ir.graph import Graph, Module
from slmopt.ir.text import print_graph
from slmopt.ir.types import DType
from slmopt.ir.verify import verify
from slmopt.pipeline import Pass
from tests.passes.toys import apply, toy

__all__ = ["body_of", "check_rewrite", "check_untouched", "drift"]

SIZES: tuple[Mapping[str, int], ...] = ({"b": 2, "s": 5}, {"b": 1, "s": 1}, {"b": 3, "s": 2})


def body_of(graph: Graph) -> str:
    """The lines of a graph between its braces, dedented."""
    return textwrap.dedent("\n".join(print_graph(graph).splitlines()[1:-1]))


def drift(before: Module, after: Module) -> float:
    """max |difference| of the outputs relative to max |output|, over several sizes, in float64."""
    worst = 0.0
    for sizes in SIZES:
        inputs = _inputs(before.graph(), sizes)
        pairs = zip(run(before, "forward", inputs, wide=True), run(after, "forward", inputs, wide=True), strict=True)
        for expected, found in pairs:
            if found.shape != expected.shape:
                raise AssertionError(f"shape {list(found.shape)}, expected {list(expected.shape)}")
            worst = max(worst, _relative(found.double().flatten(), expected.double().flatten()))
    return worst


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    if not bool(torch.isfinite(expected).all()):
        raise AssertionError("the graph before gives infinities or no numbers: choose other inputs")
    if not len(expected):
        return 0.0
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    return error if error == error else float("inf")


def _inputs(graph: Graph, sizes: Mapping[str, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for value in graph.inputs:
        shape = [int(dim) for dim in value.type.substitute(sizes).shape]  # type: ignore[arg-type]
        if value.type.element == DType.f32:
            found.append(torch.randn(shape, generator=generator))
        else:
            found.append(torch.randint(0, 7, shape, generator=generator))
    return found


def check_rewrite(
    a_pass: Pass, before: str, after: str, signature: str = "%x: f32[b, s, 64]", tolerance: float = 1e-12,
    **weights: torch.Tensor,
) -> dict[str, int]:  # fmt: skip
    """`before` becomes `after` and computes the same, and a second run finds nothing; returns what changed."""
    module = toy(before, 0, signature, **weights)
    found, changes = apply(module, a_pass)
    assert body_of(found.graph()) == textwrap.dedent(after).strip()
    verify(found)
    assert drift(module, found) <= tolerance
    assert apply(found, a_pass)[1] == {}
    return changes


def check_untouched(
    a_pass: Pass, body: str, signature: str = "%x: f32[b, s, 64]", **weights: torch.Tensor
) -> None:
    """The pass leaves the graph as it is."""
    module = toy(body, 0, signature, **weights)
    found, changes = apply(module, a_pass)
    assert body_of(found.graph()) == body_of(module.graph())
    assert changes == {}
