"""The pass `attention-window`: attention to the latest positions and the first few, with a cache of fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.declaration import option
from slmopt.ir.graph import Module
from slmopt.layers import Layers
from slmopt.passes.attention.selection import chosen_attention, common_obstacle
from slmopt.pipeline import Context, Contract, Lossy, Pass

__all__ = ["AttentionWindow"]


@dataclass(frozen=True)
class AttentionWindow(Pass):
    """attention(q, k, v) -> attention(q, k, v) {window, sink}

    A query sees the `size` latest positions, its own included, and the first `sink` ones, at their true places
    (StreamingLLM, Xiao et al. 2023). In @step, keys and values are kept in a ring that does not grow with the context.
    Attention whose window is no wider stays as it is. Attention that is not causal, sees chunks or keys of other
    positions is left out of `all` layers, and is an UnsupportedError where its layer is chosen.

    size:    positions that stay visible behind a query, its own included
    sink:    first positions that every query sees; 0 for none
    layers:  all, or numbers and ranges such as 0-3,7
    """

    name: ClassVar[str] = "attention-window"
    contract: ClassVar[Contract] = Lossy()
    follows: ClassVar[frozenset[str]] = frozenset({"raised"})
    idempotent: ClassVar[bool] = True

    size: int = option(128, minimum=1)
    sink: int = option(4, minimum=0)
    layers: Layers = option(Layers())  # noqa: RUF009 (what it makes cannot be changed)

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changed = 0
        for op in chosen_attention(module, self.layers, self.name, common_obstacle):
            own = op.attributes["window"]
            if (isinstance(own, int) and own <= self.size) or not context.permits("window", op):
                continue
            op.attributes.update(window=self.size, sink=self.sink or None)
            changed += 1
        return {"attention": changed} if changed else {}
