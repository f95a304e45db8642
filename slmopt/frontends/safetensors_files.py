"""Tensors of a model directory: safetensors files, one or several with an index, mapped into memory when asked for."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError
from slmopt.ir.types import DType

if TYPE_CHECKING:
    import torch

__all__ = ["StoredTensor", "read_checkpoint", "read_header", "read_json"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_ELEMENTS = {
    "F64": DType.f64, "F32": DType.f32, "F16": DType.f16, "BF16": DType.bf16,
    "I64": DType.i64, "I32": DType.i32, "I8": DType.i8, "U8": DType.u8, "BOOL": DType.bool,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `size` bytes from `offset` in a file, row-major."""

    file: Path
    element: DType
    shape: tuple[int, ...]
    offset: int
    size: int

    def load(self) -> torch.Tensor:
        """The tensor, a view of the file mapped into memory; the mapping lives as long as the tensor."""
        import torch

        from slmopt.ir.torch_types import torch_dtype

        dtype = torch_dtype(self.element)
        if not self.size:
            return torch.empty(self.shape, dtype=dtype)
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        try:
            with self.file.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self.offset + self.size:
                    raise InputError(f"{self.file} has become shorter since it was opened")
                # A private copy-on-write mapping: torch wants writable memory, and the file stays as it is.
                mapped = mmap.mmap(
                    file.fileno(), self.offset + self.size - start, offset=start, access=mmap.ACCESS_COPY
                )
        except OSError as error:
            raise InputError(f"cannot read {self.file}: {error.strerror}") from error
        flat = torch.frombuffer(mapped, dtype=dtype, count=prod(self.shape), offset=self.offset - start)
        return flat.reshape(self.shape)


def read_checkpoint(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the directory's model.safetensors, or of the shards that its index names.

    Raises InputError where there is none, where only pickles are, and where a file is truncated or corrupt.
    """
    if (directory / _INDEX).is_file():
        return _read_shards(directory)
    if (directory / _SINGLE).is_file():
        return read_header(directory / _SINGLE)
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise InputError(
            f"{directory} has its weights as pickle only ({', '.join(pickles[:3])}). Opening a pickle can run any code,"
            " so slmopt reads safetensors alone: convert the weights first, for example with save_pretrained in a place"
            " where you trust them"
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    found = f"; it has {', '.join(others[:3])}" if others else ""
    raise InputError(f"{directory} has no weights: expected {_SINGLE} or {_INDEX}{found}")


def _read_shards(directory: Path) -> dict[str, StoredTensor]:
    index = read_json(directory / _INDEX)
    places = index.get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{directory / _INDEX} has no weight_map of tensor names to files")
    files: dict[str, dict[str, StoredTensor]] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise InputError(f"{directory / _INDEX} names a file outside the directory: {name!r}")
        if not (directory / name).is_file():
            raise InputError(f"{directory / _INDEX} names {name}, which is missing")
        files[name] = read_header(directory / name)
    for key, name in places.items():
        if key not in files[name]:
            raise InputError(f"{directory / _INDEX} places {key} in {name}, which does not hold it")
    return {key: files[name][key] for key, name in places.items()}


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file. Only its header is read; it must agree with the file's size."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise InputError(f"{file} is truncated or no safetensors file: {size} bytes do not hold its header")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is corrupt: its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise InputError(f"{file} is corrupt: its header is no table of tensors")
    entries = ((name, entry) for name, entry in header.items() if name != "__metadata__")
    found = {name: _entry(file, name, entry, 8 + length) for name, entry in entries}
    end = max((tensor.offset + tensor.size for tensor in found.values()), default=8 + length)
    if end > size:
        raise InputError(f"{file} is truncated: its header speaks of {end} bytes, the file has {size}")
    if end < size:
        raise InputError(f"{file} is corrupt: {size - end} bytes follow the last tensor")
    return found


def _entry(file: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        stored, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is corrupt: the entry of {name} is {entry!r}") from error
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise InputError(f"{file} is corrupt: the entry of {name} is {entry!r}")
    if stored not in _ELEMENTS:
        raise InputError(f"{file}: {name} is stored as {stored}; slmopt reads {', '.join(_ELEMENTS)}")
    element = _ELEMENTS[stored]
    if end - begin != prod(shape) * element.bits // 8:
        raise InputError(f"{file} is corrupt: {name}, {stored} {list(shape)}, does not fill its {end - begin} bytes")
    return StoredTensor(file, element, shape, start + begin, end - begin)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object; InputError says what is wrong with it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds no JSON object")
    return found
