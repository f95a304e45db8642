"""ATen ops that the IR knows as language-model ops: embedding, linear, norms, attention, and lookups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slmopt.frontends.aten.builder import Argument, Builder, StructuralMask
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Attribute, Operand, Value, Weight
from slmopt.ir.types import DType

__all__ = ["RULES"]

Tensor = Value | Weight
_FEW = 16  # rows picked by constant numbers up to which slices are shorter than a gather


def _embedding(build: Builder, table: Argument, ids: Argument, *_: Argument, **__: Argument) -> Tensor:
    rows, index = build.operand(table), build.operand(ids)
    if rows.type.rank != 2:
        raise build.unsupported(f"an embedding table {rows.type}")
    return build.add("embedding", (index, rows))


def _linear(build: Builder, x: Argument, weight: Argument, bias: Argument = None) -> Tensor:
    operands: list[Operand] = [build.operand(x), build.operand(weight)]
    if bias is not None:
        operands.append(build.operand(bias))
    return build.add("linear", operands)


def _normalized_axes(build: Builder, shape: Sequence[Dim]) -> None:
    if len(shape) != 1:
        raise build.unsupported(f"a norm over {len(shape)} axes")


def _layer_norm(build: Builder, x: Argument, shape: Sequence[Dim], weight: Argument = None, bias: Argument = None,
                eps: float = 1e-5, *_: Argument) -> Tensor:  # fmt: skip
    _normalized_axes(build, shape)
    return build.add("layer_norm", _norm_operands(build, x, weight, bias), {"eps": eps})


def _native_layer_norm(build: Builder, *arguments: Argument) -> list[Argument]:
    return [_layer_norm(build, *arguments), None, None]


def _rms_norm(
    build: Builder, x: Argument, shape: Sequence[Dim], weight: Argument = None, eps: float | None = None
) -> Tensor:
    _normalized_axes(build, shape)
    epsilon = 1.1920928955078125e-07 if eps is None else eps  # torch's default: the spacing of float32 at 1
    return build.add("rms_norm", _norm_operands(build, x, weight), {"eps": epsilon})


def _fused_rms_norm(build: Builder, *arguments: Argument) -> list[Argument]:
    return [_rms_norm(build, *arguments), None]


def _norm_operands(build: Builder, x: Argument, *parameters: Argument) -> list[Operand]:
    found: list[Operand] = [build.operand(x), *(None if p is None else build.operand(p) for p in parameters)]
    while found[-1] is None:
        found.pop()
    return found


def _index_select(build: Builder, x: Argument, dim: int, index: Argument) -> Tensor:
    table = build.operand(x)
    return build.add("gather", (table, build.operand(index)), {"axis": dim % table.type.rank})


def _index(build: Builder, x: Argument, indices: Sequence[Argument]) -> Tensor:
    """x[:, index]: one index tensor, whose axes take the place of the axis it picks from."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        raise build.unsupported(f"indexing by {len(given)} tensors at once")
    axis, index = given[0]
    picked = build.operand(index)
    if picked.type.element == DType.bool:
        raise build.unsupported("indexing by a condition (its result has no fixed size)")
    table = build.operand(x)
    if isinstance(picked, Weight) and picked.type.rank == 1 and picked.type.elements in range(1, _FEW + 1):
        return _rows(build, table, axis, [int(row) for row in build.weights.load(picked.key)])
    return build.add("gather", (table, _from_the_front(build, picked, table.type.shape[axis])), {"axis": axis})


def _rows(build: Builder, table: Tensor, axis: int, rows: list[int]) -> Tensor:
    """A few rows by number: slices one after another."""
    size = table.type.shape[axis]
    starts: list[Dim] = [row + size if row < 0 else row for row in rows]
    return build.concat([build.slice(table, axis, start, start + 1) for start in starts], axis)


def _from_the_front(build: Builder, index: Tensor, size: Dim) -> Tensor:
    """An index that python counts from the end where it is negative; a counter never is."""
    source: Operand = index
    while isinstance(source, Value) and source.op is not None and source.op.name in ("reshape", "expand", "slice"):
        source = source.op.operands[0]
    if isinstance(source, Value) and source.op is not None and source.op.name == "arange":
        return index
    zero, length = build.constant(0, DType.i64), build.operand(size, DType.i64)
    number = build.cast(index, DType.i64)
    return build.add("where", (build.add("lt", (number, zero)), build.add("add", (number, length)), number))


# --- attention ---------------------------------------------------------------------------------------------------
def _attention(
    build: Builder, query: Argument, key: Argument, value: Argument, mask: Argument, scale: float,
    softcap: float | None, causal: bool, bias: Argument, sinks: Argument,
) -> Tensor:  # fmt: skip
    """The captured attention of a model. `mask`: structural, numbers to add, or none (then `causal` decides)."""
    structure, added = _structure(build, mask, causal)
    if bias is not None:
        own = build.operand(bias, DType.f32)
        added = own if added is None else build.add("add", (own, added))
    operands: list[Operand] = [build.operand(x) for x in (query, key, value)]
    operands += [added, None, None, None if sinks is None else build.operand(sinks, DType.f32)]
    while operands[-1] is None:
        operands.pop()
    return build.add("attention", operands, {"scale": scale, "softcap": softcap, **structure})


def _structure(build: Builder, mask: Argument, causal: bool) -> tuple[dict[str, Attribute], Tensor | None]:
    """A mask as attributes of attention and numbers to add."""
    if isinstance(mask, StructuralMask):
        return mask.attributes, None
    structure: dict[str, Attribute] = {"mask": "causal" if causal else "full"}
    if mask is None:
        return structure, None
    value = build.operand(mask)
    found = build.mask_structure(value)
    if found is not None and not causal:
        return {"mask": "causal" if found.causal else "full", "window": found.window, "chunk": found.chunk}, None
    if value.type.element == DType.bool:
        value = build.add("where", (value, build.constant(0, DType.f32), build.constant(float("-inf"), DType.f32)))
    return structure, value


def _mask(
    build: Builder,
    like: Argument,
    batch: Dim,
    queries: Dim,
    keys: Dim,
    causal: bool,
    window: int | None,
    chunk: int | None,
) -> Argument:
    return StructuralMask(batch, queries, keys, "causal" if causal else "full", window, chunk)


def _scaled_dot_product_attention(
    build: Builder, query: Argument, key: Argument, value: Argument, mask: Argument = None, dropout: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """[..., heads, positions, size]: leading axes are folded into the batch, absent ones added."""
    if dropout:
        raise build.unsupported("dropout of a model in training mode (call .eval() first)")
    operands = [build.operand(x) for x in (query, key, value)]
    size = operands[0].type.shape[-1]
    if not isinstance(size, int):
        raise build.unsupported("heads of symbolic size")
    folded = [_four_axes(build, x) for x in operands]
    structure, added = _structure(build, mask, is_causal)
    if added is not None:
        added = _four_axes(build, added)
    found = build.add("attention", (*folded, added) if added is not None else folded,
                      {"scale": size**-0.5 if scale is None else scale, **structure})  # fmt: skip
    return build.reshape(found, build.shape)


def _four_axes(build: Builder, x: Tensor) -> Tensor:
    shape = x.type.shape
    if len(shape) > 4:
        raise build.unsupported(f"attention over {len(shape)} axes")
    return build.reshape(x, (*shape[:-2], *(1,) * (4 - len(shape)), *shape[-2:]))


RULES: dict[str, Callable[..., Any]] = {
    "embedding": _embedding, "linear": _linear, "layer_norm": _layer_norm, "native_layer_norm": _native_layer_norm,
    "rms_norm": _rms_norm, "_fused_rms_norm": _fused_rms_norm,
    "index_select": _index_select, "index": _index,
    "scaled_dot_product_attention": _scaled_dot_product_attention,
    "slmopt.attention": _attention, "slmopt.mask": _mask,
}  # fmt: skip
