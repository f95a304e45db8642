"""ATen ops that move elements: all forms of reshape, permute, slice and concat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slmopt.frontends.aten.builder import Argument, Builder, StructuralMask
from slmopt.ir.dims import Dim, SymbolicDim
from slmopt.ir.graph import Value, Weight

__all__ = ["RULES"]

Tensor = Value | Weight
_END = 2**63 - 1


def _same(build: Builder, x: Argument, *_: Argument, **__: Argument) -> Argument:
    return x


def _dropout(build: Builder, x: Argument, p: float, train: bool) -> Argument:
    if train and p > 0:
        raise build.unsupported("dropout of a model in training mode (call .eval() first)")
    return x


def _whole(build: Builder, x: Argument) -> Tensor:
    """A tensor in the shape torch says it has: a structural mask is spread over the batch."""
    value = build.operand(x)
    if isinstance(x, StructuralMask):
        return build.expand(value, (x.batch, 1, x.queries, x.keys))
    return value


def _reshape(build: Builder, x: Argument, *_: Argument, **__: Argument) -> Tensor:
    return build.reshape(_whole(build, x), build.shape)


def _permute(build: Builder, x: Argument, axes: Sequence[int]) -> Tensor:
    value = _whole(build, x)
    return build.permute(value, [axis % value.type.rank for axis in axes])


def _transpose(build: Builder, x: Argument, first: int = 0, second: int = 1) -> Tensor:
    value = _whole(build, x)
    axes = list(range(value.type.rank))
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return build.permute(value, axes)


def _expand(build: Builder, x: Argument, *_: Argument, **__: Argument) -> Tensor:
    value = _whole(build, x)
    shape = build.shape
    lead = build.reshape(value, (*(1,) * (len(shape) - value.type.rank), *value.type.shape))
    return build.expand(lead, shape) if lead.type.shape != shape else lead


def _repeat(build: Builder, x: Argument, repeats: Sequence[Dim]) -> Tensor:
    """[n, ...] repeated k times is [k, n, ...] read as [k*n, ...]."""
    value = _whole(build, x)
    shape = (*(1,) * (len(repeats) - value.type.rank), *value.type.shape)
    split: list[Dim] = []
    spread: list[Dim] = []
    for size, count in zip(shape, repeats, strict=True):
        split += [1, size] if count != 1 else [size]
        spread += [count, size] if count != 1 else [size]
    return build.reshape(build.expand(build.reshape(value, split), spread), build.shape)


def _repeat_interleave(build: Builder, x: Argument, repeats: Dim, dim: int | None = None, **_: Argument) -> Tensor:
    """Each element along the axis, `repeats` times: [n, ...] is spread to [n, k, ...] and read as [n*k, ...]."""
    value = _whole(build, x)
    if isinstance(repeats, Value):
        raise build.unsupported("a repeat count that is a tensor")
    if dim is None:
        value, dim = build.reshape(value, (value.type.elements,)), 0
    shape, after = value.type.shape, dim % value.type.rank + 1
    spread = build.expand(
        build.reshape(value, (*shape[:after], 1, *shape[after:])), (*shape[:after], repeats, *shape[after:])
    )
    return build.reshape(spread, build.shape)


def _bound(build: Builder, index: Dim | None, size: Dim, default: Dim) -> Dim:
    """A slice bound as python means it: from the end where negative, clamped where both are numbers."""
    if index is None:
        return default
    if index == _END:
        return size
    if isinstance(index, int) and index < 0:
        index = size + index
    if isinstance(index, int) and isinstance(size, int):
        return max(0, min(index, size))
    return index


def _slice(
    build: Builder, x: Argument, dim: int = 0, start: Argument = None, end: Argument = None, step: int = 1
) -> Argument:
    if isinstance(x, StructuralMask) and build.shape == (x.batch, 1, x.queries, x.keys):
        return x
    value = _whole(build, x)
    axis = dim % value.type.rank
    size = value.type.shape[axis]
    stop = _bound(build, end, size, size)
    # torch has checked the result's size: where it kept all positions, the bounds say so in some other way
    if step == 1 and build.shape[axis] == size:
        return value
    return build.slice(value, axis, _bound(build, start, size, 0), stop, step)


def _narrow(build: Builder, x: Argument, dim: int, start: Dim, length: Dim) -> Argument:
    return _slice(build, x, dim, start, start + length)


def _select(build: Builder, x: Argument, dim: int, index: Dim) -> Tensor:
    value = _whole(build, x)
    axis = dim % value.type.rank
    start = _bound(build, index, value.type.shape[axis], 0)
    return build.reshape(build.slice(value, axis, start, start + 1), build.shape)


def _parts(build: Builder, x: Argument, axis: int, sizes: Sequence[Dim]) -> list[Tensor]:
    value = _whole(build, x)
    parts: list[Tensor] = []
    position: Dim = 0
    for size in sizes:
        parts.append(build.slice(value, axis, position, position + size))
        position = position + size
    return parts


def _split(build: Builder, x: Argument, sizes: Argument, dim: int = 0) -> list[Tensor]:
    """split, split_with_sizes and chunk: torch has already worked out the size of every part."""
    axis = dim % _whole(build, x).type.rank
    return _parts(build, x, axis, [build.result_type(index).shape[axis] for index in range(build.results)])


def _unbind(build: Builder, x: Argument, dim: int = 0) -> list[Tensor]:
    axis = dim % _whole(build, x).type.rank
    parts = _parts(build, x, axis, [1] * build.results)
    return [build.reshape(part, build.result_type(index).shape) for index, part in enumerate(parts)]


def _cat(build: Builder, parts: Sequence[Argument], dim: int = 0) -> Tensor:
    element = build.element
    values = [build.cast(_whole(build, part), element) for part in parts]
    kept = [value for value in values if value.type.shape != (0,)] or values  # torch's legacy: empty parts of rank 1
    return build.concat(kept, dim % len(build.shape))


def _stack(build: Builder, parts: Sequence[Argument], dim: int = 0) -> Tensor:
    element, rank = build.element, len(build.shape)
    axis = dim % rank
    values = [build.cast(_whole(build, part), element) for part in parts]
    shape = values[0].type.shape
    return build.concat([build.reshape(v, (*shape[:axis], 1, *shape[axis:])) for v in values], axis)


def _slice_scatter(
    build: Builder, x: Argument, source: Argument, dim: int = 0, start: Argument = None, end: Argument = None,
    step: int = 1,
) -> Tensor:  # fmt: skip
    """x with x[start:end:step] replaced: the part before, the source, the part after; lanes of a stride interleaved."""
    value, new = _whole(build, x), build.cast(_whole(build, source), build.element)
    axis, shape = dim % value.type.rank, value.type.shape
    size = shape[axis]
    first, last = _bound(build, start, size, 0), _bound(build, end, size, size)
    if step == 1:
        before = [build.slice(value, axis, 0, first)] if first != 0 else []
        after = [build.slice(value, axis, last, size)] if last != size else []
        return build.concat([*before, new, *after], axis)
    if not isinstance(size, int) or size % step or not isinstance(first, int) or first >= step or last != size:
        raise build.unsupported(f"a strided write {first}:{last}:{step} into {size} positions")
    lanes = [new if lane == first else build.slice(value, axis, lane, size, step) for lane in range(step)]
    split = (*shape[:axis], size // step, 1, *shape[axis + 1 :])
    return build.reshape(build.concat([build.reshape(lane, split) for lane in lanes], axis + 1), shape)


def _select_scatter(build: Builder, x: Argument, source: Argument, dim: int, index: Dim) -> Tensor:
    shape = build.shape
    axis = dim % len(shape)
    start = _bound(build, index, shape[axis], 0)
    row = build.reshape(build.cast(_whole(build, source), build.element), (*shape[:axis], 1, *shape[axis + 1 :]))
    return _slice_scatter(build, x, row, axis, start, start + 1)


def _pad(
    build: Builder, x: Argument, widths: Sequence[Dim], mode: Argument = "constant", value: Argument = None
) -> Tensor:
    """Widths come in pairs from the last axis on; a negative width cuts off."""
    if isinstance(mode, int | float):
        mode, value = "constant", mode
    if mode != "constant":
        raise build.unsupported(f"mode={mode!r}")
    result = _whole(build, x)
    for pair in range(len(widths) // 2):
        axis, (before, after) = result.type.rank - 1 - pair, widths[2 * pair : 2 * pair + 2]
        size = result.type.shape[axis]
        result = build.slice(
            result, axis, -before if _negative(before) else 0, size + after if _negative(after) else size
        )
        parts: list[Tensor] = []
        for width in (before, None, after):
            if width is None:
                parts.append(result)
            elif width != 0 and not _negative(width):
                shape = (*result.type.shape[:axis], width, *result.type.shape[axis + 1 :])
                parts.append(build.full(shape, value or 0, build.element))
        result = build.concat(parts, axis)
    return result


def _negative(width: Dim) -> bool:
    return isinstance(width, int) and width < 0


def _copy(build: Builder, x: Argument, source: Argument, *_: Argument) -> Tensor:
    return _expand(build, build.cast(_whole(build, source), build.element))


def _flip(build: Builder, x: Argument, dims: Sequence[int]) -> Tensor:
    value = _whole(build, x)
    for dim in dims:
        axis = dim % value.type.rank
        size = value.type.shape[axis]
        if isinstance(size, SymbolicDim):
            raise build.unsupported("reversing an axis of symbolic size")
        value = build.concat([build.slice(value, axis, i, i + 1) for i in reversed(range(size))], axis)
    return value


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((
        "alias", "clone", "detach", "detach_", "contiguous", "lift_fresh_copy", "lift_fresh", "lift", "positive",
    ), _same),
    **dict.fromkeys((
        "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "reshape_as",
    ), _reshape),
    "dropout": _dropout, "feature_dropout": _dropout,
    "permute": _permute, "transpose": _transpose, "t": _transpose, "swapaxes": _transpose, "numpy_T": _transpose,
    "expand": _expand, "expand_as": _expand, "broadcast_to": _expand, "repeat": _repeat, "tile": _repeat,
    "repeat_interleave": _repeat_interleave,
    "slice": _slice, "narrow": _narrow, "select": _select, "split": _split, "split_with_sizes": _split, "chunk": _split,
    "unbind": _unbind, "cat": _cat, "concat": _cat, "concatenate": _cat, "stack": _stack,
    "slice_scatter": _slice_scatter, "select_scatter": _select_scatter, "pad": _pad, "constant_pad_nd": _pad,
    "copy": _copy, "flip": _flip,
}  # fmt: skip
