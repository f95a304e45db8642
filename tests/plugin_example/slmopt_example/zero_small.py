"""The pass `zero-small`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from slmopt import Context, Lossy, Module, Pass, Weight, option
from slmopt.ir.types import DType

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ZeroSmall(Pass):
    """linear(x, w) -> linear(x, w with its smallest numbers set to zero)."""

    name: ClassVar[str] = "zero-small"
    contract: ClassVar[Lossy] = Lossy()

    share: float = option(0.1, minimum=0, maximum=1, help="of the numbers of each weight, how many become zero")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        ops = [op for graph in module.graphs.values() for op in graph.walk()]
        read = [op.operands[1] for op in ops if op.name == "linear"]
        weights = [operand for operand in read if isinstance(operand, Weight) and operand.type.element == DType.f32]
        sparse = {weight: self.derive(module, weight) for weight in weights}
        changed = 0
        for op in ops:  # every op that reads such a weight, so that tied weights stay tied
            for index, operand in enumerate(op.operands):
                if isinstance(operand, Weight) and operand in sparse:
                    op.set_operand(index, sparse[operand])
                    changed += 1
        return {"weight": changed} if changed else {}

    def derive(self, module: Module, weight: Weight) -> Weight:
        """The sparse weight, computed when it is asked for."""
        key, done = f"{weight.key}.sparse", f"smallest {self.share:g} zeroed"
        return Weight(module.weights.derive(key, (weight.key,), weight.type, done, self.zero), weight.type)

    def zero(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` without its smallest numbers."""
        count = round(self.share * weight.numel())
        return weight * (weight.abs() > weight.abs().flatten().kthvalue(count).values) if count else weight
