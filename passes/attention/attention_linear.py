"""The pass `attention-linear`: attention from a state of one matrix per head, whatever the length of the sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.declaration import option
from slmopt.ir.graph import Module, Op
from slmopt.ir.ops.linear_attention import FEATURES
from slmopt.layers import Layers
from slmopt.passes.attention.selection import chosen_attention, common_obstacle
from slmopt.pipeline import Context, Contract, Lossy, Pass

__all__ = ["AttentionLinear"]

_TERMS = {3: "adds a dense bias to its scores", 5: "adds a bias that grows with the distance", 6: "has sinks"}


@dataclass(frozen=True)
class AttentionLinear(Pass):
    """attention(q, k, v) {scale} -> linear_attention(q, k, v) {feature}

    Linear attention (Katharopoulos et al. 2020): weights f(q) . f(k) in place of exp(scale q . k), so that the sums
    over all positions are one matrix and one vector per head of keys, and time and memory of a token are the same at
    any position. A window and a soft cap of the scores go. It is another function: heal the model afterwards.
    Attention that is not causal, sees chunks or keys of other positions, or has a bias, slopes or sinks, is left out of
    `all` layers, and is an UnsupportedError where its layer is chosen.

    feature:  f: "elu1" is elu(x) + 1
    layers:   all, or numbers and ranges such as 0-3,7
    """

    name: ClassVar[str] = "attention-linear"
    contract: ClassVar[Contract] = Lossy()
    follows: ClassVar[frozenset[str]] = frozenset({"raised"})
    idempotent: ClassVar[bool] = True

    feature: str = option("elu1", choices=FEATURES)
    layers: Layers = option(Layers())  # noqa: RUF009 (what it makes cannot be changed)

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changed = 0
        for op in chosen_attention(module, self.layers, self.name, _obstacle):
            if not context.permits("linear", op):
                continue
            graph, old = module.graph("forward"), op.result
            new = graph.add(
                "linear_attention", op.operands[:3], {"feature": self.feature}, before=op, location=op.location
            ).result  # fmt: skip
            new.name, old.name = old.name, new.name
            graph.replace(op, new)
            changed += 1
        return {"attention": changed} if changed else {}


def _obstacle(op: Op) -> str | None:
    terms = (text for index, text in _TERMS.items() if len(op.operands) > index and op.operands[index] is not None)
    return common_obstacle(op) or next(terms, None)
