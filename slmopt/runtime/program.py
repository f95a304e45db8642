"""What runs an artifact: chosen by what its manifest says, asked the same by LanguageModel and Session."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from slmopt.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmopt.runtime.library import Sampling

__all__ = ["Conversation", "Program", "file_name", "open_program"]


class Conversation(Protocol):
    """The state of one session. Its owner calls it from one thread at a time. Bad input is an InputError."""

    @property
    def position(self) -> int:
        """Tokens taken so far."""

    @property
    def threads(self) -> int:
        """Threads that compute, the caller's included."""

    def prefill(self, ids: Sequence[int]) -> None:
        """Takes tokens."""

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Takes tokens and returns the logits that follow each: float32 [len(ids), vocab]."""

    def last_logits(self) -> NDArray[np.float32]:
        """A copy of the logits after the last token taken: float32 [vocab]. InputError where none was."""

    def sample(self, sampling: Sampling) -> int:
        """The token to follow. InputError where none was taken yet."""

    def reset(self) -> None:
        """Back to position 0."""

    def close(self) -> None:
        """Frees the state."""


class Program(Protocol):
    """An opened artifact. Conversations stay usable when it is closed."""

    @property
    def vocab(self) -> int:
        """The size of the vocabulary."""

    @property
    def context(self) -> int:
        """Most tokens of a conversation."""

    def converse(self, threads: int) -> Conversation:
        """A conversation of its own, computed by so many threads; 0: one for each usable core."""

    def close(self) -> None:
        """Lets go of the program."""


def open_program(path: Path, manifest: Mapping[str, Any]) -> Program:
    """What runs the artifact at `path`: the manifest's `runtime`, where it names none its own library.

    ArtifactError where it is damaged or made for another machine, or no plugin offers the runtime; InputError where a
    package is missing.
    """
    runtime = manifest.get("runtime")
    if runtime is None:
        from slmopt.runtime.library_program import LibraryProgram

        return LibraryProgram(path, file_name(manifest, "library", path))
    from slmopt.plugins.discovery import registry

    known = registry()
    if not isinstance(runtime, str) or runtime not in known.offers.runtimes:
        names = ", ".join(known.offers.runtimes)
        raise ArtifactError(f"{path} is run by {runtime!r}, which no plugin here offers (known: {names}): install what "
                            "compiled it, or compile it again")  # fmt: skip
    return known.open_program(runtime, path, manifest)


def file_name(manifest: Mapping[str, Any], key: str, path: Path) -> str:
    """The file of the artifact that the manifest names as `key`."""
    name = manifest.get(key)
    if not isinstance(name, str) or name != os.path.basename(name):
        what = f"has no {key}" if name is None else f"names {name!r} as its {key}, which is not a file of the artifact"
        raise ArtifactError(f"the manifest of {path} {what}")
    return name

