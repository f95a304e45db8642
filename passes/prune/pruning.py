"""Pruning of inner dimensions, one after the other: choose units, cut them, let what is left make up for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmopt.errors import InputError
from slmopt.ir.coupling import Coupling, Group
from slmopt.ir.cutting import cut_units
from slmopt.ir.graph import Module, Op, Value, Weight
from slmopt.ir.types import DType
from slmopt.passes.prune.inner import Inner
from slmopt.passes.prune.least_squares import Fit, choose_units, refit

if TYPE_CHECKING:
    import torch

    from slmopt.pipeline import Context
    from slmopt.statistics import Statistics

__all__ = ["Settings", "prune_units"]


@dataclass(frozen=True)
class Settings:
    """compensate: refit what sums over a dimension. damping: of the moments, a share of their mean."""

    compensate: bool
    damping: float


@dataclass
class _Reader:
    """A weight that is multiplied with a dimension, with what its linears read over the text, and what they add to."""

    weight: Weight
    bias: Weight | None
    numbers: torch.Tensor
    moments: torch.Tensor
    mean: torch.Tensor
    units: tuple[int, ...]

    @property
    def centred(self) -> torch.Tensor:
        """The moments that the weight must fit: about the mean, where a bias makes up for the mean."""
        return self.moments if self.bias is None else self.moments - self.mean.outer(self.mean)


def prune_units(module: Module, context: Context, inner: Inner, count: int, settings: Settings) -> None:
    """Cut the `count` units of a dimension that contribute least.

    The text runs through the module as it is by now, what was pruned before included. Ops without effect are erased:
    they might not bear other sizes.
    """
    for graph in module.graphs.values():
        graph.erase_dead()
    group = Coupling(module).group(inner.readers[0].operands[0], -1)
    values = dict.fromkeys(op.value(0) for op in inner.readers)
    statistics = context.statistics(module, values, second_moments=True)
    readers = [_reader(module, group, weight, ops, statistics) for weight, ops in inner.weights()]
    fits = [Fit(reader.numbers, reader.centred, reader.units) for reader in readers]
    chosen = frozenset(choose_units(fits, group.units, count, settings.damping, refitted=settings.compensate))
    instead: dict[str, Weight] = {}
    if settings.compensate:
        for reader in readers:
            instead |= _compensate(module, reader, chosen, settings.damping)
    cut_units(module, group, chosen, instead)


def _reader(
    module: Module, group: Group, weight: Weight, ops: Sequence[Op], statistics: dict[Value, Statistics]
) -> _Reader:
    found = [statistics[op.value(0)] for op in ops]
    total = sum(one.count for one in found)
    moments = sum(one.second_moments * (one.count / total) for one in found if one.second_moments is not None)
    mean: Any = sum(one.mean * (one.count / total) for one in found)
    units = group.of(weight, 1)
    assert units is not None and not isinstance(moments, int)
    if not bool(moments.isfinite().all()):
        raise InputError(f"the inputs of weight @{weight.key}, to be pruned, are not finite on the calibration text")
    return _Reader(weight, _own_bias(module, ops), module.weights.float(weight.key).double(), moments, mean, units)


def _own_bias(module: Module, ops: Sequence[Op]) -> Weight | None:
    """The bias that all linears of a weight add and nothing else reads: one that may change with the weight."""
    weight = ops[0].operands[1]
    biases = [op.operands[2] if len(op.operands) > 2 else None for op in ops]
    bias = biases[0]
    if not isinstance(bias, Weight) or not isinstance(bias.type.element, DType):
        return None
    for graph in module.graphs.values():
        for op in graph.walk():
            both = op.operands[1:2] == (weight,), op.operands[2:3] == (bias,)
            if both[0] != both[1] or sum(operand == bias for operand in op.operands) != both[1]:
                return None
    return bias


def _compensate(module: Module, reader: _Reader, cut: frozenset[int], damping: float) -> dict[str, Weight]:
    """The weight, and the bias, that make up for the inputs that are cut, by the keys of those they replace."""
    import torch

    kept = [index for index, unit in enumerate(reader.units) if unit not in cut]
    fitted = refit(reader.numbers, reader.numbers @ reader.centred, reader.centred, kept, damping)
    found = {reader.weight.key: _store(module, reader.weight, fitted, len(kept))}
    if reader.bias is not None:
        shift = reader.numbers @ reader.mean - fitted @ reader.mean[torch.tensor(kept)]
        bias = module.weights.float(reader.bias.key).double() + shift
        found[reader.bias.key] = _store(module, reader.bias, bias, None)
    return found


def _store(module: Module, weight: Weight, numbers: torch.Tensor, inputs: int | None) -> Weight:
    """A weight that was fitted, derived from the one it replaces."""
    from slmopt.ir.torch_types import torch_dtype

    element = weight.type.element
    assert isinstance(element, DType)
    held = numbers.to(torch_dtype(element))
    key = module.weights.fresh_key(f"{weight.key}.refitted")
    what = "shifted to" if inputs is None else f"refitted to {inputs} of {weight.type.shape[1]} inputs of"
    type = weight.type.with_shape(*held.shape)
    return Weight(module.weights.derive(key, (weight.key,), type, f"{what} @{weight.key}", _Fitted(held)), type)


class _Fitted:
    """Numbers that took the text to compute: they are kept. Of a model, one matrix for each that was refitted."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return self.numbers

    def held(self) -> torch.Tensor:
        """What `__call__` gives, without loading the weight that it replaces."""
        return self.numbers
