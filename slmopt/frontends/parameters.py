"""Parameters, buffers and constants of a traced module as weights: each tensor under one key, tied ones too."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from slmopt.errors import InputError
from slmopt.ir.graph import Weight
from slmopt.ir.torch_types import element_of
from slmopt.ir.types import TensorType
from slmopt.ir.weights import WeightSource, WeightStore

__all__ = ["canonical_names", "held", "weights_on_demand"]


def canonical_names(model: torch.nn.Module) -> dict[str, str]:
    """Every parameter and buffer name to the first name of the same tensor."""
    first: dict[int, str] = {}
    pairs = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(value), name) for name, value in pairs}


def held(value: torch.Tensor, description: str) -> WeightSource:
    """A tensor in memory as a source; floating-point numbers are given as float32."""
    kept = value.detach()

    def load() -> torch.Tensor:
        return (kept.float() if kept.is_floating_point() else kept).cpu()

    element = element_of(torch.float32 if kept.is_floating_point() else kept.dtype)
    converted = kept.device.type != "cpu" or (kept.is_floating_point() and kept.dtype != torch.float32)
    type = TensorType(element, tuple(kept.shape))
    return WeightSource(type, description, load, held=None if converted else load)


def weights_on_demand(
    store: WeightStore, sources: Mapping[str, WeightSource], canonical: Mapping[str, str], wrapper: str
) -> Callable[[str, TensorType], Weight]:
    """Gives the weight for a name of the traced module, and puts its source into the store on first use."""

    def weight_of(name: str, type: TensorType) -> Weight:
        key = name.removeprefix(f"{wrapper}.")
        key = canonical.get(key, key)
        if key not in store:
            if key not in sources:
                raise InputError(f"{key} is neither stored in the model's files nor computed from its config")
            store.add(key, sources[key])
        return Weight(key, type)

    return weight_of
