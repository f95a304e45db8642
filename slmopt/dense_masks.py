"""Recognises masks that a model computes itself: the ops that make them are run at concrete lengths and compared."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from slmopt.errors import SlmError
from slmopt.ir.dims import Dim, SymbolicDim
from slmopt.ir.graph import Graph, Op, Operand, Value, Weight, substitute_attribute
from slmopt.ir.weights import WeightStore
from slmopt.masks import MaskStructure

__all__ = ["structure_of"]

_LARGEST = 2048  # the longest sequence that a mask is looked at for
_LOWEST = -1e30  # a number added to hide a key; models write -inf or the lowest float


def structure_of(
    mask: Value | Weight, weights: WeightStore, sequence: str = "s", batch: str = "b"
) -> MaskStructure | None:
    """The structure of a mask [..., s, s] (bool: sees; float: 0 sees, -inf does not), or None where it has none.

    Only masks that depend on positions alone qualify: made from counters, constants and buffers, not from token ids.
    They are evaluated in full up to the longest sequence that their buffers allow or that is looked at; a mask whose
    ops name a greater number may change beyond it, and is not recognised.
    """
    if isinstance(mask, Weight) or mask.type.rank < 2:
        return None
    ops = _ancestors(mask)
    if ops is None:
        return None
    numbers = sorted(_numbers(ops))
    limits = [size for size in _sizes(ops) if size > 1]
    if any(number > _LARGEST for number in [*numbers, *limits]):
        return None
    longest = min(limits, default=_LARGEST)
    allowed: dict[int, torch.Tensor] = {}
    for length in sorted({1, 2, 5, 24, longest, *(number + 1 for number in numbers)}):
        if length <= longest:
            seen = _allowed(_evaluate(mask, ops, weights, {sequence: length, batch: 2}))
            if seen is None:
                return None
            allowed[length] = seen
    for candidate in _candidates(allowed[longest]):
        if all(_agrees(candidate, seen, length) for length, seen in allowed.items()):
            return candidate
    return None


def _ancestors(value: Value) -> list[Op] | None:
    """The ops a value is made from, in order; None where it depends on a graph input."""
    found: dict[int, Op] = {}
    pending = [value]
    while pending:
        current = pending.pop()
        if current.op is None:
            return None
        if id(current.op) not in found:
            found[id(current.op)] = current.op
            pending += [operand for operand in current.op.operands if isinstance(operand, Value)]
    graph = value.op.graph if value.op is not None else None
    return [op for op in graph.walk() if id(op) in found] if graph is not None else None


def _numbers(ops: list[Op]) -> set[int]:
    """Whole numbers from 1 on that the ops name: a window or chunk size is one of them, or next to one."""
    found: set[int] = set()
    for op in ops:
        values = [
            op.attributes[name] for name in ("value", "start", "stop", "window", "chunk") if name in op.attributes
        ]
        for value in values:
            constant = dict(value.terms).get((), 0) if isinstance(value, SymbolicDim) else value
            if isinstance(constant, int | float) and not isinstance(constant, bool) and 1 <= abs(constant) < 1e9:
                found |= {abs(int(constant)) + offset for offset in (-1, 0, 1) if abs(int(constant)) + offset > 0}
    return found


def _sizes(ops: list[Op]) -> Iterator[int]:
    """Static axes of buffers: a longer sequence than they have room for cannot be."""
    for op in ops:
        for operand in op.operands:
            if isinstance(operand, Weight):
                yield from (size for size in operand.type.shape if isinstance(size, int))


def _evaluate(mask: Value, ops: list[Op], weights: WeightStore, dims: dict[str, Dim]) -> torch.Tensor | None:
    """The mask's numbers with the symbolic sizes bound; None where the ops do not admit these sizes."""
    graph = Graph("mask")
    values: dict[Value, Value] = {}
    results: dict[Value, torch.Tensor] = {}

    def tensor_of(operand: Operand) -> torch.Tensor | None:
        if isinstance(operand, Weight):
            return weights.float(operand.key)
        return None if operand is None else results[operand]

    try:
        for op in ops:
            attributes = {name: substitute_attribute(value, dims) for name, value in op.attributes.items()}
            operands = [values[operand] if isinstance(operand, Value) else operand for operand in op.operands]
            copied = graph.add(op.name, operands, attributes)
            values[op.result] = copied.result
            results[op.result] = copied.spec.reference(copied, *map(tensor_of, op.operands))
    except (SlmError, RuntimeError, IndexError):
        return None
    return results[mask]


def _allowed(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Bool [s, s], where every batch row and head sees the same and numbers only hide or show."""
    if mask is None or mask.dim() < 2 or mask.shape[-1] != mask.shape[-2]:
        return None
    seen = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not bool((seen | (mask <= _LOWEST)).all()):
        return None
    flat = seen.reshape(-1, *seen.shape[-2:])
    return flat[0] if bool((flat == flat[:1]).all()) else None


def _candidates(seen: torch.Tensor) -> Iterator[MaskStructure]:
    """The first query that no longer sees key 0 says how wide a window or chunk is."""
    blind = (~seen[:, 0]).nonzero()
    for causal in (True, False):
        yield MaskStructure(causal)
        if len(blind) and int(blind[0]) > 0:
            yield MaskStructure(causal, window=int(blind[0]))
            yield MaskStructure(causal, chunk=int(blind[0]))


def _agrees(candidate: MaskStructure, seen: torch.Tensor, length: int) -> bool:
    positions = torch.arange(length)
    return torch.equal(candidate.allowed(positions, positions), seen)
