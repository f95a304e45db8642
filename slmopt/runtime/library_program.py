"""Programs that are libraries of the C ABI of slm.h."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.errors import ArtifactError, InputError
from slmopt.runtime.library import Library, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LibraryProgram"]


class LibraryProgram:
    """An artifact opened by its library."""

    def __init__(self, path: Path, name: str) -> None:
        self._library = Library(path / name)
        handle = self._library.open(os.fsencode(path))
        if handle is None:
            raise self._library.error(ArtifactError)
        self._handle: int = handle
        self.vocab = int(self._library.vocab_size(handle))
        self.context = int(self._library.context_length(handle))

    def converse(self, threads: int) -> LibraryConversation:
        """A conversation with threads of its own."""
        return LibraryConversation(self._library, self._handle, self.vocab, threads)

    def close(self) -> None:
        """Closes the model; conversations keep it alive."""
        self._library.close(self._handle)


class LibraryConversation:
    """A session of the library."""

    def __init__(self, library: Library, model: int, vocab: int, threads: int) -> None:
        self._library, self._vocab = library, vocab
        handle = library.session_open(model, threads)
        if handle is None:
            raise library.error(InputError)
        self._handle: int = handle
        self._last = (ctypes.c_float * vocab)()  # logits after the last token taken
        self._has_last = False

    @property
    def position(self) -> int:
        """Tokens taken so far."""
        return int(self._library.position(self._handle))

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return int(self._library.thread_count(self._handle))

    def prefill(self, ids: Sequence[int]) -> None:
        """Takes tokens."""
        self._check(self._library.prefill(self._handle, self._array(ids), len(ids), self._last))
        self._has_last = True

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Takes tokens and returns the logits that follow each."""
        import numpy as np

        result = np.empty((len(ids), self._vocab), np.float32)
        target = result.ctypes.data_as(ctypes.c_void_p)
        self._check(self._library.logits(self._handle, self._array(ids), len(ids), target))
        ctypes.memmove(self._last, result[-1].ctypes.data, ctypes.sizeof(self._last))
        self._has_last = True
        return result

    def last_logits(self) -> NDArray[np.float32]:
        """A copy of the logits after the last token taken."""
        import numpy as np

        if not self._has_last:
            raise InputError("no logits yet: prefill the session with at least one token first")
        return np.array(self._last, np.float32)

    def sample(self, sampling: Sampling) -> int:
        """The token to follow."""
        structure = sampling.structure()
        if not self._has_last:
            raise InputError("nothing to sample from: prefill the session with at least one token first")
        id = int(self._library.sample(self._handle, self._last, ctypes.byref(structure)))
        if id < 0:
            raise self._library.error(InputError)
        return id

    def reset(self) -> None:
        """Back to position 0."""
        self._check(self._library.reset(self._handle))
        self._has_last = False

    def close(self) -> None:
        """Ends the threads and frees the state."""
        self._library.session_close(self._handle)

    def _check(self, code: int) -> None:
        if code != 0:
            raise self._library.error(InputError)

    def _array(self, ids: Sequence[int]) -> Any:
        """ids as int32[]; numbers beyond int32 would wrap, so they are refused here, all others by the library."""
        for index, id in enumerate(ids):
            if not -(2**31) <= id < 2**31:
                raise InputError(
                    f"token {id} at index {index} is out of range: the vocabulary has {self._vocab} tokens"
                )
        return (ctypes.c_int32 * len(ids))(*ids)
