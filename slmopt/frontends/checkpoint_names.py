"""Which stored tensor is which parameter: names of a checkpoint matched with names of the model's modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from slmopt.errors import InputError, UnsupportedError
from slmopt.frontends.safetensors_files import StoredTensor

__all__ = ["match_names", "untie_unequal"]

_SHOWN = 4


def match_names(model: Any, stored: Mapping[str, StoredTensor], directory: Path) -> dict[str, StoredTensor]:
    """Stored tensors by parameter name. Older names and absent or added base-model prefixes are resolved as
    transformers does; tied parameters that are not stored themselves take the tensor they are tied to.

    Raises InputError where a parameter is missing, where a stored tensor belongs to none, or where a shape disagrees.
    """
    expected = model.state_dict()
    renamed = _renamed(model, stored, expected)
    found = {name: tensor for name, tensor in renamed.items() if name in expected}
    computed = {name.rpartition(".")[2] for name, _ in model.named_buffers()} - {n.rpartition(".")[2] for n in expected}
    useless = _patterns(model, "_keys_to_ignore_on_load_unexpected")
    unexpected = [
        name for name in renamed
        if name not in expected and name.rpartition(".")[2] not in computed and not _matches(name, useless)
    ]  # fmt: skip
    if unexpected:
        raise InputError(
            f"{directory} holds tensors that the model of its config.json does not have: {_shown(unexpected)}."
            " The config may belong to other weights"
        )
    for name, tensor in found.items():
        if tensor.shape != tuple(expected[name].shape):
            raise InputError(
                f"{tensor.file.name}: {name} has shape {list(tensor.shape)}, but config.json asks for"
                f" {list(expected[name].shape)}; the config belongs to other weights"
            )
    found |= _tied(model, found)
    patterns = _patterns(model, "_keys_to_ignore_on_load_missing")
    missing = [name for name in expected if name not in found and not _matches(name, patterns)]
    if missing:
        raise InputError(
            f"{directory} lacks weights that the model of its config.json needs: {_shown(missing)}."
            " The checkpoint is incomplete, or the config belongs to other weights"
        )
    return found


def _renamed(model: Any, stored: Mapping[str, StoredTensor], expected: Mapping[str, Any]) -> dict[str, StoredTensor]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    found: dict[str, StoredTensor] = {}
    for key, tensor in stored.items():
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, expected)
        if converted is not None:
            raise UnsupportedError(f"{tensor.file.name}: {key} must be merged or split into {name}: not supported")
        if name in found:
            raise InputError(f"{tensor.file.name}: {key} and another tensor are both {name}")
        found[name] = tensor
    return found


def _patterns(model: Any, attribute: str) -> Iterable[str]:
    """What the model's class says of names it can do without."""
    return getattr(model, attribute, None) or ()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _tied(model: Any, found: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """For each group of names of one parameter, the stored tensor of whichever name has one."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    result: dict[str, StoredTensor] = {}
    for names in groups.values():
        present = [name for name in names if name in found]
        result.update({name: found[present[0]] for name in names if present})
    return result


def untie_unequal(model: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Where a checkpoint holds unlike tensors for parameters the config ties, they are not one parameter after all."""
    seen: dict[int, str] = {}
    names = _renamed(model, stored, model.state_dict())
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        first = seen.setdefault(id(parameter), name)
        if first != name and first in names and name in names and not _equal(names[first], names[name]):
            path, _, leaf = name.rpartition(".")
            own = torch.nn.Parameter(torch.empty_like(parameter), requires_grad=False)
            setattr(model.get_submodule(path), leaf, own)


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    return a == b or (a.element == b.element and a.shape == b.shape and torch.equal(a.load(), b.load()))


def _shown(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
