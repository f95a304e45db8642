"""Which positions of which axes must be cut together: dimension coupling, for structured pruning.

Method (DepGraph, Fang et al. 2023, arXiv 2301.12900): axes of values and weights are the nodes of a graph, and every op
links the axes between which it carries positions (`OpSpec.couple`). From one axis, whose positions are units
of their own at first, units spread along the links to all that must be cut with them; where they meet, they become one.
So the inputs of an attention's output projection become whole groups of heads, and a fused projection is followed into
its parts. An axis that reaches an input or output of a graph, or an op that is not understood, cannot be cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from slmopt.errors import IRError, SlmError
from slmopt.ir.graph import Graph, Module, Op, Operand, Value, Weight, operand_type
from slmopt.ir.linking import FIXED, Axis, AxisLinker, Link, axis_of, block_axis, couple_unknown
from slmopt.ir.types import QuantizedType

__all__ = ["FIXED", "Axis", "Coupling", "Group", "Link"]


@dataclass(frozen=True, eq=False)
class Group:
    """Positions that are cut together, as numbered units, on all axes that they lie on.

    places: of each axis the unit of each position, or FIXED. units: how many there are. reason: why none of them can
    be cut, or None.
    """

    places: Mapping[Axis, tuple[int, ...]]
    units: int
    reason: str | None

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """The ops that read or make a value on one of whose axes the units lie, in no order."""
        found: dict[Op, None] = {}
        for axis in self.places:
            if isinstance(axis.tensor, Value):
                found.update(dict.fromkeys([*([axis.tensor.op] if axis.tensor.op else []), *axis.tensor.users]))
        return tuple(found)

    def of(self, operand: Operand, index: int) -> tuple[int, ...] | None:
        """The unit of each position of an axis of a value or weight; None where no unit lies on it.

        The axis is counted from the end where `index` is negative.
        """
        if operand is None:
            return None
        return self.places.get(Axis(operand.key if isinstance(operand, Weight) else operand, index % operand.type.rank))

    def kept(self, axis: Axis, cut: frozenset[int]) -> list[int]:
        """The positions of an axis that are left when some units are cut."""
        return [position for position, unit in enumerate(self.places[axis]) if unit not in cut]


class Coupling:
    """The links between all axes of a module, whose graphs meet in the weights that they share.

    `axes` is a `networkx.MultiGraph`: its nodes are Axis, its edges have `link`; a node that cannot be cut has
    `blocked`, the reason. Only axes of a fixed size of at least 2 are in it. It describes the module as it was.
    """

    def __init__(self, module: Module) -> None:
        import networkx

        self.axes: Any = networkx.MultiGraph()
        self._groups: dict[Axis, Group] = {}
        for graph in module.graphs.values():
            _link_graph(graph, self.axes)

    def group(self, operand: Operand, index: int) -> Group:
        """What must be cut with the positions of an axis, counted from the end where `index` is negative.

        An axis of symbolic size, or of size 1, gives a group without units.
        """
        axis = axis_of(operand, index)
        if axis is None:
            return Group({}, 0, "the axis has no positions that can be cut: its size is 1, or known when it runs")
        if axis not in self._groups:
            group = _Spread(self.axes, axis).result()
            whole = [other for other, units in group.places.items() if FIXED not in units]
            self._groups.update(dict.fromkeys([axis, *whole], group))
        return self._groups[axis]

    def linear_inputs(self, graph: Graph) -> Iterator[tuple[Group, list[Op]]]:
        """Of each group that is summed over by linears of a graph, the linears, in the order of the graph.

        A linear is summed over the last axis of what it reads, so that cutting there leaves no trace in its result.
        """
        found: dict[int, tuple[Group, list[Op]]] = {}
        for op in graph.walk():
            if op.name == "linear":
                group = self.group(op.operands[0], -1)
                found.setdefault(id(group), (group, []))[1].append(op)
        yield from found.values()


@dataclass
class _Spread:
    """Units on their way along the links, from the positions of one axis to all that must be cut with them."""

    axes: Any
    start: Axis
    units: dict[Axis, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from networkx.utils import UnionFind

        self._same: Any = UnionFind()
        self._chosen: dict[tuple[Op | None, Axis], list[Link]] = {}
        self._open: dict[tuple[Op | None, Axis], list[Link]] = {}

    def result(self) -> Group:
        """Spread until nothing changes; units that met have one number."""
        self.axes.add_node(self.start)
        self.units[self.start] = list(range(_size_of(self.start, self.axes)))
        waiting = [self.start]
        while waiting:
            while waiting:
                waiting += self._leave(waiting.pop())
            while self._open and not waiting:
                waiting += self._choose(next(iter(self._open)))
        numbers: dict[int, int] = {}
        places = {
            axis: tuple(unit if unit == FIXED else numbers.setdefault(self._same[unit], len(numbers)) for unit in units)
            for axis, units in self.units.items()
        }
        return Group(places, len(numbers), self._reason(places))

    def _reason(self, axes: Iterable[Axis]) -> str | None:
        reasons = (self.axes.nodes[axis].get("blocked") for axis in axes)
        return next((reason for reason in reasons if reason is not None), None)

    def _leave(self, axis: Axis) -> list[Axis]:
        """Go along every link of an axis; gives the axes on which units are new."""
        changed: list[Axis] = []
        for _, _, link in self.axes.edges(axis, data="link"):
            if not link.choice:
                changed += self._go(link)
                continue
            place = (link.op, link.ends[0])
            if place in self._chosen:
                for chosen in self._chosen[place]:
                    changed += self._go(chosen)
            else:
                self._open.setdefault(place, [])
        return changed

    def _choose(self, place: tuple[Op | None, Axis]) -> list[Axis]:
        """Of an axis that is split: the parts on which units lie already, or the first along which they are whole.

        Where they are whole along none, those along the first part become one.
        """
        del self._open[place]
        op, whole = place
        links = [link for _, _, link in self.axes.edges(whole, data="link") if link.choice and link.op is op]
        links = [link for link in links if link.ends[0] == whole]
        met = [link for link in links if link.ends[1] in self.units]
        fitting = met or [link for link in links if self._is_whole(link)] or links
        self._chosen[place] = met or fitting[:1]
        return [axis for link in self._chosen[place] for axis in self._go(link)]

    def _is_whole(self, link: Link) -> bool:
        assert link.channels is not None
        seen: dict[int, int] = {}
        for channel, unit in zip(link.channels[0], self.units[link.ends[0]], strict=True):
            number = unit if unit == FIXED else self._same[unit]
            if seen.setdefault(channel, number) != number:
                return False
        return True

    def _go(self, link: Link) -> list[Axis]:
        """All positions of a channel get the units that some of them have, and these become one."""
        sides = [self.units.get(end) for end in link.ends]
        if sides[0] is None and sides[1] is None:
            return []
        channels = link.channels or (range(len(sides[0] or sides[1] or ())),) * 2
        unit: dict[int, int] = {}
        for found, own in zip(sides, channels, strict=True):
            for position, channel in enumerate(own if found is not None else ()):
                if channel != FIXED and found is not None and found[position] != FIXED:
                    first = unit.setdefault(channel, found[position])
                    if first != found[position]:
                        self._same.union(first, found[position])
        changed = []
        for end, own in zip(link.ends, channels, strict=True):
            before = self.units.get(end) or [FIXED] * len(own)
            after = [unit.get(c, u) if u == FIXED and c != FIXED else u for c, u in zip(own, before, strict=True)]
            if after != before:
                self.units[end] = after
                changed.append(end)
        return changed


def _size_of(axis: Axis, axes: Any) -> int:
    """The number of positions of an axis."""
    if isinstance(axis.tensor, str):
        size = axes.nodes[axis].get("size", 0)
    else:
        size = axis.tensor.shape[axis.index]
    return int(size)


def _link_graph(graph: Graph, axes: Any) -> None:
    """Add the links of every op of a graph; its inputs and outputs, but for states, cannot be cut."""
    plain = len(graph.inputs) - graph.states, len(graph.outputs) - graph.states
    for value in graph.inputs[: plain[0]]:
        _block_all(axes, value, f"%{value.name} is an input of @{graph.name}")
    for op in graph.walk():
        for operand in op.operands:
            if isinstance(operand, Weight):
                _note_weight(axes, operand)
        _couple(op, axes)
    for value in graph.outputs[: plain[1]]:
        _block_all(axes, value, f"%{value.name} is an output of @{graph.name}")
    for before, after in zip(graph.inputs[plain[0] :], graph.outputs[plain[1] :], strict=True):
        for index in range(len(before.shape)):
            ends = axis_of(before, index), axis_of(after, index)
            if ends[0] is not None and ends[1] is not None:
                axes.add_edge(*ends, link=Link(None, (ends[0], ends[1])))


def _couple(op: Op, axes: Any) -> None:
    try:
        (op.spec.couple or couple_unknown)(AxisLinker(op, axes), op)
    except SlmError:
        raise
    except Exception as error:  # whatever a plugin's rule does
        raise IRError(f"{op.describe()}: its `couple` rule raised {type(error).__name__}: {error}") from error


def _note_weight(axes: Any, weight: Weight) -> None:
    for index, size in enumerate(weight.type.shape):
        axes.add_node(Axis(weight.key, index), size=size)
    if isinstance(weight.type.element, QuantizedType):
        _block_all(axes, weight, f"weight @{weight.key} is quantized ({weight.type}): cut it before that")


def _block_all(axes: Any, operand: Operand, reason: str) -> None:
    for index in range(operand_type(operand).rank):
        axis = axis_of(operand, index)
        if axis is not None:
            block_axis(axes, axis, reason)
