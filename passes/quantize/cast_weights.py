"""The pass `cast-weights`: weights in half the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from slmopt.errors import InputError
from slmopt.ir.graph import Module, Weight
from slmopt.ir.types import DType
from slmopt.passes.quantize.matrices import float_matrices, set_weight
from slmopt.pipeline import Context, Contract, Lossy, Pass

if TYPE_CHECKING:
    import torch

__all__ = ["CastWeights"]


@dataclass(frozen=True)
class CastWeights(Pass):
    """linear(x, w : f32) -> linear(x, w : f16); embedding tables likewise.

    Arithmetic stays float32; with `act`, linears whose weight is cast read activations rounded to bfloat16. Shared
    weights stay shared. Numbers beyond the range of float16 become its largest.

    element:  "f16" or "bf16"
    act:      "none", or with element "bf16" also "bf16": linear(x, w : f32) -> linear(x, w : bf16) {act = "bf16"}
    """

    name: ClassVar[str] = "cast-weights"
    contract: ClassVar[Contract] = Lossy()
    follows: ClassVar[frozenset[str]] = frozenset({"raised", "healed"})

    element: str = "f16"
    act: str = "none"

    def __post_init__(self) -> None:
        if self.element not in ("f16", "bf16"):
            raise InputError(f'cast-weights: element must be "f16" or "bf16", got {self.element!r}')
        if self.act not in ("none", "bf16"):
            raise InputError(f'cast-weights: act must be "none" or "bf16", got {self.act!r}')
        if self.act == "bf16" and self.element != "bf16":
            raise InputError(f'cast-weights: act = "bf16" is for element = "bf16", but element is {self.element!r}; '
                             "give both, or leave act out")  # fmt: skip

    def run(self, module: Module, context: Context) -> dict[str, int]:
        element = DType(self.element)
        changes: dict[str, int] = {}
        for matrix in float_matrices(module):
            if matrix.type.element == element or not context.permits("cast", matrix.users[0]):
                continue
            type = matrix.type.with_element(element)
            key = module.weights.fresh_key(f"{matrix.key}.{element}")
            module.weights.derive(key, (matrix.key,), type, f"cast to {element}", _Cast(element))
            set_weight(matrix.users, Weight(key, type))
            for op in matrix.users:
                if op.name == "linear" and self.act == "bf16" and op.attributes["act"] is None:
                    op.attributes["act"] = "bf16"
                changes[op.name] = changes.get(op.name, 0) + 1
        return changes


@dataclass(frozen=True)
class _Cast:
    element: DType

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        import torch

        from slmopt.ir.torch_types import torch_dtype

        limits = torch.finfo(torch_dtype(self.element))
        return weight.clamp(limits.min, limits.max).to(torch_dtype(self.element))
