"""Attention masks by their structure: which keys a query sees, read off a mask function by evaluating it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["MaskStructure", "classify"]

MaskFunction = Callable[..., Any]
_FAR = 1 << 40  # a position beyond any window


@dataclass(frozen=True)
class MaskStructure:
    """Query at position i sees key at j where (not causal or j <= i), i - j < window, and both are in one chunk."""

    causal: bool
    window: int | None = None
    chunk: int | None = None

    def allowed(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Bool [queries, keys] for absolute positions."""
        distance = queries[:, None] - keys[None, :]
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window is not None:
            seen = seen & (distance < self.window)
        if self.chunk is not None:
            seen = seen & (queries[:, None] // self.chunk == keys[None, :] // self.chunk)
        return seen


def classify(function: MaskFunction, size: int | None = None) -> MaskStructure | None:
    """The structure of `function(batch, head, query, key) -> bool`, or None where none of ours fits.

    `size` is the window or chunk size where the model names one. The function is evaluated at small positions, around
    multiples of each candidate size and far out, and the candidate must agree at all of them.
    """
    try:
        sizes = [value for value in (size, _window_of(function)) if value]
        for candidate in _candidates(sizes):
            positions = _probes(sizes)
            if torch.equal(_evaluate(function, positions, positions), candidate.allowed(positions, positions)):
                return candidate
    except (RuntimeError, IndexError, TypeError, ValueError):
        return None  # it reads tensors of the model (padding, packed sequences): no function of positions alone
    return None


def _candidates(sizes: list[int]) -> Iterator[MaskStructure]:
    for causal in (True, False):
        yield MaskStructure(causal)
        for size in sizes:
            yield MaskStructure(causal, window=size)
            yield MaskStructure(causal, chunk=size)


def _probes(sizes: list[int]) -> torch.Tensor:
    """Positions that tell candidates apart."""
    near = set(range(24))
    for size in sizes:
        near |= {max(0, multiple * size + offset) for multiple in (1, 2, 3) for offset in range(-2, 3)}
    near |= {_FAR, _FAR + 1, 1 << 20, (1 << 20) + 1}
    return torch.tensor(sorted(near), dtype=torch.int64, device="cpu")


def _evaluate(function: MaskFunction, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device="cpu")
    found = function(zero, zero, queries[None, None, :, None], keys[None, None, None, :])
    return torch.as_tensor(found).expand(1, 1, len(queries), len(keys))[0, 0]


def _window_of(function: MaskFunction) -> int | None:
    """How far back a query far out sees, by bisection; None where it sees everything, or nothing but itself fails."""

    def sees(distance: int) -> bool:
        query, key = torch.tensor([_FAR]), torch.tensor([_FAR - distance])
        return bool(_evaluate(function, query, key)[0, 0])

    if sees(_FAR) or not sees(0):
        return None
    low, high = 0, _FAR
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sees(middle) else (low, middle)
    return high
