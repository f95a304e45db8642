"""ATen ops that make tensors: constants, counters, masks by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.frontends.aten.builder import Argument, Builder
from slmopt.ir.graph import Value, Weight
from slmopt.ir.types import DType

__all__ = ["RULES"]

Tensor = Value | Weight


def _filled(number: float) -> Callable[..., Tensor]:
    def rule(build: Builder, *_: Argument, **__: Argument) -> Tensor:
        return build.full(build.shape, number, build.element) if build.shape else build.constant(number, build.element)

    return rule


def _full(build: Builder, shape: Argument, number: Argument, **_: Argument) -> Tensor:
    if isinstance(number, bool | int | float):
        return _filled(number)(build)
    value = build.operand(number, build.element)
    return build.expand(build.reshape(value, (1,) * len(build.shape)), build.shape)


def _scalar_tensor(build: Builder, number: Argument, **_: Argument) -> Tensor:
    return build.operand(number, build.element)


def _arange(build: Builder, *bounds: Argument, **_: Argument) -> Tensor:
    """arange(stop), arange(start, stop), arange(start, stop, step): counted from 0 or start, then scaled."""
    start, stop = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
    step = bounds[2] if len(bounds) == 3 else 1
    element = build.element
    if any(isinstance(bound, float) and not bound.is_integer() for bound in (start, stop, step)):
        raise build.unsupported(f"arange over {start}, {stop}, {step}")
    start, stop, step = (int(bound) if isinstance(bound, float) else bound for bound in (start, stop, step))
    if step == 1:
        return build.add("arange", (), {"start": start, "stop": stop, "element": str(element)})
    counted = build.add("arange", (), {"start": 0, "stop": build.shape[0], "element": str(element)})
    scaled = build.add("mul", (counted, build.operand(step, element)))
    return scaled if start == 0 else build.add("add", (scaled, build.operand(start, element)))


def _cumsum(build: Builder, x: Argument, dim: int, **_: Argument) -> Tensor:
    """A running sum; of ones, it is the counter 1, 2, ..., which has an incremental form."""
    value = build.operand(x, build.element)
    axis = dim % max(len(build.shape), 1)
    source = value.op if isinstance(value, Value) else None
    while source is not None and source.name in ("cast", "expand", "reshape"):
        source = source.value(0).op if isinstance(source.operands[0], Value) else None
    if source is not None and source.name in ("full", "constant") and source.attributes["value"] == 1:
        size = build.shape[axis]
        counter = build.add("arange", (), {"start": 1, "stop": size + 1, "element": str(build.element)})
        shape = tuple(size if place == axis else 1 for place in range(len(build.shape)))
        return build.expand(build.reshape(counter, shape), build.shape)
    return build.add("cumsum", (value,), {"axis": axis})


def _triangle(comparison: str) -> Callable[..., Tensor]:
    """tril keeps column - row <= diagonal, triu keeps column - row >= diagonal."""

    def rule(build: Builder, x: Argument, diagonal: Argument = 0) -> Tensor:
        rows, columns = build.shape[-2:]
        row = build.add("arange", (), {"stop": rows, "element": "i64"})
        column = build.add("arange", (), {"stop": columns, "element": "i64"})
        limit = row if diagonal == 0 else build.add("add", (row, build.operand(diagonal, DType.i64)))
        kept = build.add(comparison, (build.reshape(column, (1, columns)), build.reshape(limit, (rows, 1))))
        return build.add("where", (kept, build.operand(x), build.constant(0, build.element)))

    return rule


RULES: dict[str, Callable[..., Any]] = {
    **{name: _filled(0) for name in (
        "zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty", "empty_strided",
        "new_empty_strided", "zero",
    )},
    **{name: _filled(1) for name in ("ones", "ones_like", "new_ones")},
    "full": _full, "full_like": _full, "new_full": _full, "fill": _full, "scalar_tensor": _scalar_tensor,
    "arange": _arange, "cumsum": _cumsum, "tril": _triangle("le"), "triu": _triangle("ge"),
}  # fmt: skip
