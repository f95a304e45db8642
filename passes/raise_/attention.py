"""The pass `raise-attention`: softmax attention written out, and masks, biases, scales and heads of attention ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmopt.passes.raise_.attention_operands import OPERANDS
from slmopt.passes.raise_.attention_scores import SCORES
from slmopt.rewrite import RewritePass, Rule

__all__ = ["RULES", "RaiseAttention"]

RULES: tuple[Rule, ...] = (*SCORES, *OPERANDS)


@dataclass(frozen=True)
class RaiseAttention(RewritePass):
    """softmax(scale q k^T + bias + mask) v -> attention(q, k, v, bias) {scale, mask, window}

    A bias of slopes times key positions becomes the operand `slopes` (ALiBi), an added attention_mask the attributes
    mask, window and chunk; keys and values repeated for grouped heads are read unrepeated; numbers that multiply
    queries or keys go into scale.
    """

    name: ClassVar[str] = "raise-attention"
    rules: ClassVar[Sequence[Rule]] = RULES
