"""Layers of a model: which of them an option selects, and the blocks of a graph that they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slmopt.errors import InputError
from slmopt.ir.blocks import Block, find_blocks
from slmopt.ir.graph import Graph

__all__ = ["Layers", "find_layers", "number_places"]


@dataclass(frozen=True)
class Layers:
    """A selection of layers by number, from 0, as people write it: `all`, `0-3,7`, `4-` (from 4 on).

    As the type of a pass's option (`layers: Layers = Layers()`) it is read from text everywhere.
    """

    text: str = "all"

    def __post_init__(self) -> None:
        for part in self._parts():
            found = re.fullmatch(r"(\d+)(-(\d*))?", part)
            if found is None or (found[3] and int(found[3]) < int(found[1])):
                raise InputError(f"{self.text!r} selects no layers: expected all, or numbers and ranges such as 0-3,7")

    @classmethod
    def parse(cls, text: str) -> Layers:
        """The selection that a text writes; InputError where it writes none."""
        return cls(text)

    def _parts(self) -> list[str]:
        return [] if self.text == "all" else [part.strip() for part in self.text.split(",")]

    def __contains__(self, number: int) -> bool:
        for part in self._parts():
            first, dash, last = part.partition("-")
            if int(first) <= number and (number <= int(last or number) if dash else number == int(first)):
                return True
        return self.text == "all"

    def check(self, known: Iterable[int]) -> None:
        """InputError where the selection names a layer that is not among `known`."""
        numbers = sorted(known)
        for part in self._parts():
            for end in filter(None, part.split("-")):
                if int(end) not in numbers:
                    shown = f"{numbers[0]} to {numbers[-1]}" if numbers else "none that are found as repeated blocks"
                    raise InputError(f"layers {self.text}: there is no layer {end}; the layers are {shown}")

    def __str__(self) -> str:
        return self.text


def find_layers(
    graph: Graph, layers: Layers | None = None, *, sizes: bool = False, attributes: bool = True
) -> dict[int, Block]:
    """The selected layers of a graph, in order: its repeated blocks, by the number in their path, or counted from 0.

    `sizes=True` tells layers of unequal widths apart, `attributes=False` not even those of unequal attributes, such as
    windows; only blocks of which there are two or more are layers. InputError
    where `layers` names one that does not exist.
    """
    place = {op: index for index, op in enumerate(graph.walk())}
    repetitions = find_blocks(graph, sizes=sizes, attributes=attributes)
    blocks = [block for repetition in repetitions for block in repetition.instances]
    blocks.sort(key=lambda block: min(place[op] for op in block.ops))
    numbers = number_places([block.name for block in blocks])
    found = dict(zip(numbers, blocks, strict=True))
    if layers is None:
        return found
    layers.check(found)
    return {number: block for number, block in found.items() if number in layers}


def number_places(paths: Sequence[str]) -> Sequence[int]:
    """The number in each path, where one part of all of them is a number and no two are the same; else 0, 1, 2, ..."""
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if all(part.isdecimal() for part in parts) and len(set(map(int, parts))) == len(parts):
            return [int(part) for part in parts]
    return range(len(paths))
