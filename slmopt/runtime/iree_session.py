"""The state of one conversation on an IREE device: buffers that go from step to step without coming to the host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError, SlmError
from slmopt.runtime.sampler import Sampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmopt.runtime.iree_program import IreeProgram, LoadedProgram
    from slmopt.runtime.library import Sampling

__all__ = ["IreeConversation"]


class IreeConversation:
    """Runs the largest steps that fit. A call that fails leaves the state as it was."""

    def __init__(self, program: IreeProgram, loaded: LoadedProgram, threads: int) -> None:
        self._loaded, self._vocab, self._context = loaded, program.vocab, program.context
        self._sizes = sorted(loaded.functions, reverse=True)
        self._types = program.states
        self._process = os.getpid()
        self._sampler = Sampler(program.vocab)
        self._states = self._zeros()
        self._last: NDArray[np.float32] | None = None
        self._threads, self._position = threads, 0

    @property
    def position(self) -> int:
        """Tokens taken so far."""
        return self._position

    @property
    def threads(self) -> int:
        """Threads that compute; 1 where another device does."""
        return self._threads

    def prefill(self, ids: Sequence[int]) -> None:
        """Takes tokens."""
        self._take(ids, every=False)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Takes tokens and returns the logits that follow each."""
        import numpy as np

        return np.concatenate(self._take(ids, every=True))

    def last_logits(self) -> NDArray[np.float32]:
        """A copy of the logits after the last token taken."""
        if self._last is None:
            raise InputError("no logits yet: prefill the session with at least one token first")
        return self._last.copy()

    def sample(self, sampling: Sampling) -> int:
        """The token to follow."""
        sampling.structure()
        if self._last is None:
            raise InputError("nothing to sample from: prefill the session with at least one token first")
        return self._sampler.choose(self._last, sampling)

    def reset(self) -> None:
        """Back to position 0."""
        self._states = self._zeros()
        self._sampler.reset()
        self._position, self._last = 0, None

    def close(self) -> None:
        """Frees the state."""
        self._states = []

    def _take(self, ids: Sequence[int], *, every: bool) -> list[NDArray[np.float32]]:
        """Takes tokens; the logits of every one, or of the last step."""
        self._check(ids)
        states, done, found = self._states, 0, []
        while done < len(ids):
            size = next(size for size in self._sizes if size <= len(ids) - done)
            wanted = every or done + size == len(ids)
            logits, states = self._step(ids[done : done + size], self._position + done, states, wanted)
            found += logits
            done += size
        self._states, self._last = states, found[-1][-1]
        self._position += len(ids)
        self._sampler.take(ids)
        return found

    def _check(self, ids: Sequence[int]) -> None:
        if self._process != os.getpid():
            raise InputError("the session was opened before fork(), and its device stayed behind: open one in this "
                             "process")  # fmt: skip
        if not ids:
            raise InputError("no tokens: count is 0")
        if len(ids) > self._context - self._position:
            raise InputError(f"{len(ids)} tokens do not fit: the context has {self._context} positions and "
                             f"{self._position} are taken")  # fmt: skip
        for index, id in enumerate(ids):
            if not 0 <= id < self._vocab:
                raise InputError(f"token {id} at index {index} is out of range: the vocabulary has {self._vocab} "
                                 f"tokens, 0 to {self._vocab - 1}")  # fmt: skip

    def _step(
        self, ids: Sequence[int], position: int, states: Sequence[Any], wanted: bool
    ) -> tuple[list[NDArray[np.float32]], list[Any]]:
        """One call of a step function: the logits [tokens, vocab] if they are wanted, and the next states."""
        import numpy as np

        loaded, runtime = self._loaded, self._loaded.runtime
        arguments = runtime.VmVariantList(2 + len(states))
        results = runtime.VmVariantList(1 + len(states))
        try:
            with loaded.lock:
                arguments.push_ref(self._upload(np.array([ids], np.int32)))
                arguments.push_ref(self._upload(np.array(position, np.int32)))
                for state in states:
                    arguments.push_ref(state)
                loaded.context.invoke(loaded.functions[len(ids)], arguments, results)
                views = [results.get_as_object(index, runtime.HalBufferView) for index in range(1 + len(states))]
                found = [self._download(views[0])[0]] if wanted else []
        except Exception as error:  # a device that is lost, or out of memory
            what = f"a step of {len(ids)} tokens at position {position}"
            raise SlmError(f"the device failed in {what}: {error}") from error
        return found, views[1:]

    def _zeros(self) -> list[Any]:
        import numpy as np

        return [self._upload(np.zeros(state.shape, state.element)) for state in self._types]

    def _upload(self, array: NDArray[Any]) -> Any:
        runtime, device = self._loaded.runtime, self._loaded.device
        element = getattr(runtime.HalElementType, _ELEMENTS[array.dtype.name])
        memory, usage = runtime.MemoryType.DEVICE_LOCAL, runtime.BufferUsage.DEFAULT
        return device.allocator.allocate_buffer_copy(memory, usage, device, array, element)

    def _download(self, view: Any) -> NDArray[Any]:
        """A copy of a buffer on the host, through memory that the device sees too."""
        import numpy as np

        runtime, device = self._loaded.runtime, self._loaded.device
        memory = runtime.MemoryType.HOST_LOCAL | runtime.MemoryType.DEVICE_VISIBLE
        usage = runtime.BufferUsage.TRANSFER_TARGET | runtime.BufferUsage.MAPPING_SCOPED
        source = view.get_buffer()
        staging = device.allocator.allocate_buffer(int(memory), int(usage), source.byte_length())
        semaphore = device.create_semaphore(0)
        start, end = (runtime.HalFence.create_at(semaphore, value) for value in (0, 1))
        device.queue_copy(source, staging, start, end)
        end.wait()
        element = runtime.HalElementType.map_to_dtype(view.element_type)
        return np.array(staging.map().asarray(view.shape, element))


_ELEMENTS = {"int64": "SINT_64", "int32": "SINT_32", "int8": "SINT_8", "uint8": "UINT_8", "bool": "BOOL_8",
             "float64": "FLOAT_64", "float32": "FLOAT_32", "float16": "FLOAT_16"}  # fmt: skip
