"""One weight in place of several: what passes that share weights have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Module, Op, Weight
from slmopt.ir.types import QuantizedType

if TYPE_CHECKING:
    import torch

__all__ = ["mean_of", "redirect"]


def redirect(module: Module, weights: Mapping[str, Weight]) -> int:
    """Let every op of every graph that reads a key of `weights` read what it stands for; returns how many weights went.

    All readers of a weight change, so that what was shared before still is.
    """
    gone = set()
    for graph in module.graphs.values():
        for op in graph.walk():
            gone |= _redirect_op(op, weights)
    return len(gone)


def _redirect_op(op: Op, weights: Mapping[str, Weight]) -> set[str]:
    found = set()
    for index, operand in enumerate(op.operands):
        if isinstance(operand, Weight) and weights.get(operand.key, operand).key != operand.key:
            op.set_operand(index, weights[operand.key])
            found.add(operand.key)
    return found


def mean_of(module: Module, weights: Sequence[Weight]) -> Weight:
    """The mean of float weights of one type; UnsupportedError where they are quantized."""
    if isinstance(weights[0].type.element, QuantizedType):
        shown = ", ".join(f"@{weight.key} : {weight.type}" for weight in weights)
        raise UnsupportedError(f"quantized weights have no mean: {shown}; share them before they are quantized, or "
                               "keep one of them")  # fmt: skip
    return module.derive(weights, "mean", _mean, suffix="mean")


def _mean(*tensors: torch.Tensor) -> Any:
    import torch

    return torch.stack([tensor.float() for tensor in tensors]).mean(0).to(tensors[0].dtype)
