"""The memory of this process: how much it has used, and that what is freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keep_freed_memory", "peak_memory", "return_freed_memory"]

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD
_ARENA_MAX = -8  # M_ARENA_MAX
_BLOCK = 4 << 20
_KEPT = 64 << 20  # free bytes at the end of the heap


_LARGEST = 32 << 20  # the highest M_MMAP_THRESHOLD
_MUCH = 1 << 30


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within the block, keep what is freed for what is asked for next: for loops over blocks of the same few sizes.

    Memory that comes back from the system is cleared page by page, which can take longer than filling it.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _MUCH)
    try:
        yield
    finally:
        return_freed_memory()


def return_freed_memory() -> None:
    """Ask glibc's malloc to give blocks of 4 MiB and more back when they are freed, and now what is free of the heap.

    By itself it keeps blocks of up to 32 MiB, and weights that come and go then leave holes of several times the size
    of the largest; and it keeps a heap for each thread, none of which uses what another has freed. Up to 64 MiB stay at
    the end of the heap: giving back less, to ask for it again at once, took a quarter of the time of a compile. Does
    nothing where the C library has no such setting.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _BLOCK)
            mallopt(_TRIM_THRESHOLD, _KEPT)
            mallopt(_ARENA_MAX, 1)
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def peak_memory() -> int:
    """The most memory this process has had resident, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
