"""The pass `zero-small`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from slmopt.errors import InputError
from slmopt.ir.graph import Module, Weight
from slmopt.ir.types import DType
from slmopt.pipeline import Context, Contract, Lossy, Pass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ZeroSmall(Pass):
    """linear(x, w) -> linear(x, w with its smallest numbers set to zero).

    share:  of the numbers of each weight, 0 to 1
    """

    name: ClassVar[str] = "zero-small"
    contract: ClassVar[Contract] = Lossy()

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"zero-small: share must lie in 0 to 1, got {self.share}")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changed = 0
        for graph in module.graphs.values():
            for op in graph.walk():
                weight = op.operands[1] if op.name == "linear" else None
                if isinstance(weight, Weight) and weight.type.element == DType.f32:
                    key = f"{weight.key}.sparse"
                    done = f"smallest {self.share:.0%} zeroed"
                    module.weights.derive(key, (weight.key,), weight.type, done, self.zero)
                    op.set_operand(1, Weight(key, weight.type))
                    changed += 1
        return {"linear": changed} if changed else {}

    def zero(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` without its smallest numbers."""
        limit = weight.abs().flatten().kthvalue(max(1, round(self.share * weight.numel()))).values
        return weight * (weight.abs() > limit)
