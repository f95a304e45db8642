"""The pass `raise-attention`: softmax attention written out, and masks, biases, scales and heads of attention ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Module
from slmopt.passes.raise_.attention_operands import OPERANDS
from slmopt.passes.raise_.attention_scores import SCORES
from slmopt.pipeline import Context, Pass
from slmopt.rewrite import Rule, rewrite

__all__ = ["RULES", "RaiseAttention"]

RULES: tuple[Rule, ...] = (*SCORES, *OPERANDS)


@dataclass(frozen=True)
class RaiseAttention(Pass):
    """softmax(scale q k^T + bias + mask) v -> attention(q, k, v, bias) {scale, mask, window}

    A bias of slopes times key positions becomes the operand `slopes` (ALiBi), an added attention_mask the attributes
    mask, window and chunk; keys and values repeated for grouped heads are read unrepeated; numbers that multiply
    queries or keys go into scale.
    """

    name: ClassVar[str] = "raise-attention"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return rewrite(module, RULES)
