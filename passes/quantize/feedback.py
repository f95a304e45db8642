"""Rounding a weight column by column, each column making up for the errors of those before it (GPTQ)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError
from slmopt.ir.types import QuantizedType
from slmopt.ir.weights import QuantizedTensor
from slmopt.passes.quantize.rounding import round_to_nearest

if TYPE_CHECKING:
    import torch

__all__ = ["round_with_feedback"]

_SLAB = 1 << 22  # elements rounded at a time, each of them in float64
_COLUMNS = 128  # whose errors reach the columns behind them at once, as one product of matrices


def round_with_feedback(
    weight: torch.Tensor, moments: torch.Tensor, type: QuantizedType, *, damping: float = 0.01,
    by_activity: bool = False, search: bool = True,
) -> QuantizedTensor:  # fmt: skip
    """Codes of a float matrix w [n, k] that keep w x, not w: least squares over the inputs x that `moments` describe.

    `moments` [k, k], float64: the mean of x x^T, half the Hessian of the squared error of a row. Algorithm 1 of Frantar
    et al. 2022 (arXiv 2210.17323): with u the upper Cholesky factor of the inverse of moments + `damping` mean(diag), a
    column j is rounded, and (w_j - q_j) / u_jj times row j of u is taken from the columns not yet rounded. Scales of a
    group are chosen, as `round_to_nearest` does, when its first column is reached, from the weights as they are then.
    `by_activity` rounds columns of large mean square first ("act-order"); scales are then chosen beforehand.

    Inputs that are always 0 have no say. InputError where a number is not finite.
    """
    import torch

    if not bool(torch.isfinite(moments).all()):
        raise InputError("the inputs of a weight to quantize are not finite on the calibration text")
    columns = weight.shape[1]
    activity = moments.diagonal()
    order = torch.argsort(activity, descending=True, stable=True) if by_activity else torch.arange(columns)
    factor = _inverse_factor(moments[order][:, order], damping)
    step = max(1, _SLAB // max(columns, 1))
    slabs = [
        _round_rows(weight[start : start + step], factor, order, type, search, beforehand=by_activity)
        for start in range(0, len(weight), step)
    ]
    minima = [slab.minimum for slab in slabs if slab.minimum is not None]
    return QuantizedTensor(
        type, torch.cat([slab.codes for slab in slabs]), torch.cat([slab.scales for slab in slabs]),
        torch.cat(minima) if minima else None,
    )  # fmt: skip


def _round_rows(
    weight: torch.Tensor, factor: torch.Tensor, order: torch.Tensor, type: QuantizedType, search: bool, *,
    beforehand: bool,
) -> QuantizedTensor:  # fmt: skip
    """Codes of some rows: no row has a say in another."""
    import torch

    columns, grid = weight.shape[1], _Grid(weight, type, search)
    if beforehand or type.group is None:
        grid.choose_all(weight)
    left = weight.double()[:, order]
    step = _COLUMNS if type.group is None else max(_COLUMNS // type.group, 1) * type.group
    for start in range(0, columns, step):
        end = min(start + step, columns)
        errors = torch.empty(len(left), end - start, dtype=torch.float64)
        for column in range(start, end):
            place = int(order[column])
            if not grid.chosen(place):
                grid.choose(place, left[:, column : column + (type.group or columns)])
            error = (left[:, column] - grid.round(place, left[:, column])) / factor[column, column]
            left[:, column + 1 : end] -= torch.outer(error, factor[column, column + 1 : end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return grid.result()


def _inverse_factor(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped moments."""
    import torch

    damped = moments.clone()
    diagonal = damped.diagonal()
    mean = float(diagonal.mean()) or 1.0
    diagonal += damping * mean + 1e-12 * mean  # text that never excites some direction leaves the matrix singular
    diagonal[moments.diagonal() <= 0] = mean
    inverse: Any = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    found: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return found


class _Grid:
    """Scales, minima and codes of a matrix while its columns are rounded one by one."""

    def __init__(self, weight: torch.Tensor, type: QuantizedType, search: bool) -> None:
        import torch

        rows, columns = weight.shape
        self.type, self.search, self.group = type, search, type.group or max(columns, 1)
        self.low = 0 if not type.symmetric else -(1 << type.bits - 1) + (type.bits == 8)
        self.high = self.low + (1 << type.bits) - 1 - (type.symmetric and type.bits == 8)
        self.codes = torch.empty(rows, columns, dtype=torch.int8 if type.symmetric else torch.uint8)
        self.scales = torch.empty(rows, type.groups(columns), dtype=torch.float16)
        self.minimum = None if type.symmetric else torch.empty_like(self.scales)
        self._chosen: set[int] = set()

    def chosen(self, column: int) -> bool:
        """Whether the group of a column has its scales."""
        return column // self.group in self._chosen

    def choose_all(self, weight: torch.Tensor) -> None:
        """Scales of every group, from the weight [n, k]."""
        for start in range(0, weight.shape[1], self.group):
            self.choose(start, weight[:, start : start + self.group])

    def choose(self, column: int, slab: torch.Tensor) -> None:
        """Scales of the group of a column, whose weights are `slab` [n, group]."""
        found = round_to_nearest(slab.float(), QuantizedType(self.type.bits, None, self.type.symmetric), self.search)
        place = column // self.group
        self.scales[:, place] = found.scales[:, 0]
        if self.minimum is not None and found.minimum is not None:
            self.minimum[:, place] = found.minimum[:, 0]
        self._chosen.add(place)

    def round(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """Keep the codes of a column's values [n]; returns the numbers that they stand for."""
        import torch

        scale = self.scales[:, column // self.group].double()
        least = 0.0 if self.minimum is None else self.minimum[:, column // self.group].double()
        inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
        codes = ((values - least) * inverse).round().clamp(self.low, self.high)
        self.codes[:, column] = codes.to(self.codes.dtype)
        return codes * scale + least

    def result(self) -> QuantizedTensor:
        """The matrix, once every column is rounded."""
        return QuantizedTensor(self.type, self.codes, self.scales, self.minimum)
