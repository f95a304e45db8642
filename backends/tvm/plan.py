"""Memory and order of the step program: where each buffer lies, and before which calls the threads must meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slmopt.backends.tvm.lower import Call
from slmopt.backends.tvm.views import ALIGNMENT, Buffer

__all__ = ["Plan", "plan_program"]


@dataclass(frozen=True)
class Plan:
    """Bytes of the arena and of the state; indices of the calls that a barrier precedes."""

    arena_bytes: int
    state_bytes: int
    barriers: frozenset[int]


def _align(size: int, to: int = ALIGNMENT) -> int:
    return -(-size // to) * to


def plan_program(calls: Sequence[Call], states: Sequence[Buffer]) -> Plan:
    """Set the offset of every arena and state buffer; arena buffers share memory where their lives do not overlap."""
    state_bytes = 0
    for buffer in states:
        buffer.offset = state_bytes
        state_bytes += _align(buffer.bytes)
    arena_bytes = _place_arena(calls)
    return Plan(arena_bytes, state_bytes, frozenset(_find_barriers(calls)))


def _lives(calls: Sequence[Call]) -> dict[Buffer, tuple[int, int]]:
    """First and last call that touch each arena buffer."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for index, call in enumerate(calls):
        for buffer in [*call.writes, *call.reads]:
            if buffer.space == "arena":
                lives[buffer] = (lives.get(buffer, (index, index))[0], index)
    return lives


def _place_arena(calls: Sequence[Call]) -> int:
    """First fit in the order of first use. Returns the bytes needed."""
    lives = _lives(calls)
    total = 0
    placed: list[Buffer] = []
    for buffer, (begin, end) in sorted(lives.items(), key=lambda item: (item[1], -item[0].bytes)):
        taken = sorted(
            (other.offset or 0, other.bytes) for other in placed if lives[other][1] >= begin and lives[other][0] <= end
        )
        offset = 0
        for start, size in taken:
            if offset + buffer.bytes <= start:
                break
            offset = max(offset, _align(start + size))
        buffer.offset = offset
        placed.append(buffer)
        total = max(total, _align(offset + buffer.bytes))
    return total


_Range = tuple[str, int, int]


def _range(buffer: Buffer) -> _Range:
    start = buffer.offset or 0
    return buffer.space, start, start + buffer.bytes


def _overlap(first: Sequence[_Range], second: Sequence[_Range]) -> bool:
    return any(a[0] == b[0] and (a[0] == "logits" or (a[1] < b[2] and b[1] < a[2])) for a in first for b in second)


def _find_barriers(calls: Sequence[Call]) -> list[int]:
    """A barrier stands before a call that touches memory which another thread may have written (or reads a range it
    overwrites) since the last one."""
    barriers: list[int] = []
    written: list[_Range] = []
    read: list[_Range] = []
    for index, call in enumerate(calls):
        reads = [_range(b) for b in call.reads if b.space not in ("weights", "ids")]
        writes = [_range(b) for b in call.writes]
        if _overlap(reads, written) or _overlap(writes, written) or _overlap(writes, read):
            barriers.append(index)
            written, read = [], []
        written += writes
        read += reads
    return barriers
