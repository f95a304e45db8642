"""Small modules for the tests of passes, written as IR text, their weights filled with random numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import torch

from slmopt.ir.graph import Graph, Module
from slmopt.ir.text import parse_module, print_graph
from slmopt.ir.types import DType
from slmopt.pipeline import Context, Pass

__all__ = ["IDS", "TIED", "apply", "graph_text", "relative_error", "toy"]

IDS = "%ids: i64[b, s]"
# A model that reads token ids; its table gives the logits, too.
TIED = """
    %x = embedding(%ids, weight @table : f32[50, 40]) : f32[b, s, 40]
    %h = linear(%x, weight @inner : f32[70, 40], weight @bias : f32[70]) {activation = "silu"} : f32[b, s, 70]
    %y = linear(%h, weight @outer : f32[40, 70], _, %x) : f32[b, s, 40]
    %logits = linear(%y, weight @table : f32[50, 40]) : f32[b, s, 50]
    return %logits
"""


def toy(body: str, seed: int = 0, signature: str = "%x: f32[b, s, 64]", **weights: torch.Tensor) -> Module:
    """A module of one graph @forward; every float32 weight it names is random, or as given (dots as `__`)."""
    module = parse_module(f"module @toy {{\n graph @forward({signature}) {{\n{body}\n }}\n}}")
    return fill(module, seed, {name.replace("__", "."): value for name, value in weights.items()})


def fill(module: Module, seed: int, given: Mapping[str, torch.Tensor]) -> Module:
    """Store a tensor for every weight the module names."""
    generator = torch.Generator().manual_seed(seed)
    for key, type in module.weight_types().items():
        if type.element != DType.f32:
            raise ValueError(f"a toy's weight must be float32, not {type}")
        value = given.get(key)
        shape = [int(dim) for dim in type.shape]  # type: ignore[arg-type]
        module.weights.add_tensor(key, torch.randn(shape, generator=generator) * 0.3 if value is None else value)
    return module


def apply(module: Module, *passes: Pass) -> tuple[Module, dict[str, int]]:
    """A copy of the module after the passes, and what the last one changed; the copy's text parses back."""
    copy, changes = module.copy(), {}
    for each in passes:
        changes = each.run(copy, Context())
    if parse_module(str(copy)) != copy:
        raise AssertionError(f"the text does not parse back:\n{copy}")
    return copy, changes


def graph_text(graph: Graph | str) -> str:
    """The ops of a graph, one a line, without locations; also of golden text, dedented."""
    text = print_graph(graph) if isinstance(graph, Graph) else graph
    return textwrap.dedent(text).strip()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """max |found - expected| / max |expected|."""
    return float((found - expected).abs().max() / expected.abs().max())
