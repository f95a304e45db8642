"""A module as two files: IR text, `NAME.slm`, and the weights it names beside it, `NAME.safetensors`.

A plain weight is stored under its key, a quantized one as `KEY:codes`, `KEY:scales` and, where asymmetric,
`KEY:minimum`. What the text says of types must be what the file holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError
from slmopt.ir.types import DType, QuantizedType, TensorType
from slmopt.ir.weights import QuantizedTensor, WeightSource

if TYPE_CHECKING:
    from slmopt.frontends.safetensors_files import StoredTensor
    from slmopt.ir.graph import Module

__all__ = ["add_stored_weights", "weights_file", "write_module"]


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Where the weights of the IR text at `path` lie, if anywhere."""
    return Path(path).with_suffix(".safetensors")


def write_module(module: Module, path: str | os.PathLike[str]) -> None:
    """Write IR text to `path` and the weights that it names beside it; all of them are in memory at once.

    InputError where the files cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for key in module.weight_types():
        for name, tensor in _parts(key, module.weights.load(key)).items():
            if name in tensors:
                raise InputError(f"weights @{key} and @{name} cannot be stored in one file: both would be {name!r}")
            tensors[name] = tensor.detach().contiguous().clone()
    try:
        Path(path).write_text(str(module), encoding="utf-8")
        save_file(tensors, weights_file(path))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _parts(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, QuantizedTensor):
        return {key: value}
    minimum = {} if value.minimum is None else {f"{key}:minimum": value.minimum}
    return {f"{key}:codes": value.codes, f"{key}:scales": value.scales, **minimum}


def add_stored_weights(module: Module, path: str | os.PathLike[str]) -> None:
    """Let the weights that `module` names be those in a file, mapped into memory when asked for.

    InputError where one is missing, or has another type than the text says.
    """
    from slmopt.frontends.safetensors_files import read_header

    stored = read_header(Path(path))
    for key, type in module.weight_types().items():
        source: Callable[[], Any] = (
            _quantized(stored, key, type, type.element, path) if isinstance(type.element, QuantizedType)
            else _find(stored, key, type.element, type.shape, path).load
        )  # fmt: skip
        module.weights.add(key, WeightSource(type, f"file {Path(path).name}", source))


def _find(stored: Mapping[str, StoredTensor], name: str, element: Any, shape: Any, path: Any) -> StoredTensor:
    found = stored.get(name)
    if found is None:
        raise InputError(f"{path} lacks the tensor {name!r} of a weight that the IR text beside it names")
    if (found.element, found.shape) != (element, tuple(shape)):
        raise InputError(f"{path}: {name!r} is {TensorType(found.element, found.shape)}, the IR text beside it says "
                         f"{TensorType(element, tuple(shape))}")  # fmt: skip
    return found


def _quantized(
    stored: Mapping[str, StoredTensor], key: str, type: TensorType, element: QuantizedType, path: Any
) -> _StoredCodes:
    *rows, columns = type.shape
    groups = (*rows, element.groups(int(columns)))  # type: ignore[arg-type]
    codes = _find(stored, f"{key}:codes", DType.i8 if element.symmetric else DType.u8, type.shape, path)
    scales = _find(stored, f"{key}:scales", DType.f16, groups, path)
    minimum = None if element.symmetric else _find(stored, f"{key}:minimum", DType.f16, groups, path)
    return _StoredCodes(element, codes, scales, minimum)


class _StoredCodes:
    def __init__(
        self, type: QuantizedType, codes: StoredTensor, scales: StoredTensor, minimum: StoredTensor | None
    ) -> None:
        self.type, self.codes, self.scales, self.minimum = type, codes, scales, minimum

    def __call__(self) -> QuantizedTensor:
        minimum = None if self.minimum is None else self.minimum.load()
        return QuantizedTensor(self.type, self.codes.load(), self.scales.load(), minimum)
