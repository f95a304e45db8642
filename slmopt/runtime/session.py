"""One conversation with a model: its state and its threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from slmopt.errors import InputError
from slmopt.runtime.library import Library, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Session"]


class Session:
    """Takes tokens and gives logits. Open it with LanguageModel.session; a context manager closes it.

    Sessions are independent of each other, and each may run in a thread of its own. Calls of several threads to one
    session wait for each other. Bad input raises InputError and leaves the session as it was.
    """

    def __init__(self, library: Library, model: int, vocab: int, threads: int) -> None:
        self._library = library
        self._lock = threading.RLock()
        self._handle: int | None = library.session_open(model, threads)
        self._vocab = vocab
        if self._handle is None:
            raise library.error(InputError)
        self._last = (ctypes.c_float * vocab)()  # logits after the last token taken
        self._has_last = False

    @property
    def position(self) -> int:
        """Tokens taken so far."""
        return int(self._library.position(self._open()))

    @property
    def threads(self) -> int:
        """Threads that compute, the caller's included."""
        return int(self._library.thread_count(self._open()))

    def prefill(self, ids: Iterable[int]) -> None:
        """Takes tokens; `sample` then chooses the one that follows."""
        array = self._array(ids)
        with self._lock:
            if self._library.prefill(self._open(), array, len(array), self._last) != 0:
                raise self._library.error(InputError)
            self._has_last = True

    def decode(self, id: int) -> None:
        """Takes one token: prefill([id])."""
        self.prefill([id])

    def sample(self, sampling: Sampling | None = None) -> int:
        """Chooses the token to follow what was taken, without taking it. Greedy by default."""
        structure = (sampling or Sampling()).structure()
        with self._lock:
            if not self._has_last:
                raise InputError("nothing to sample from: prefill the session with at least one token first")
            id = int(self._library.sample(self._open(), self._last, ctypes.byref(structure)))
            if id < 0:
                raise self._library.error(InputError)
            return id

    def logits(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Takes tokens and returns the logits that follow each: float32 [len(ids), vocab]."""
        import numpy as np

        array = self._array(ids)
        result = np.empty((len(array), self._vocab), np.float32)
        with self._lock:
            if self._library.logits(self._open(), array, len(array), result.ctypes.data_as(ctypes.c_void_p)) != 0:
                raise self._library.error(InputError)
            ctypes.memmove(self._last, result[-1].ctypes.data, ctypes.sizeof(self._last))
            self._has_last = True
        return result

    def last_logits(self) -> NDArray[np.float32]:
        """A copy of the logits after the last token taken: float32 [vocab]."""
        import numpy as np

        with self._lock:
            self._open()
            if not self._has_last:
                raise InputError("no logits yet: prefill the session with at least one token first")
            return np.array(self._last, np.float32)

    def reset(self) -> None:
        """Back to position 0, as if just opened."""
        with self._lock:
            if self._library.reset(self._open()) != 0:
                raise self._library.error(InputError)
            self._has_last = False

    def close(self) -> None:
        """Ends the threads and frees the state. Closing twice is fine."""
        with self._lock:
            if self._handle is not None:
                self._library.session_close(self._handle)
                self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _open(self) -> int:
        if self._handle is None:
            raise InputError("the session is closed")
        return self._handle

    def _array(self, ids: Iterable[int]) -> Any:
        """ids as int32[]; numbers beyond int32 would wrap, so they are refused here, all others by the library."""
        if isinstance(ids, str):
            raise InputError("token ids were expected, not text")
        numbers = [int(id) for id in ids]
        for index, id in enumerate(numbers):
            if not -(2**31) <= id < 2**31:
                raise InputError(
                    f"token {id} at index {index} is out of range: the vocabulary has {self._vocab} tokens"
                )
        return (ctypes.c_int32 * len(numbers))(*numbers)
