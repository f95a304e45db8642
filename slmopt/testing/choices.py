"""Decisions read from bytes: how random modules are built, so that hypothesis draws and shrinks them quickly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import strategies as st

__all__ = ["Choices", "chosen"]

_Option = TypeVar("_Option")
_Built = TypeVar("_Built")


class Choices:
    """Decisions, one byte each. A byte of 0, or none where they are used up, decides for the first and simplest option.

    Parts that come one after the other take blocks of their own (`part`), so that a smaller one leaves the next alone.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._next = data, 0

    def pick(self, *options: _Option) -> _Option:
        """One of a few options."""
        return options[self.below(len(options))]

    def below(self, count: int) -> int:
        """A number from 0 up to count - 1."""
        return self._byte() % count if count < 256 else (self._byte() * 256 + self._byte()) % count

    def seldom(self, share: int = 4) -> bool:
        """True once in `share` times."""
        return self.below(share) == share - 1

    def part(self, size: int) -> Choices:
        """The next `size` decisions."""
        found = Choices(self._data[self._next : self._next + size])
        self._next += size
        return found

    def text(self, longest: int = 6) -> str:
        """Text of any characters."""
        found = ""
        for _ in range(self.below(longest + 1)):
            kind, point = self.below(4), self._byte()
            found += chr(97 + point % 26) if kind < 2 else chr(point) if kind == 2 else chr(point * 257 % 0xD800)
        return found

    def _byte(self) -> int:
        self._next += 1
        return self._data[self._next - 1] if self._next <= len(self._data) else 0


def chosen(size: int, build: Callable[[Choices], _Built]) -> st.SearchStrategy[_Built]:
    """What `build` makes of `size` random decisions.

    One draw: hypothesis draws the same things again and again where it sees the same strategy twice.
    """
    return st.binary(min_size=size, max_size=size).map(lambda data: build(Choices(data)))
