"""Rows that a result and its operands have in common, so that one kernel loop walks all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slmopt.backends.tvm.views import View, token_axis
from slmopt.ir.dims import Dim

__all__ = ["Rows", "joint_rows"]


@dataclass(frozen=True)
class Rows:
    """`outer` x `inner` rows of several views; row r of a view begins (r / inner) * s0 + (r % inner) * s1 elements in.

    `strides` has (s0, s1) of each view. Where `inner` is 1 the rows of each view are evenly spaced, s0 apart.
    """

    outer: Dim
    inner: int
    views: tuple[View, ...]
    strides: tuple[tuple[int, int], ...]

    @property
    def count(self) -> Dim:
        """How many rows there are."""
        return self.outer * self.inner

    @property
    def spacing(self) -> list[str]:
        """s0 of each view, as arguments of a kernel for evenly spaced rows."""
        return [str(outer) for outer, _ in self.strides]

    @property
    def layout(self) -> list[str]:
        """`inner`, then s0 and s1 of each view, as arguments of a kernel."""
        return [str(self.inner), *(str(stride) for pair in self.strides for stride in pair)]


def joint_rows(shape: Sequence[Dim], views: Sequence[View]) -> Rows | None:
    """Rows over the leading axes `shape`, shared by `views`. None where two levels of strides are not enough.

    A view may have size 1 where the shape has more: its stride counts as 0 there.
    """
    levels: list[tuple[Dim, list[int]]] = []
    token = token_axis(shape)
    order = [axis for axis in range(len(shape)) if axis != token]
    for axis in order if token is None else [token, *order]:
        if shape[axis] == 1:
            continue
        strides = [view.strides[axis] if view.shape[axis] != 1 else 0 for view in views]
        size = shape[axis]
        if levels and isinstance(size, int) and all(a == b * size for a, b in zip(levels[-1][1], strides, strict=True)):
            levels[-1] = (levels[-1][0] * size, strides)
        else:
            levels.append((size, strides))
    if len(levels) > 2 or (len(levels) == 2 and not isinstance(levels[1][0], int)):
        return None
    outer = levels[0] if levels else (1, [0] * len(views))
    inner = levels[1] if len(levels) == 2 else (1, [0] * len(views))
    return Rows(outer[0], int(inner[0]), tuple(views), tuple(zip(outer[1], inner[1], strict=True)))  # type: ignore[arg-type]
