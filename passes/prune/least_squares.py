"""Which inputs of linears contribute least, and what the others must do in their place: least squares on real inputs.

Optimal Brain Surgeon (Hassibi and Stork 1993) over whole columns, as in ZipLM (Kurtic, Frantar and Alistarh 2023): with
C = E[x x^T], taking the columns S out of W and letting the others make up for it costs at least

    tr(W_S [(C^-1)_SS]^-1 W_S^T)    per token, with    W' = W - W_S [(C^-1)_SS]^-1 (C^-1)_S,:

which is how the mean of |W x - W' x|^2 grows. Units go one after the other, always the one that costs least by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Fit", "choose_units", "refit"]

_LEAST = 1e-10  # of damping: inputs that are always 0, or always the same, would be divided by


@dataclass(frozen=True)
class Fit:
    """A linear whose inputs are to become fewer.

    weight [n, k] and moments E[x x^T] [k, k], float64; units: of each input the unit it belongs to, -1 where it stays.
    """

    weight: torch.Tensor
    moments: torch.Tensor
    units: tuple[int, ...]


def damped(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """Moments with a share of their mean diagonal added to the diagonal, so that they can be inverted."""
    import torch

    scale = moments.diagonal().mean().clamp(min=1e-30)
    return moments + torch.eye(len(moments), dtype=moments.dtype) * (scale * max(damping, _LEAST))


def choose_units(fits: Sequence[Fit], units: int, count: int, damping: float, *, refitted: bool = True) -> list[int]:
    """The `count` of `units` units that cost least; `refitted`: where the inputs that are left make up for them."""
    import torch

    if not refitted:
        costs = sum((_plain_costs(fit, units) for fit in fits), start=torch.zeros(units, dtype=torch.float64))
        return sorted(costs.argsort(stable=True)[:count].tolist())
    states = [_Elimination(fit, units, damping) for fit in fits]
    chosen: list[int] = []
    for _ in range(count):
        costs = sum((state.costs(chosen) for state in states), start=torch.zeros(units, dtype=torch.float64))
        costs[chosen] = float("inf")
        least = int(costs.argmin())
        chosen.append(least)
        for state in states:
            state.take_out(least)
    return sorted(chosen)


def _plain_costs(fit: Fit, units: int) -> torch.Tensor:
    """The mean square of what each unit adds to the result: tr(W_S C_SS W_S^T)."""
    import torch

    costs = torch.zeros(units, dtype=torch.float64)
    for unit in range(units):
        own = torch.tensor([index for index, found in enumerate(fit.units) if found == unit])
        part = fit.weight[:, own]
        costs[unit] = (part @ fit.moments[own][:, own] * part).sum()
    return costs


class _Elimination:
    """W and C^-1 of the inputs that are left, while units are taken out."""

    def __init__(self, fit: Fit, units: int, damping: float) -> None:
        import torch

        self.weight = fit.weight.clone()
        self.inverse = torch.linalg.inv(damped(fit.moments, damping))
        self.columns = [torch.tensor([i for i, u in enumerate(fit.units) if u == unit]) for unit in range(units)]
        self.single = torch.cat(self.columns) if all(len(own) == 1 for own in self.columns) else None

    def costs(self, gone: Sequence[int]) -> torch.Tensor:
        """What taking out each unit costs now; of those that are gone, nothing that counts."""
        import torch

        if self.single is not None:
            found: torch.Tensor = (self.weight.square().sum(0) / self.inverse.diagonal())[self.single]
            return found
        without = set(gone)
        costs = [0.0 if unit in without else self._cost(own) for unit, own in enumerate(self.columns)]
        return torch.tensor(costs, dtype=torch.float64)

    def _cost(self, own: torch.Tensor) -> float:
        import torch

        part = self.weight[:, own]
        return float((torch.linalg.solve(self.inverse[own][:, own], part.T) * part.T).sum())

    def take_out(self, unit: int) -> None:
        import torch

        own = self.columns[unit]
        rows = torch.linalg.solve(self.inverse[own][:, own], self.inverse[own])
        self.weight -= self.weight[:, own] @ rows
        self.inverse -= self.inverse[:, own] @ rows


def refit(
    weight: torch.Tensor, cross: torch.Tensor, moments: torch.Tensor, kept: Sequence[int], damping: float
) -> torch.Tensor:
    """The weight [n, kept] of least E|t - W' x_kept|^2, for targets t with `cross` = E[t x^T] [n, k].

    W' = W_kept + (E[t x^T]_kept - W_kept C) C^-1 with C the moments of what is kept, damped: damping draws W' towards
    the weight as it was, and not towards 0.
    """
    import torch

    own = torch.tensor(kept)
    inner = moments[own][:, own]
    part = weight[:, own]
    missing = cross[:, own] - part @ inner
    found: torch.Tensor = part + torch.linalg.solve(damped(inner, damping), missing.T).T
    return found
