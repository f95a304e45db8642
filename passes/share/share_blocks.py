"""The pass `share-blocks`: layers that use the weights of another layer."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from slmopt.declaration import option
from slmopt.errors import InputError, UnsupportedError
from slmopt.ir.blocks import Block
from slmopt.ir.graph import Module, Op, Operand, Weight
from slmopt.layers import find_layers
from slmopt.passes.share.sharing import mean_of, redirect
from slmopt.pipeline import Context, Contract, Lossy, Pass

__all__ = ["Pairs", "ShareBlocks"]

_ADJACENT = "adjacent"


@dataclass(frozen=True)
class Pairs:
    """Layers that share their weights, as people write it: `1-2,3-4`, `0-1-2` for three of them; or `adjacent`.

    `adjacent`: each layer with the one after it, where both are built alike, in pairs.
    """

    text: str = _ADJACENT

    def __post_init__(self) -> None:
        seen: set[int] = set()
        for part in self._parts():
            numbers = part.split("-")
            if len(numbers) < 2 or not all(number.strip().isdecimal() for number in numbers):
                raise InputError(f"{self.text!r} names no pairs of layers: expected numbers such as 1-2,3-4")
            for number in map(int, numbers):
                if number in seen:
                    raise InputError(f"pairs {self.text}: layer {number} is named twice; 0-1-2 shares among three")
                seen.add(number)

    @classmethod
    def parse(cls, text: str) -> Pairs:
        """The pairs that a text writes; InputError where it writes none."""
        return cls(text)

    def _parts(self) -> list[str]:
        return [] if self.text == _ADJACENT else self.text.split(",")

    def groups(self, layers: Mapping[int, Block]) -> list[tuple[int, ...]]:
        """The numbers of the layers that share, group by group; InputError where there is no such layer."""
        if self.text == _ADJACENT:
            return _adjacent(layers)
        found = [tuple(map(int, part.split("-"))) for part in self._parts()]
        for number in (number for group in found for number in group):
            if number not in layers:
                shown = ", ".join(map(str, layers)) or "none that are found as repeated blocks"
                raise InputError(f"pairs {self.text}: there is no layer {number}; the layers are {shown}")
        return found

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ShareBlocks(Pass):
    """layer_2(x, w2) -> layer_2(x, w1), for pairs of layers 1-2: both read the weights of one, in every op.

    Block-wise sharing of MobileLLM (Liu et al. 2024, arXiv 2402.14905, section 2.3); all layers in one group give
    ALBERT's (Lan et al. 2020, arXiv 1909.11942). Layers are found by structure. Their ops, wiring and types of weights
    must agree; attributes such as a window stay each layer's own, and so do caches. Whatever else reads a weight that
    goes reads the one that is kept, so that weights which were shared before still are.

    pairs:  layers that share, by number from 0: 1-2,3-4, or 0-1-2 for three; adjacent: each with the next, in pairs
    """

    name: ClassVar[str] = "share-blocks"
    contract: ClassVar[Contract] = Lossy()
    follows: ClassVar[frozenset[str]] = frozenset({"raised"})

    pairs: Pairs = Pairs()
    keep: str = option("first", choices=("first", "last", "mean"), help="which layer's weights; mean: of all of them")

    def run(self, module: Module, context: Context) -> dict[str, int]:
        layers = find_layers(module.graph("forward"), attributes=False)
        blocks = weights = 0
        for group in self.pairs.groups(layers):
            members = [layers[number] for number in group]
            rows = _corresponding(members, group)
            if not any(len({weight.key for weight in row}) > 1 for row in rows):
                continue
            if context.permits("share", members[-1].ops[0]):
                weights += redirect(module, self._kept(module, rows))
                blocks += len(members) - 1
        return {"block": blocks, "weight": weights} if weights else {}

    def _kept(self, module: Module, rows: Iterable[tuple[Weight, ...]]) -> dict[str, Weight]:
        """What each weight becomes. Rows of weights that have one in common, shared before, become one."""
        found: dict[str, Weight] = {}
        for row in _joined(rows):
            if self.keep == "mean" and len(row) > 1:
                kept = mean_of(module, row)
            else:
                kept = row[-1 if self.keep == "last" else 0]
            found.update({weight.key: kept for weight in row})
        return found


def _adjacent(layers: Mapping[int, Block]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    numbers = list(layers)
    while len(numbers) > 1:
        pair = (numbers[0], numbers[1])
        alike = _difference(layers[pair[0]], layers[pair[1]]) is None
        found += [pair] if alike else []
        numbers = numbers[2 if alike else 1 :]
    return found


def _joined(rows: Iterable[tuple[Weight, ...]]) -> list[list[Weight]]:
    """Rows of weights, those with a weight in common joined to one; each weight once."""
    found: list[list[Weight]] = []
    for row in rows:
        known = [group for group in found if any(weight in group for weight in row)]
        found = [group for group in found if group not in known]
        found.append(list(dict.fromkeys([weight for group in known for weight in group] + list(row))))
    return found


def _corresponding(members: Sequence[Block], numbers: Sequence[int]) -> list[tuple[Weight, ...]]:
    """The float weights that stand in one place of all blocks; UnsupportedError where the blocks differ."""
    for member, number in zip(members[1:], numbers[1:], strict=True):
        difference = _difference(members[0], member)
        if difference is not None:
            raise UnsupportedError(f"share-blocks: layers {numbers[0]} ({members[0].name}) and {number} "
                                   f"({member.name}) are not built alike: {difference}")  # fmt: skip
    places = [(op, index) for op in range(len(members[0].ops)) for index in range(len(members[0].ops[op].operands))]
    rows = (tuple(member.ops[op].operands[index] for member in members) for op, index in places)
    return [
        tuple(operand for operand in row if isinstance(operand, Weight)) for row in rows
        if isinstance(row[0], Weight) and row[0].type.element.is_float
    ]  # fmt: skip


def _difference(first: Block, second: Block) -> str | None:
    """The first thing in which two blocks differ but for attributes, sizes of values and the weights' numbers."""
    wirings = _Wiring(), _Wiring()
    for one, other in zip(first.ops, second.ops, strict=False):
        if one.name != other.name:
            return f"{one.describe()} stands where the other has {other.describe()}"
        reads = [wiring.read(op) for wiring, op in zip(wirings, (one, other), strict=True)]
        for index, (left, right) in enumerate(zip(*reads, strict=False)):
            if left != right:
                shown = [_shown(op.operands[index]) for op in (one, other)]
                return f"operand {index} of {one.describe()} is {shown[0]}, of {other.describe()} {shown[1]}"
        if len(reads[0]) != len(reads[1]):
            return f"{one.describe()} has {len(reads[0])} operands, {other.describe()} {len(reads[1])}"
    if len(first.ops) != len(second.ops):
        return f"they have {len(first.ops)} and {len(second.ops)} ops"
    return None


class _Wiring:
    """Operands of a block's ops by where they come from, to compare blocks with."""

    def __init__(self) -> None:
        self.places: dict[object, int] = {}

    def read(self, op: Op) -> list[Hashable]:
        """What stands for each operand; ops are read in order."""
        found = [self._place(operand) for operand in op.operands]
        for result in op.results:
            self.places[id(result)] = len(self.places)
        return found

    def _place(self, operand: Operand) -> Hashable:
        if operand is None:
            return None
        if isinstance(operand, Weight):
            return str(operand.type)
        return self.places.setdefault(id(operand), len(self.places))


def _shown(operand: Operand) -> str:
    if operand is None:
        return "absent"
    return f"@{operand.key} : {operand.type}" if isinstance(operand, Weight) else f"%{operand.name}"
