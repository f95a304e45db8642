"""A kernel: a serial C function over a range of work, built by TVM when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Kernel"]


@dataclass(frozen=True)
class Kernel:
    """`name` is the C symbol and says all that distinguishes the kernel; `parameters` are its C declarations, in order.

    `build` returns the TIR PrimFunc. Two kernels of one name are one kernel.
    """

    name: str
    parameters: tuple[str, ...]
    build: Callable[[], Any] = field(compare=False)
