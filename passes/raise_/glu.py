"""The pass `raise-glu`: gated linear units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Value
from slmopt.rewrite import Match, RewritePass, Rewriter, Rule, any_, either, op, rule

__all__ = ["RULES", "RaiseGlu"]

_GATE, _UP = any_("gate"), any_("up")
_NAMED = {"silu": "silu", "relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}
_ACTIVATED = either(
    op(tuple(_NAMED), _GATE, bind="activated", once=True), op("gelu", _GATE, bind="activated", once=True)
)  # fmt: skip


@rule("glu", op("mul", _ACTIVATED, _UP))
def _gated(at: Rewriter, m: Match) -> Value | None:
    """activation(gate) * up -> glu(gate, up): two values of one shape, none made from the other"""
    gate, up, activated = m["gate"], m["up"], m.op("activated")
    if not isinstance(gate, Value) or not isinstance(up, Value) or gate.type != up.type or gate is up:
        return None
    if any(made.op is not None and other in made.op.operands for made, other in ((gate, up), (up, gate))):
        return None
    tanh = activated.attributes.get("approximate", False)
    name = _NAMED.get(activated.name, "gelu_tanh" if tanh else "gelu")
    return at.add("glu", gate, up, activation=name)


RULES: tuple[Rule, ...] = (_gated,)


@dataclass(frozen=True)
class RaiseGlu(RewritePass):
    """activation(gate) * up -> glu(gate, up)"""

    name: ClassVar[str] = "raise-glu"
    follows: ClassVar[frozenset[str]] = frozenset({"activations"})
    rules: ClassVar[Sequence[Rule]] = RULES
