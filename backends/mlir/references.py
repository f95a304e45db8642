"""What an op computes, as torch can trace it: its reference, or where that reads a number out of a tensor, a twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slmopt.ir.graph import Op, operand_type
from slmopt.ir.ops.language import quantize_rows
from slmopt.ir.types import QuantizedType

__all__ = ["reference_of"]


def reference_of(op: Op) -> Callable[..., Any]:
    """The function (op, *operands) -> result(s) to trace."""
    return _TRACEABLE.get(op.name, op.spec.reference)


def _cache_update(op: Op, cache: Any, new: Any, position: Any) -> Any:
    """A ring's rows are found by tensors already. Of other caches, that new rows fit is seen to by the session."""
    import torch

    if op.attributes["window"] is not None:
        return op.spec.reference(op, cache, new, position)
    if isinstance(operand_type(op.operands[0]).element, QuantizedType):
        new = quantize_rows(new.float())
    return cache.index_copy(2, torch.arange(new.shape[2]) + position, new.to(cache.dtype))


_TRACEABLE: Mapping[str, Callable[..., Any]] = {"cache_update": _cache_update}
