"""How each language-model op becomes a kernel call."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm import attention as attention_kernels
from slmopt.backends.tvm.cache import cache_bytes, cache_update
from slmopt.backends.tvm.embedding import embedding
from slmopt.backends.tvm.glu import glu
from slmopt.backends.tvm.linear import linear
from slmopt.backends.tvm.lower import Argument, Cache, Lowering, Rule, joint_rows
from slmopt.backends.tvm.norm import layer_norm, rms_norm
from slmopt.backends.tvm.quantize_rows import quantize_rows
from slmopt.backends.tvm.rope import rope
from slmopt.backends.tvm.views import Buffer, View
from slmopt.errors import UnsupportedError
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, Value, Weight
from slmopt.ir.types import DType

__all__ = ["RULES"]


def _weight(op: Op, index: int) -> Weight | None:
    """An operand that must be a weight, or None where it is absent."""
    operand = op.operands[index] if index < len(op.operands) else None
    if operand is None or isinstance(operand, Weight):
        return operand
    raise UnsupportedError(f"{op.describe()}: operand {index} is computed by the graph; the kernel wants a weight")


def _required(op: Op, index: int) -> Weight:
    weight = _weight(op, index)
    if weight is None:
        raise UnsupportedError(f"{op.describe()}: operand {index} is absent")
    return weight


def _rows(
    lowering: Lowering, op: Op, values: list[Value], out: View
) -> tuple[Dim, int, list[View], list[tuple[int, int]]]:
    """Joint rows of the operands and the result; operands whose strides do not fit are copied first."""
    shape = op.result.shape[:-1]
    views = [lowering.rows(value) for value in values]
    found = joint_rows(shape, [out, *views])
    if found is None:
        views = [lowering.place(lowering.copy(value)) for value in values]
        found = joint_rows(shape, [out, *views])
    if found is None:
        raise UnsupportedError(f"{op.describe()}: {op.result.type} has too many leading axes for a kernel of rows")
    return found[0], found[1], views, found[2]


def _size(dim: Dim, op: Op) -> int:
    if not isinstance(dim, int):
        raise UnsupportedError(f"{op.describe()}: the size {dim} is not known when compiling")
    return dim


def _text(op: Op, name: str) -> str | None:
    """An attribute that is a word or absent."""
    value = op.attributes[name]
    return None if value is None else str(value)


def _real(op: Op, name: str) -> float | None:
    """An attribute that is a number or absent."""
    value = op.attributes[name]
    return float(value) if isinstance(value, int | float) else None


def _is_quantized(value: Value) -> bool:
    return not isinstance(value.type.element, DType)


def _output(op: Op) -> str:
    return "f32" if op.attributes["output"] == "f32" else "q8"


def lower_embedding(lowering: Lowering, op: Op) -> None:
    """Rows of a packed table by ids."""
    table, ids = _required(op, 1), op.value(0)
    source: View = lowering.place(ids)
    if source.buffer.space != "ids":
        source = lowering.place(lowering.copy(ids, "i32"))
    out = lowering.allocate(op.result)
    found = joint_rows(op.result.shape[:-1], [out, source])
    if found is None or found[1] != 1 or found[2][0][0] == 0 or found[2][1][0] not in (0, 1):
        raise UnsupportedError(f"{op.describe()}: ids {ids.type} do not lie one after another")
    slot = lowering.weights.linear(table)
    kernel = embedding(lowering.isa, table.type.element, *(_size(d, op) for d in table.type.shape))
    arguments: list[Argument] = [out, slot, source, "lo", "hi", str(found[2][0][0])]
    lowering.call(op, kernel, arguments, found[0], [out], [source])


def lower_linear(lowering: Lowering, op: Op) -> None:
    """A packed matrix by rows; threads share the blocks of outputs."""
    if op.attributes["act"] is not None and not _is_quantized(op.value(0)):
        raise UnsupportedError(f"{op.describe()} quantizes its own input; the pass `fuse` makes that an op of its own")
    x, weight, bias = op.value(0), _required(op, 1), _weight(op, 2)
    residual = op.value(3) if len(op.operands) > 3 and op.operands[3] is not None else None
    out = lowering.allocate(op.result)
    count, inner, views, strides = _rows(lowering, op, [x, residual] if residual is not None else [x], out)
    if inner != 1:
        raise UnsupportedError(f"{op.describe()}: rows of {x.type} are not evenly spaced")
    rows, columns = (_size(d, op) for d in weight.type.shape)
    kernel = linear(
        lowering.isa, weight.type.element, rows, columns, bias=bias is not None, residual=residual is not None,
        activation=_text(op, "activation"),
    )  # fmt: skip
    arguments: list[Argument] = [out, views[0], lowering.weights.linear(weight)]
    arguments += [lowering.weights.raw(bias)] if bias is not None else []
    arguments += [views[1]] if residual is not None else []
    arguments += ["t0", "t1", "lo", "hi", *(str(s) for s, _ in strides)]
    blocks = -(-rows // lowering.weights.block(weight.type))
    lowering.call(op, kernel, arguments, blocks, [out], views, tokens=count)


def lower_norm(lowering: Lowering, op: Op) -> None:
    """RMS or layer normalization over rows."""
    x, weight = op.value(0), _weight(op, 1)
    bias = _weight(op, 2) if op.name == "layer_norm" else None
    out = lowering.allocate(op.result)
    count, inner, views, strides = _rows(lowering, op, [x], out)
    width = _size(x.shape[-1], op)
    options: dict[str, Any] = {"width": width, "eps": op.attributes["eps"], "output": _output(op)}
    options["weight"] = weight is not None
    kernel = (
        layer_norm(lowering.isa, **options, bias=bias is not None) if op.name == "layer_norm"
        else rms_norm(lowering.isa, **options)
    )  # fmt: skip
    arguments: list[Argument] = [out, views[0], *(lowering.weights.raw(w) for w in (weight, bias) if w is not None)]
    arguments += ["lo", "hi", str(inner), *(str(s) for pair in strides for s in pair)]
    lowering.call(op, kernel, arguments, _times(count, inner), [out], views)


def lower_rope(lowering: Lowering, op: Op) -> None:
    """Rotary positions over rows (token, head)."""
    x, cos, sin = (op.value(i) for i in range(3))
    out = lowering.allocate(op.result)
    count, inner, views, strides = _rows(lowering, op, [x, cos, sin], out)
    if strides[2] != strides[3] or strides[2][1] != 0:
        raise UnsupportedError(f"{op.describe()}: cos and sin must be shared by all heads of a token")
    head_dim, rotary_dim = _size(x.shape[-1], op), _size(cos.shape[-1], op)
    kernel = rope(lowering.isa, head_dim=head_dim, rotary_dim=rotary_dim, style=str(op.attributes["style"]))
    places = [str(s) for pair in strides[:2] for s in pair]
    arguments: list[Argument] = [out, *views, "lo", "hi", str(inner), *places, str(strides[2][0])]
    lowering.call(op, kernel, arguments, _times(count, inner), [out], views)


def lower_glu(lowering: Lowering, op: Op) -> None:
    """A gated unit over rows."""
    gate, up = op.value(0), op.value(1)
    out = lowering.allocate(op.result)
    count, inner, views, strides = _rows(lowering, op, [gate, up], out)
    if inner != 1:
        raise UnsupportedError(f"{op.describe()}: rows of {gate.type} are not evenly spaced")
    width = _size(gate.shape[-1], op)
    kernel = glu(lowering.isa, width=width, activation=_text(op, "activation"), output=_output(op))
    arguments: list[Argument] = [out, *views, "lo", "hi", *(str(s) for s, _ in strides)]
    lowering.call(op, kernel, arguments, count, [out], views)


def lower_quantize_rows(lowering: Lowering, op: Op) -> None:
    """Rows to 8-bit codes with scales."""
    out = lowering.allocate(op.result)
    count, inner, views, strides = _rows(lowering, op, [op.value(0)], out)
    if inner != 1:
        raise UnsupportedError(f"{op.describe()}: rows of {op.value(0).type} are not evenly spaced")
    kernel = quantize_rows(lowering.isa, width=_size(op.result.shape[-1], op))
    arguments: list[Argument] = [out, views[0], "lo", "hi", *(str(s) for s, _ in strides)]
    lowering.call(op, kernel, arguments, count, [out], views)


def _cache(lowering: Lowering, state: Value, op: Op) -> Cache:
    """The cache behind a state, laid out for the operand of attention that reads it."""
    if state in lowering.caches:
        return lowering.caches[state]
    if state.op is not None:
        raise UnsupportedError(f"{op.describe()}: %{state.name} is no state of the step")
    roles = {use.index for use in op.result.uses if use.op.name == "attention"}
    others = [user for user in op.result.users if user.name != "attention"]
    if others or roles not in ({1}, {2}):
        raise UnsupportedError(f"{op.describe()}: a cache is read by attention alone, as keys or as values")
    layout = "keys" if roles == {1} else "values"
    _, heads, capacity, size = (_size(d, op) for d in state.shape)
    element = state.type.element
    if element not in (DType.f32, DType.f16):
        raise UnsupportedError(f"{op.describe()}: no kernel for a cache of {element}; expected f32 or f16")
    buffer = Buffer(state.name, "state", cache_bytes(layout, element, heads, capacity, size))
    lowering.states.append(buffer)
    cache = lowering.caches[state] = Cache(buffer, layout, DType(element), heads, size)
    return cache


def lower_cache_update(lowering: Lowering, op: Op) -> None:
    """New keys or values, written into their cache in place."""
    cache = _cache(lowering, op.value(0), op)
    lowering.caches[op.result] = cache
    new = op.value(1)
    view = lowering.rows(new)
    kernel = cache_update(
        lowering.isa, layout=cache.layout, element=cache.element, heads=cache.heads, head_dim=cache.size
    )  # fmt: skip
    strides = [str(view.strides[2]), str(view.strides[1])]
    arguments: list[Argument] = [cache.buffer, view, "lo", "hi", "position", *strides, str(lowering.capacity)]
    lowering.call(op, kernel, arguments, new.shape[2], [cache.buffer], [view])


def lower_attention(lowering: Lowering, op: Op) -> None:
    """Attention over the caches, work shared by (token, head)."""
    query, keys, values = op.value(0), op.value(1), op.value(2)
    if keys not in lowering.caches or values not in lowering.caches:
        raise UnsupportedError(f"{op.describe()}: keys and values must come from caches; run `incrementalize` first")
    if op.operands[3] is not None or op.attributes["chunk"] is not None:
        raise UnsupportedError(f"{op.describe()}: no kernel for attention with a dense bias or a chunked mask")
    slopes, sinks = _weight(op, 5), _weight(op, 6)
    view, out, window = lowering.rows(query), lowering.allocate(op.result), _real(op, "window")
    _, heads, tokens, head_dim = query.shape
    cache, other = lowering.caches[keys], lowering.caches[values]
    kernel = attention_kernels.attention(
        lowering.isa, heads=_size(heads, op), kv_heads=cache.heads, head_dim=_size(head_dim, op), value_dim=other.size,
        scale=_real(op, "scale") or 0.0, window=None if window is None else int(window), softcap=_real(op, "softcap"),
        slopes=slopes is not None, sinks=sinks is not None, element=cache.element,
    )  # fmt: skip
    arguments: list[Argument] = [out, view, cache.buffer, other.buffer]
    arguments += [lowering.weights.raw(w) for w in (slopes, sinks) if w is not None]
    arguments += ["tokens", "position", "lo", "hi", str(out.strides[2]), str(out.strides[1])]
    arguments += [str(view.strides[2]), str(view.strides[1]), str(lowering.capacity)]
    lowering.call(op, kernel, arguments, _times(tokens, _size(heads, op)), [out], [view, cache.buffer, other.buffer])


def _times(count: Dim, inner: int) -> Dim:
    return count * inner


RULES: dict[str, Rule] = {
    "embedding": lower_embedding,
    "linear": lower_linear,
    "rms_norm": lower_norm,
    "layer_norm": lower_norm,
    "rope": lower_rope,
    "glu": lower_glu,
    "quantize_rows": lower_quantize_rows,
    "cache_update": lower_cache_update,
    "attention": lower_attention,
}
