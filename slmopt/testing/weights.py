"""Numbers of weights: those of trained models, and those that break what was only tried on such."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from slmopt.errors import InputError
from slmopt.ir.graph import Module
from slmopt.ir.types import DType, TensorType
from slmopt.ir.weights import WeightSource
from slmopt.stand_in import add_stand_ins
from slmopt.testing.choices import Choices

if TYPE_CHECKING:
    import torch

__all__ = ["KINDS", "KIND_BYTES", "add_numbers", "choose_kinds", "kinds_of", "weights"]

KINDS = ("plain", "outliers", "zeros", "constant", "denormals", "large", "hot channel")
KIND_BYTES = 6
_DESCRIPTION = "drawn: "


@st.composite
def weights(draw: st.DrawFn, *shape: int, kinds: tuple[str, ...] = KINDS) -> torch.Tensor:
    """A float32 tensor of `shape`, or of one to three small axes.

    plain: as in trained models. outliers: one number in fifty is a hundred times as large. zeros. constant.
    denormals: around 1e-40. large: a hundred times as large. hot channel: one of the last axis is fifty times as large.
    """
    sizes = shape or tuple(draw(st.lists(st.sampled_from([4, 1, 2, 3, 7, 33]), min_size=1, max_size=3)))
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 99))
    found: torch.Tensor = _numbers(kind, sizes, seed)
    return found


def add_numbers(module: Module, kinds: Mapping[str, str] | None = None) -> None:
    """Give every weight that the module lacks numbers that depend on its key and kind alone.

    A weight of no kind, or of a type other than f32, gets what `slmopt opt --check` draws for it.
    """
    types = module.weight_types()
    for key, kind in (kinds or {}).items():
        if kind not in KINDS:
            raise InputError(f"weight @{key}: unknown kind of numbers {kind!r}; expected one of {', '.join(KINDS)}")
        if kind != "plain" and key not in module.weights and types[key].element == DType.f32:
            module.weights.add(key, WeightSource(types[key], f"{_DESCRIPTION}{kind}", _Drawn(key, kind, types[key])))
    add_stand_ins(module, drawn=True)


def kinds_of(module: Module) -> dict[str, str]:
    """The kinds that `add_numbers` was given, of the weights that are not plain."""
    found = {}
    for key in module.weights:
        description = module.weights.source(key).description
        if description.startswith(_DESCRIPTION):
            found[key] = description.removeprefix(_DESCRIPTION)
    return found


def choose_kinds(choices: Choices, module: Module) -> dict[str, str]:
    """Kinds for up to two weights of a module, from `KIND_BYTES` decisions; the others are plain."""
    keys = [key for key, type in module.weight_types().items() if type.element == DType.f32]
    picked = [(keys[choices.below(len(keys))], choices.pick("plain", *KINDS)) for _ in range(2) if keys]
    return {key: kind for key, kind in picked if kind != "plain"}


class _Drawn:
    """The numbers of one weight, computed when asked for."""

    def __init__(self, key: str, kind: str, type: TensorType) -> None:
        self.key, self.kind, self.type = key, kind, type

    def __call__(self) -> torch.Tensor:
        shape = tuple(int(dim) for dim in self.type.shape)  # type: ignore[arg-type]
        found: torch.Tensor = _numbers(self.kind, shape, zlib.crc32(self.key.encode()))
        return found


def _numbers(kind: str, shape: tuple[int, ...], seed: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        plain = plain / max(shape[-1], 1) ** 0.5
    if kind == "zeros":
        return torch.zeros(shape)
    if kind == "constant":
        return torch.full(shape, 0.25)
    if kind == "denormals":
        return plain * 1e-40
    if kind == "large":
        return plain * 100
    if kind == "outliers":
        found = plain.flatten()
        found[:: max(1, min(50, found.numel() // 2))] *= 100
        return found.reshape(shape)
    if kind == "hot channel" and shape:
        plain[..., seed % shape[-1]] *= 50
    return plain
