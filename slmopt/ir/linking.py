"""Between which axes an op carries positions: what an op's `couple` rule says, to whom. See `slmopt.ir.coupling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slmopt.errors import IRError
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, Operand, Value, Weight, operand_type

__all__ = [
    "FIXED",
    "Axis",
    "AxisLinker",
    "Link",
    "axis_of",
    "block_axis",
    "couple_elementwise",
    "couple_nothing",
    "couple_unknown",
]

FIXED = -1  # the unit of a position that is never cut


@dataclass(frozen=True)
class Axis:
    """An axis of a value, or of the weight with a key."""

    tensor: Value | str
    index: int

    def __str__(self) -> str:
        name = f"@{self.tensor}" if isinstance(self.tensor, str) else f"%{self.tensor.name}"
        return f"axis {self.index} of {name}"


@dataclass(frozen=True, eq=False)
class Link:
    """Two axes between which an op carries positions.

    `channels`: of each end, the number of the channel that each position is in (FIXED: in none); all positions of one
    channel, at both ends, are cut together. None at both ends: position i of one is position i of the other.
    `choice`: one of several links of an op, of which one must hold: an axis [h * d] that is split into [h, d] can be
    cut along h or along d.
    """

    op: Op | None
    ends: tuple[Axis, Axis]
    channels: tuple[Sequence[int], Sequence[int]] | None = None
    choice: bool = False


def axis_of(operand: Operand, index: int) -> Axis | None:
    """An axis, negative numbers counted from the end; None where there is nothing to cut along it."""
    if operand is None:
        return None
    shape = operand.type.shape
    size = shape[index]
    if not isinstance(size, int) or size < 2:
        return None
    return Axis(operand.key if isinstance(operand, Weight) else operand, index % len(shape))


@dataclass(frozen=True)
class AxisLinker:
    """What a `couple` rule works with: an op and its axes, by operand or result and number (negative: from the end).

    `axes` is the networkx.MultiGraph of `Coupling`. An axis that is not linked can be cut by itself; where the op would
    then mean something else, it must be blocked. Sizes in attributes other than `shape` do not follow a cut.
    """

    op: Op
    axes: Any

    def link(
        self, left: Operand, i: int, right: Operand, j: int,
        channels: tuple[Sequence[int], Sequence[int]] | None = None, choice: bool = False,
    ) -> None:  # fmt: skip
        """Axis i of one tensor is axis j of another, position by position or channel by channel (see `Link`).

        IRError where they are not of one size, or `channels` not of theirs.
        """
        ends = axis_of(left, i), axis_of(right, j)
        if ends[0] is None or ends[1] is None:
            return
        sizes = [operand_type(operand).shape[index] for operand, index in ((left, i), (right, j))]
        if sizes[0] != sizes[1] if channels is None else sizes != [len(own) for own in channels]:
            how = "one by one" if channels is None else f"by {len(channels[0])} and {len(channels[1])} channels"
            raise IRError(f"{self.op.describe()}: its `couple` rule links {ends[0]}, of size {sizes[0]}, to {ends[1]}, "
                          f"of size {sizes[1]}, {how}")  # fmt: skip
        self.axes.add_edge(*ends, link=Link(self.op, (ends[0], ends[1]), channels, choice))

    def block(self, operand: Operand, index: int, why: str) -> None:
        """Axis `index` of an operand or result cannot be cut because of what the op does."""
        axis = axis_of(operand, index)
        if axis is not None:
            block_axis(self.axes, axis, f"{self.op.describe()} {why}")

    def operand(self, index: int) -> Operand:
        """An operand, or None where it is absent."""
        return self.op.operands[index] if index < len(self.op.operands) else None

    @property
    def result(self) -> Operand:
        """The first result."""
        return self.op.results[0]

    def shape(self, operand: Operand) -> tuple[Dim, ...]:
        """The shape of a tensor."""
        return operand_type(operand).shape

    def link_same(self, left: Operand, right: Operand, but: Sequence[int] = ()) -> None:
        """All axes of two tensors of one rank, but for some."""
        for index in range(len(self.shape(left))):
            if index not in but:
                self.link(left, index, right, index)

    def link_broadcast(self, operand: Operand, result: Operand) -> None:
        """The axes of a tensor that broadcasts to another, aligned at the end; of size 1 they are repeated."""
        ranks = len(self.shape(operand)), len(self.shape(result))
        for back in range(1, min(ranks) + 1):
            if self.shape(operand)[-back] == self.shape(result)[-back]:
                self.link(operand, ranks[0] - back, result, ranks[1] - back)


def block_axis(axes: Any, axis: Axis, reason: str) -> None:
    """An axis cannot be cut; the first reason is kept."""
    axes.add_node(axis)
    axes.nodes[axis].setdefault("blocked", reason)


def couple_elementwise(axes: AxisLinker, op: Op) -> None:
    """Every operand broadcasts to the result."""
    for operand in op.operands:
        if operand is not None:
            axes.link_broadcast(operand, axes.result)


def couple_nothing(axes: AxisLinker, op: Op) -> None:
    """What is made of nothing can be made smaller."""


def couple_unknown(axes: AxisLinker, op: Op) -> None:
    """Nothing says how the axes of an op hang together: none of them can be cut."""
    for operand in (*op.operands, *op.results):
        for index in range(len(axes.shape(operand)) if operand is not None else 0):
            axes.block(operand, index, "is an op of which nothing says how its axes hang together")
