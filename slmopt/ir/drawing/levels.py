"""Each group of a scene arranged by itself: its boxes, and ports where values cross its border."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from slmopt.ir.drawing.arrange import Arrangement, arrange
from slmopt.ir.drawing.scene import Arrow, Box, Scene

__all__ = ["Crossing", "Level", "Port", "Shown", "arrange_levels"]

Crossing: TypeAlias = tuple[int, str]  # a value: the leaf that gives it, and its name


@dataclass(frozen=True)
class Port:
    """A value that a group reads from outside or gives outside; `number` is that of no box."""

    number: int
    crossing: Crossing

    @property
    def name(self) -> str:
        """The value's name."""
        return self.crossing[1]


@dataclass(frozen=True)
class Shown:
    """A value between two boxes, and its type."""

    crossing: Crossing
    type: str


@dataclass
class Level:
    """A group, or the whole scene (number 0): its boxes, its ports, their arrangement, the values between each two."""

    number: int
    boxes: list[Box]
    inputs: list[Port]
    outputs: list[Port]
    arrangement: Arrangement
    values: dict[tuple[int, int], list[Shown]]


def arrange_levels(scene: Scene) -> dict[int, Level]:
    """The levels of a scene, by the number of their group."""
    numbers = [box.number for top in scene.boxes for box in _all(top)]
    counter = max(numbers, default=0)
    levels: dict[int, Level] = {}
    waiting: list[tuple[int, list[Box], list[Arrow]]] = [(0, scene.boxes, scene.arrows)]
    while waiting:
        number, boxes, arrows = waiting.pop()
        boxes = _acyclic(boxes, arrows)
        owner = {leaf.number: box.number for box in boxes for leaf in box.leaves()}
        ports_in: dict[Crossing, Port] = {}
        ports_out: dict[Crossing, Port] = {}
        values: dict[tuple[int, int], list[Shown]] = {}
        for arrow in arrows:
            source, target = owner.get(arrow.source), owner.get(arrow.target)
            if source == target:
                continue
            value = (arrow.source, arrow.name)
            if source is None:
                counter += value not in ports_in
                source = ports_in.setdefault(value, Port(counter, value)).number
            elif target is None:
                counter += value not in ports_out
                target = ports_out.setdefault(value, Port(counter, value)).number
            if target is not None:
                shown = values.setdefault((source, target), [])
                shown += [Shown(value, arrow.type)] if all(other.crossing != value for other in shown) else []
        inputs, outputs = list(ports_in.values()), list(ports_out.values())
        arrangement = arrange(
            [box.number for box in boxes], values, [port.number for port in inputs], [port.number for port in outputs]
        )
        levels[number] = Level(number, boxes, inputs, outputs, arrangement, values)
        for box in boxes:
            if box.children:
                inside = {leaf.number for leaf in box.leaves()}
                crossing = [arrow for arrow in arrows if arrow.source in inside or arrow.target in inside]
                waiting.append((box.number, box.children, crossing))
    return levels


def _all(box: Box) -> list[Box]:
    return [box, *(inner for child in box.children for inner in _all(child))]


def _acyclic(boxes: list[Box], arrows: list[Arrow]) -> list[Box]:
    """Groups of modules that read each other in a circle are taken apart; blocks stay."""
    import networkx

    while True:
        owner = {leaf.number: box for box in boxes for leaf in box.leaves()}
        graph = networkx.DiGraph()
        for arrow in arrows:
            source, target = owner.get(arrow.source), owner.get(arrow.target)
            if source is not None and target is not None and source is not target:
                graph.add_edge(source.number, target.number)
        circles = [part for part in networkx.strongly_connected_components(graph) if len(part) > 1]
        broken = {number for part in circles for number in part}
        loose = [box for box in boxes if box.number in broken and box.children and box.count == 1]
        if not loose:
            return boxes
        boxes = [inner for box in boxes for inner in (box.children if box in loose else [box])]
