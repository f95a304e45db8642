"""How the axes of `reshape` hang together: which are split, which are merged, which merely stay."""

from __future__ import annotations

from collections.abc import Sequence

from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, Operand
from slmopt.ir.linking import AxisLinker

__all__ = ["couple_reshape"]


def couple_reshape(axes: AxisLinker, op: Op) -> None:
    for before, after in _split_alike(axes.shape(axes.operand(0)), axes.shape(axes.result)):
        sides = ((axes.operand(0), before), (axes.result, after))
        for (whole, merged), (parts, factors) in (sides, sides[::-1]):
            if len(merged) == 1 and len(factors) == 1:
                axes.link(whole, merged[0], parts, factors[0])
                break
            if len(merged) == 1 and len(factors) > 1 and isinstance(axes.shape(whole)[merged[0]], int):
                _link_factors(axes, whole, merged[0], parts, factors)
                break
        else:
            for tensor, own in sides:
                for index in own:
                    axes.block(tensor, index, "merges it with others that it does not divide")


def _link_factors(axes: AxisLinker, whole: Operand, axis: int, parts: Operand, factors: Sequence[int]) -> None:
    """An axis [h * d] and the axes h and d that it is split into, or was merged from."""
    sizes = [int(axes.shape(parts)[index]) for index in factors]  # type: ignore[arg-type]
    inner = int(axes.shape(whole)[axis])  # type: ignore[arg-type]
    positions = range(inner)
    for index, size in zip(factors, sizes, strict=True):
        inner //= size
        channels = [position // inner % size for position in positions]
        axes.link(whole, axis, parts, index, (channels, range(size)), choice=True)


def _split_alike(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes of equally many elements, in runs of equally many; axes of size 1 are left out."""
    left = [index for index, size in enumerate(before) if size != 1]
    right = [index for index, size in enumerate(after) if size != 1]
    first: list[tuple[list[int], list[int]]] = []
    last: list[tuple[list[int], list[int]]] = []
    while left and right and before[left[0]] == after[right[0]]:
        first.append(([left.pop(0)], [right.pop(0)]))
    while left and right and before[left[-1]] == after[right[-1]]:
        last.insert(0, ([left.pop()], [right.pop()]))
    return [*first, *_static_runs(before, after, left, right), *last]


def _static_runs(
    before: Sequence[Dim], after: Sequence[Dim], left: list[int], right: list[int]
) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of equally many elements; all in one where a size is symbolic."""
    sizes = [[before[index] for index in left], [after[index] for index in right]]
    if not left and not right:
        return []
    if not all(isinstance(size, int) for side in sizes for size in side):
        return [(left, right)]
    runs: list[tuple[list[int], list[int]]] = []
    rows, columns, run = 1, 1, ([], [])  # type: ignore[var-annotated]
    while left or right:
        if rows <= columns and left:
            rows *= int(before[left[0]])  # type: ignore[arg-type]
            run[0].append(left.pop(0))
        else:
            columns *= int(after[right[0]])  # type: ignore[arg-type]
            run[1].append(right.pop(0))
        if rows == columns:
            runs.append(run)
            rows, columns, run = 1, 1, ([], [])
    return runs
