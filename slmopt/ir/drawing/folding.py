"""Blocks that follow one another, folded: A A A is 3 x A, and A A B A A B is 2 x (2 x A, B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from slmopt.ir.blocks import Block

__all__ = ["Fold", "fold_runs"]


@dataclass
class Fold:
    """One block (and those the `same` as it that it stands for), or `count` times its children."""

    name: str
    count: int
    block: Block | None = None
    same: list[Block] = field(default_factory=list)
    children: list[Fold] = field(default_factory=list)


def fold_runs(blocks: Sequence[tuple[Block, int]]) -> list[Fold]:
    """The folds of blocks in order, each with the number of its kind. What is folded follows one another directly."""
    found: list[Fold] = []
    start = 0
    for index in range(1, len(blocks) + 1):
        if index == len(blocks) or not _follows(blocks[index][0], blocks[index - 1][0]):
            run = blocks[start:index]
            found += _fold([Fold(block.name, 1, block) for block, _ in run], [kind for _, kind in run])
            start = index
    return found


def _follows(block: Block, previous: Block) -> bool:
    given = set(map(id, previous.outputs))
    return any(id(value) in given for value in block.inputs)


def _fold(leaves: list[Fold], kinds: Sequence[int]) -> list[Fold]:
    found: list[Fold] = []
    index = 0
    while index < len(leaves):
        period, count = _longest(kinds[index:])
        first = leaves[index : index + period]
        if count > 1:
            for later in range(index + period, index + period * count):
                _merge(first[(later - index) % period], leaves[later])
        if period == 1:
            found += first
        else:
            inner = _fold(first, kinds[index : index + period])
            found.append(Fold(f"{first[0].name} … {first[-1].name}", count, children=inner))
        index += period * count
    return found


def _merge(fold: Fold, other: Fold) -> None:
    assert other.block is not None
    fold.same += [other.block, *other.same]
    fold.count += other.count


def _longest(kinds: Sequence[int]) -> tuple[int, int]:
    """(period, count) of what repeats at the beginning: the longest stretch, of the shortest period."""
    best = (1, 1)
    for period in range(1, len(kinds) // 2 + 1):
        count = 1
        while list(kinds[count * period : (count + 1) * period]) == list(kinds[:period]):
            count += 1
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best
