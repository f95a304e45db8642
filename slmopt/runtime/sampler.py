"""Choosing tokens for sessions whose steps are not run by a library of slm.h: greedily here, else with its sampler."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import c_char_p, c_int32, c_void_p
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.errors import InputError
from slmopt.runtime.library import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Sampler"]

_SOURCE = Path(__file__).parent / "sampler.c"


class Sampler:
    """The sampler of one session. It knows which tokens the session has taken, and has the generator's state.

    Plain greedy choice needs nothing; for all else the C sampler of every artifact is compiled when it is first needed.
    """

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._taken: set[int] = set()
        self._native: _NativeSampler | None = None

    def take(self, ids: Iterable[int]) -> None:
        """The session has taken these tokens."""
        new = set(ids) - self._taken
        self._taken |= new
        if self._native is not None:
            self._native.take(new)

    def reset(self) -> None:
        """As after opening the session."""
        self._taken.clear()
        if self._native is not None:
            self._native.reset()

    def choose(self, logits: NDArray[np.float32], sampling: Sampling) -> int:
        """The token to follow, as slm_sample chooses it. InputError on bad options or logits."""
        structure = sampling.structure()
        if replace(sampling, seed=0) == Sampling():
            return _most_likely(logits)
        if self._native is None:
            self._native = _NativeSampler(self._vocab)
            self._native.take(self._taken)
        return self._native.choose(logits, structure)


def _most_likely(logits: NDArray[np.float32]) -> int:
    import numpy as np

    best = int(np.argmax(logits))  # the first of equals; of what is not a number before all else
    if np.isnan(logits[best]):
        raise InputError(f"the logit of token {best} is not a number")
    if not np.isfinite(logits[best]):
        raise InputError(f"the largest logit is {logits[best]:g}, of token {best}")
    return best


class _NativeSampler:
    """sampler.c, compiled for this machine."""

    def __init__(self, vocab: int) -> None:
        from slmopt.link import runtime_directory
        from slmopt.native import native_library

        parts = [runtime_directory() / name for name in ("error.c", "sampler.c", "runtime.h", "program.h", "slm.h")]
        library = native_library(_SOURCE, includes=tuple(parts))
        if library is None:
            raise InputError("choosing tokens other than the most likely one needs a C compiler here, and none works: "
                             "install gcc or clang, or sample with temperature = 0 and no filter")  # fmt: skip
        self._choose, self._take = library.chooser_choose, library.chooser_take
        self._reset, self._close, self._error = library.chooser_reset, library.chooser_close, library.slm_last_error
        library.chooser_open.argtypes, library.chooser_open.restype = [c_int32], c_void_p
        self._choose.argtypes, self._choose.restype = [c_void_p, c_void_p, c_void_p], c_int32
        self._take.argtypes, self._take.restype = [c_void_p, c_int32], None
        self._reset.argtypes, self._reset.restype = [c_void_p], None
        self._close.argtypes, self._close.restype = [c_void_p], None
        self._error.argtypes, self._error.restype = [], c_char_p
        self._handle: int | None = library.chooser_open(vocab)
        if self._handle is None:
            raise InputError(f"out of memory: a sampler of {vocab} tokens")

    def take(self, ids: Iterable[int]) -> None:
        for id in ids:
            self._take(self._handle, id)

    def reset(self) -> None:
        self._reset(self._handle)

    def choose(self, logits: NDArray[np.float32], structure: ctypes.Structure) -> int:
        import numpy as np

        array = np.ascontiguousarray(logits, np.float32)
        id = int(self._choose(self._handle, array.ctypes.data, ctypes.addressof(structure)))
        if id < 0:
            raise InputError(self._error().decode(errors="replace"))
        return id

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._close(self._handle)
            self._handle = None
