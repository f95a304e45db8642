"""Traces as bytes: the graph as IR text, where each weight comes from, and what was computed from the config."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.frontends.safetensors_files import StoredTensor
from slmopt.ir.graph import Module
from slmopt.ir.text import parse_module
from slmopt.ir.types import DType, TensorType
from slmopt.ir.weights import WeightSource, WeightStore

if TYPE_CHECKING:
    import torch

__all__ = ["SeenTensors", "file_source", "pack_trace", "trace_inputs", "unpack_trace"]

_CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")
_PACKAGES = ("torch", "transformers", "safetensors")


@dataclass(frozen=True)
class _Watched(StoredTensor):
    """A stored tensor that notes when its numbers are looked at."""

    name: str = field(default="", compare=False)
    seen: set[str] = field(default_factory=set, compare=False)

    def load(self) -> torch.Tensor:
        self.seen.add(self.name)
        return super().load()


class SeenTensors:
    """A checkpoint of which it is known whose numbers decided how the model was traced (stored masks, untied weights).

    A trace holds for another checkpoint of the same shapes only where those numbers are the same.
    """

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self._stored, self._seen = stored, set[str]()
        self.tensors: dict[str, StoredTensor] = {
            name: _Watched(**{f.name: getattr(t, f.name) for f in fields(StoredTensor)}, name=name, seen=self._seen)
            for name, t in stored.items()
        }

    def digests(self) -> dict[str, str]:
        """A hash of every tensor that was looked at."""
        return {name: _digest(self._stored[name]) for name in sorted(self._seen)}

    def unchanged(self, trace: bytes) -> bool:
        """Whether the tensors that were looked at when a trace was made are the same now."""
        looked: dict[str, str] = _split(trace)[0]["looked"]
        return all(name in self._stored and _digest(self._stored[name]) == old for name, old in looked.items())


def _digest(tensor: StoredTensor) -> str:
    import torch

    return hashlib.sha256(tensor.load().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def trace_inputs(directory: Path, stored: Mapping[str, StoredTensor]) -> bytes:
    """Everything a trace depends on but the numbers of weights: configs, names and types of tensors, versions."""
    parts = [_sources_digest(), *(f"{name} {version(name)}".encode() for name in _PACKAGES)]
    for name in _CONFIGS:
        path = directory / name
        parts.append(name.encode() + b" " + (path.read_bytes() if path.is_file() else b""))
    parts += [f"{name} {tensor.element} {tensor.shape}".encode() for name, tensor in sorted(stored.items())]
    return b"\0".join(hashlib.sha256(part).digest() for part in parts)


@functools.cache
def _sources_digest() -> bytes:
    """A hash of the compiler's core: what traces was written by this very text."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("*.py"), *root.glob("ir/**/*.py"), *root.glob("frontends/**/*.py")]):
        digest.update(path.read_bytes())
    return digest.digest()


def file_source(tensor: StoredTensor) -> WeightSource:
    """A tensor of a checkpoint as a weight: float32 where it holds numbers of another precision."""
    element = DType.f32 if tensor.element.is_float else tensor.element
    return WeightSource(TensorType(element, tensor.shape), f"file {tensor.file.name}", tensor.load)


def pack_trace(module: Module, names: Mapping[str, StoredTensor], seen: SeenTensors) -> bytes:
    """A traced module. `names`: the stored tensor of each weight that comes from a file; the others are held in it."""
    from safetensors.torch import save

    places: dict[str, Any] = {}
    held: dict[str, torch.Tensor] = {}
    for key in module.weights:
        tensor = names.get(key)
        if isinstance(tensor, _Watched):
            places[key] = {"file": tensor.name}
        else:
            places[key] = {"computed": module.weights.source(key).description}
            held[key] = module.weights.load(key).contiguous().clone()
    header = json.dumps({"text": str(module), "weights": places, "looked": seen.digests()}).encode()
    data: bytes = save(held)
    return len(header).to_bytes(8, "little") + header + data


def _split(trace: bytes) -> tuple[dict[str, Any], bytes]:
    length = 8 + int.from_bytes(trace[:8], "little")
    header: dict[str, Any] = json.loads(trace[8:length])
    return header, trace[length:]


def unpack_trace(trace: bytes, stored: Mapping[str, StoredTensor]) -> Module:
    """The module that was packed, its weights from `stored`."""
    from safetensors.torch import load

    from slmopt.frontends.parameters import held

    header, data = _split(trace)
    tensors, store = load(data), WeightStore()
    for key, place in header["weights"].items():
        if "file" in place:
            store.add(key, file_source(stored[place["file"]]))
        else:
            store.add(key, held(tensors[key], place["computed"]))
    module = parse_module(header["text"])
    return Module(module.name, module.graphs.values(), store, module.metadata)
