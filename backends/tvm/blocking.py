"""How many blocks and tokens of a matrix product are in flight: chosen for the instruction set and the matrix."""

from __future__ import annotations

from dataclasses import dataclass

from slmopt.backends.tvm.isa import Isa
from slmopt.ir.types import DType, Element

__all__ = ["Blocking", "choose_blocking", "default_blocking"]


@dataclass(frozen=True)
class Blocking:
    """`streams` blocks of outputs at once for one token; tiles of `tokens` tokens x `blocks` blocks for more of them.

    `prefetch`: bytes of weights fetched ahead, 0 for none.
    """

    streams: int
    tokens: int
    blocks: int
    prefetch: int


def choose_blocking(isa: Isa, element: Element, rows: int, columns: int) -> Blocking:
    """For weights [rows, columns] of a type: as measured for exactly these, else the instruction set's."""
    for entry in isa.linear:
        if entry.key == (str(element), rows, columns):
            return Blocking(entry.streams, entry.tokens, entry.blocks, entry.prefetch)
    return default_blocking(isa, element)


def default_blocking(isa: Isa, element: Element) -> Blocking:
    """For weights of a type that nobody measured."""
    if isinstance(element, DType):
        quarter = max(1, min(isa.registers // 4, 16))  # half of the registers hold sums; an input serves both blocks
        tokens = 1 << quarter.bit_length() - 1
        return Blocking(isa.streams, tokens, blocks=2, prefetch=isa.prefetch)
    return Blocking(isa.streams, isa.token_tile, isa.block_tile, isa.prefetch)
