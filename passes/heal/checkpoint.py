"""How far a healing has come, on disk: one that was killed goes on from there and ends with the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.cache import cache_path, write_file
from slmopt.errors import SlmError
from slmopt.ir.graph import Module
from slmopt.ir.text import print_graph
from slmopt.ir.weights import counted_parts

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "Progress", "fingerprint"]

_KIND = "heal"
_FORMAT = 1


@dataclass
class Progress:
    """All that the rest of a healing depends on. Tensors are named `GROUP:KEY`.

    step: batches that were trained on. best: the loss on held-out text of the best weights so far, at `best_step`.
    """

    step: int
    best: float
    best_step: int
    tensors: dict[str, torch.Tensor]


def fingerprint(module: Module) -> str:
    """A hash of what @forward computes: its text and the numbers of its weights."""
    import torch

    graph = module.graph()
    found = hashlib.sha256(print_graph(graph).encode())
    for key in Module("m", [graph]).weight_types():
        for part in counted_parts(module.weights.stored(key)):
            raw = part.detach().contiguous().reshape(-1).view(torch.uint8)
            found.update(memoryview(raw.numpy()))  # type: ignore[arg-type]
    return found.hexdigest()


class Checkpoint:
    """A file in the cache directory, under a hash of all that the result depends on. Nothing where none is kept."""

    def __init__(self, inputs: Iterable[Any]) -> None:
        self.identity = hashlib.sha256(json.dumps([_FORMAT, *inputs]).encode()).hexdigest()
        self.path: Path | None = cache_path(_KIND, self.identity.encode())

    def read(self) -> Progress | None:
        """What was written last; None where nothing was, or the file is damaged."""
        if self.path is None or not self.path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), framework="pt") as file:
                told: Mapping[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            numbers = json.loads(told["progress"])
            return Progress(numbers["step"], numbers["best"], numbers["best_step"], tensors)
        except (OSError, SafetensorError, SlmError, KeyError, ValueError):
            return None

    def write(self, progress: Progress) -> None:
        """Replace the file at once; that it cannot be written is no error, only nothing to go on from."""
        if self.path is None:
            return
        from safetensors.torch import save

        numbers = {"step": progress.step, "best": progress.best, "best_step": progress.best_step}
        tensors = {name: tensor.detach().contiguous() for name, tensor in progress.tensors.items()}
        write_file(self.path, save(tensors, {"progress": json.dumps(numbers)}))

    def remove(self) -> None:
        """The healing is done."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
