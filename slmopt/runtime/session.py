"""One conversation with a model: its state and its threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from slmopt.errors import InputError
from slmopt.runtime.library import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmopt.runtime.program import Conversation

__all__ = ["Session"]


class Session:
    """Takes tokens and gives logits. Open it with LanguageModel.session; a context manager closes it.

    Sessions are independent of each other, and each may run in a thread of its own. Calls of several threads to one
    session wait for each other. Bad input raises InputError and leaves the session as it was.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._lock = threading.RLock()
        self._conversation: Conversation | None = conversation

    @property
    def position(self) -> int:
        """Tokens taken so far."""
        return self._open().position

    @property
    def threads(self) -> int:
        """Threads that compute, the caller's included."""
        return self._open().threads

    def prefill(self, ids: Iterable[int]) -> None:
        """Takes tokens; `sample` then chooses the one that follows."""
        numbers = _numbers(ids)
        with self._lock:
            self._open().prefill(numbers)

    def decode(self, id: int) -> None:
        """Takes one token: prefill([id])."""
        self.prefill([id])

    def sample(self, sampling: Sampling | None = None) -> int:
        """Chooses the token to follow what was taken, without taking it. Greedy by default."""
        with self._lock:
            return self._open().sample(sampling or Sampling())

    def logits(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Takes tokens and returns the logits that follow each: float32 [len(ids), vocab]."""
        numbers = _numbers(ids)
        with self._lock:
            return self._open().logits(numbers)

    def last_logits(self) -> NDArray[np.float32]:
        """A copy of the logits after the last token taken: float32 [vocab]."""
        with self._lock:
            return self._open().last_logits()

    def reset(self) -> None:
        """Back to position 0, as if just opened."""
        with self._lock:
            self._open().reset()

    def close(self) -> None:
        """Ends the threads and frees the state. Closing twice is fine."""
        with self._lock:
            conversation, self._conversation = self._conversation, None
            if conversation is not None:
                conversation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_conversation", None) is not None:
            self.close()

    def _open(self) -> Conversation:
        if self._conversation is None:
            raise InputError("the session is closed")
        return self._conversation


def _numbers(ids: Iterable[int]) -> list[int]:
    if isinstance(ids, str):
        raise InputError("token ids were expected, not text")
    return [int(id) for id in ids]
