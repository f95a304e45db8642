"""The pass `raise`: its parts in turn, between canonicalizations, until nothing changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.ir.graph import Module
from slmopt.passes.canonicalize import canonicalize
from slmopt.passes.raise_.activation import RaiseActivation
from slmopt.passes.raise_.attention import RaiseAttention
from slmopt.passes.raise_.embedding import RaiseEmbedding
from slmopt.passes.raise_.glu import RaiseGlu
from slmopt.passes.raise_.linear import RaiseLinear
from slmopt.passes.raise_.norm import RaiseNorm
from slmopt.passes.raise_.rope import RaiseRope
from slmopt.pipeline import Context, Pass

__all__ = ["Raise"]

# Activations come before gated units: x sigmoid(x) is no gate.
_PARTS: tuple[Pass, ...] = (
    RaiseLinear(), RaiseEmbedding(), RaiseActivation(), RaiseNorm(), RaiseRope(), RaiseAttention(), RaiseGlu(),
)  # fmt: skip


@dataclass(frozen=True)
class Raise(Pass):
    """primitives -> linear, embedding, rms_norm, layer_norm, rope, attention, glu, gelu, silu, by structure alone.

    Runs raise-linear, raise-embedding, raise-activation, raise-norm, raise-rope, raise-attention and raise-glu between
    canonicalizations until none finds anything. What none of them knows stays primitive.
    """

    name: ClassVar[str] = "raise"
    ensures: ClassVar[frozenset[str]] = frozenset({"raised", "canonical", "activations"})
    unties: ClassVar[bool] = True  # see raise-linear and canonicalize

    def run(self, module: Module, context: Context) -> dict[str, int]:
        counts = {"canonical": sum(canonicalize(module, context).values())}
        while changed := self._raise_once(module, context):
            changed["canonical"] = sum(canonicalize(module, context).values())
            for kind, count in changed.items():
                counts[kind] = counts.get(kind, 0) + count
        return {kind: count for kind, count in counts.items() if count}

    def _raise_once(self, module: Module, context: Context) -> dict[str, int]:
        counts: dict[str, int] = {}
        for part in _PARTS:
            for kind, count in part.run(module, context).items():
                counts[kind] = counts.get(kind, 0) + count
        return counts
