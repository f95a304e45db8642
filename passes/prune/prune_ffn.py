"""The pass `prune-ffn`: feed-forwards lose the inner channels that contribute least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.declaration import option
from slmopt.ir.graph import Module
from slmopt.layers import Layers
from slmopt.passes.prune.inner import channels_of, find_inner
from slmopt.passes.prune.pruning import Settings, prune_units
from slmopt.pipeline import Context, Contract, Lossy, Pass

__all__ = ["PruneFFN"]


@dataclass(frozen=True)
class PruneFFN(Pass):
    """linear(act(linear(x, w[k, d])), v[d, k]) -> the same with fewer channels k, v refitted to them

    Inner dimensions of feed-forwards are found by what couples their channels, whatever lies between (gates, biases,
    joined projections). The channels whose loss raises the squared error of the output least, on calibration text, are
    cut one after the other (Optimal Brain Surgeon: see least_squares.py), and the projection behind them, with its bias
    where it has one, is refitted to what the others give, layer after layer.
    """

    name: ClassVar[str] = "prune-ffn"
    contract: ClassVar[Contract] = Lossy()
    requires: ClassVar[frozenset[str]] = frozenset({"raised"})
    calibrated: ClassVar[bool] = True

    ratio: float = option(0.25, minimum=0, maximum=0.99, help="of the channels that are cut")
    layers: Layers = option(Layers(), help="which layers, such as 0-3,7")  # noqa: RUF009 (it cannot be changed)
    compensate: bool = option(True, help="refit the projection that follows to the channels that are left")
    damping: float = option(1e-3, minimum=0, maximum=1, help="added to the moments of activations, of their mean")
    multiple: int = option(1, minimum=1, help="the channels left are a multiple of so many, the nearest")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changes: dict[str, int] = {}
        settings = Settings(self.compensate, self.damping)
        for inner in find_inner(module, channels_of, self.layers, "the feed-forward"):
            count = inner.units - self._left(inner.units)
            if count and context.permits("pruned", inner.readers[0]):
                prune_units(module, context, inner, count, settings)
                changes["pruned"] = changes.get("pruned", 0) + 1
                changes["channels"] = changes.get("channels", 0) + count
        return changes

    def _left(self, width: int) -> int:
        """How many of `width` channels are left."""
        wanted = round(width * (1 - self.ratio) / self.multiple) * self.multiple
        return min(max(wanted, self.multiple), width)
