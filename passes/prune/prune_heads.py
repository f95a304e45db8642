"""The pass `prune-heads`: attention loses the groups of heads that contribute least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slmopt.declaration import option
from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Module
from slmopt.layers import Layers
from slmopt.passes.prune.inner import find_inner, heads_of
from slmopt.passes.prune.pruning import Settings, prune_units
from slmopt.pipeline import Context, Contract, Lossy, Pass

__all__ = ["PruneHeads"]


@dataclass(frozen=True)
class PruneHeads(Pass):
    """attention of h query heads and g key heads -> of fewer, whole groups of them, the output projection refitted

    A head of keys and values goes together with all queries that read it; where each query has keys of its own, or all
    share one head of keys, single query heads go. Groups are found by what couples them: through projections, joined
    ones too, norms, rotary positions and biases. Those whose loss raises the squared error of the output least, on
    calibration text, are cut (Optimal Brain Surgeon: see least_squares.py), and the output projection, with its bias
    where it has one, is refitted to what the others give, layer after layer.
    """

    name: ClassVar[str] = "prune-heads"
    contract: ClassVar[Contract] = Lossy()
    requires: ClassVar[frozenset[str]] = frozenset({"raised"})
    calibrated: ClassVar[bool] = True

    groups: int = option(1, minimum=1, help="how many groups of heads each layer loses")
    layers: Layers = option(Layers(), help="which layers, such as 0-3,7")  # noqa: RUF009 (it cannot be changed)
    compensate: bool = option(True, help="refit the output projection to the heads that are left")
    damping: float = option(1e-3, minimum=0, maximum=1, help="added to the moments of activations, of their mean")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        changes: dict[str, int] = {}
        settings = Settings(self.compensate, self.damping)
        found = find_inner(module, heads_of, self.layers, "the attention")
        for inner in found:
            if inner.units <= self.groups:
                raise UnsupportedError(
                    f"prune-heads: the attention that {inner.readers[0].describe()} sums over has {inner.units} "
                    f"groups of heads: {self.groups} cannot be cut, as one must be left; choose fewer, or other layers"
                )
        for inner in found:
            if context.permits("pruned", inner.readers[0]):
                prune_units(module, context, inner, self.groups, settings)
                changes["pruned"] = changes.get("pruned", 0) + 1
                changes["groups"] = changes.get("groups", 0) + self.groups
        return changes
