"""How each language-model op becomes a launch of a device kernel: what "tvm:OP@gpu" names."""

from __future__ import annotations

from typing import Any

from slmopt.backends.gpu.attention import Attention
from slmopt.backends.gpu.cache import STORED, DeviceCache, cache_update
from slmopt.backends.gpu.embedding import embedding
from slmopt.backends.gpu.linear import linear
from slmopt.backends.gpu.linear_attention import LinearAttention
from slmopt.backends.gpu.norm import Norm
from slmopt.backends.gpu.token_wise import glu, quantize_rows, rope
from slmopt.backends.tvm.attention_rules import cache_layout
from slmopt.backends.tvm.lower import Argument, Lowering
from slmopt.backends.tvm.operands import known_size, optional_weight, required_weight
from slmopt.backends.tvm.packing import GROUP
from slmopt.backends.tvm.rows import Rows, joint_rows
from slmopt.backends.tvm.views import Buffer, View
from slmopt.errors import UnsupportedError
from slmopt.ir.dims import product
from slmopt.ir.graph import Op, Value
from slmopt.ir.types import DType, QuantizedType

__all__ = [
    "lower_attention",
    "lower_cache_update",
    "lower_embedding",
    "lower_glu",
    "lower_linear",
    "lower_linear_attention",
    "lower_norm",
    "lower_quantize_rows",
    "lower_rope",
]


def _text(op: Op, name: str) -> str | None:
    value = op.attributes[name]
    return None if value is None else str(value)


def _real(op: Op, name: str) -> float | None:
    value = op.attributes[name]
    return float(value) if isinstance(value, int | float) else None


def _whole(op: Op, name: str) -> int | None:
    value = op.attributes[name]
    return value if isinstance(value, int) else None


def _is_quantized(value: Value) -> bool:
    return not isinstance(value.type.element, DType)


def _strides(rows: Rows) -> list[tuple[int, int]]:
    """(s0, s1) of each view; of quantized rows in words, which is how kernels read them."""
    return [(s0 // 4, s1 // 4) if isinstance(view.element, QuantizedType) else (s0, s1)
            for view, (s0, s1) in zip(rows.views, rows.strides, strict=True)]  # fmt: skip


def _spacing(rows: Rows) -> list[str]:
    return [str(s0) for s0, _ in _strides(rows)]


def _layout(rows: Rows) -> list[str]:
    return [str(rows.inner), *(str(stride) for pair in _strides(rows) for stride in pair)]


def lower_embedding(lowering: Lowering, op: Op) -> None:
    """Rows of a packed table by ids."""
    table, ids, vocab = required_weight(op, 1), op.value(0), lowering.module.metadata.get("vocab") or 0
    if ids is lowering.graph.inputs[0] and known_size(table.type.shape[0], op) < vocab:
        raise UnsupportedError(f"{op.describe()}: {table.type} has no row for some of the {vocab} tokens")
    source: View = lowering.place(ids)
    if source.buffer.space != "ids":
        source = lowering.place(lowering.copy(ids, "i32"))
    out = lowering.allocate(op.result)
    found = joint_rows(op.result.shape[:-1], [out, source])
    if found is None or found.inner != 1 or found.strides[0][0] == 0 or found.strides[1][0] not in (0, 1):
        raise UnsupportedError(f"{op.describe()}: ids {ids.type} do not lie one after another")
    slot = lowering.weights.linear(table)
    kernel = embedding(table.type.element, *(known_size(d, op) for d in table.type.shape))
    lowering.call(op, kernel, [out, slot, source, "lo", "hi", str(found.strides[0][0])], found.outer)


def lower_linear(lowering: Lowering, op: Op) -> None:
    """A packed matrix by rows."""
    if op.attributes["act"] == "q8" and not _is_quantized(op.value(0)):
        raise UnsupportedError(f"{op.describe()} quantizes its own input; the pass `fuse` makes that an op of its own")
    x, weight, bias = op.value(0), required_weight(op, 1), optional_weight(op, 2)
    if _is_quantized(x) != isinstance(weight.type.element, QuantizedType):
        raise UnsupportedError(f"{op.describe()}: no kernel multiplies {x.type} by {weight.type}; expected both "
                               'quantized (act = "q8", which `fuse` makes an op of its own) or neither')  # fmt: skip
    residual = op.value(3) if len(op.operands) > 3 and op.operands[3] is not None else None
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, *([x] if residual is None else [x, residual]), even=True)
    outputs, columns = (known_size(d, op) for d in weight.type.shape)
    kernel = linear(
        weight.type.element, outputs, columns, bias=bias is not None, residual=residual is not None,
        activation=_text(op, "activation"), rounded=op.attributes["act"] == "bf16",
    )  # fmt: skip
    arguments: list[Argument] = [out, rows.views[1], lowering.weights.linear(weight)]
    arguments += [lowering.weights.raw(bias)] if bias is not None else []
    arguments += [rows.views[2]] if residual is not None else []
    lowering.call(op, kernel, [*arguments, "lo", "hi", *_spacing(rows)], rows.outer)


def lower_norm(lowering: Lowering, op: Op) -> None:
    """RMS or layer normalization over rows."""
    centred = op.name == "layer_norm"
    x, weight, bias = op.value(0), optional_weight(op, 1), optional_weight(op, 2) if centred else None
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, x)
    norm = Norm(known_size(x.shape[-1], op), _real(op, "eps") or 0.0, centred, _is_quantized(op.result),
                weight is not None, bias is not None)  # fmt: skip
    weights = [lowering.weights.raw(w) for w in (weight, bias) if w is not None]
    lowering.call(op, norm.kernel(), [*rows.views, *weights, "lo", "hi", *_layout(rows)], rows.count)


def lower_rope(lowering: Lowering, op: Op) -> None:
    """Rotary positions over rows (token, head)."""
    x, cos, sin = (op.value(i) for i in range(3))
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, x, cos, sin)
    angles = rows.strides[2]
    if angles != rows.strides[3] or angles[1] != 0:
        raise UnsupportedError(f"{op.describe()}: cos and sin must be shared by all heads of a token")
    kernel = rope(known_size(x.shape[-1], op), known_size(cos.shape[-1], op), str(op.attributes["style"]))
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *_layout(rows)[:5], str(angles[0])], rows.count)


def lower_glu(lowering: Lowering, op: Op) -> None:
    """A gated unit over rows."""
    gate, up = op.value(0), op.value(1)
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, gate, up, even=True)
    kernel = glu(known_size(gate.shape[-1], op), _text(op, "activation"), _is_quantized(op.result))
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *_spacing(rows)], rows.count)


def lower_quantize_rows(lowering: Lowering, op: Op) -> None:
    """Rows to 8-bit codes with scales."""
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, op.value(0), even=True)
    kernel = quantize_rows(known_size(op.result.shape[-1], op))
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *_spacing(rows)], rows.count)


def _cache(lowering: Lowering, state: Value, op: Op) -> DeviceCache:
    """The cache behind a state, laid out for the operand of attention that reads it."""
    known = lowering.caches.get(state)
    if isinstance(known, DeviceCache):
        return known
    layout = cache_layout(lowering, state, op, STORED)
    _, heads, slots, size = (known_size(d, op) for d in state.shape)
    element = state.type.element
    width = element.bits // 8 if isinstance(element, DType) else 1
    buffer, scales = Buffer(state.name, "state", heads * slots * size * width), None
    lowering.states.append(buffer)
    if not isinstance(element, DType):
        scales = Buffer(f"{state.name}_scales", "state", heads * slots * -(-size // GROUP) * 4)
        lowering.states.append(scales)
    cache = lowering.caches[state] = DeviceCache(
        buffer=buffer, layout=layout, element=element, heads=heads, size=size, slots=slots, scales=scales
    )
    return cache


def lower_cache_update(lowering: Lowering, op: Op) -> None:
    """New keys or values, written into their cache in place."""
    cache = _cache(lowering, op.value(0), op)
    lowering.caches[op.result] = cache
    new = op.value(1)
    view = lowering.rows(new)
    ring = op.attributes["window"] is not None
    kernel = cache_update(cache.layout, cache.element, cache.heads, cache.size, ring, _whole(op, "sink") or 0)
    arguments: list[Argument] = [cache.buffer, *([] if cache.scales is None else [cache.scales]), view]
    arguments += ["lo", "hi", "position", str(view.strides[2]), str(view.strides[1]), str(cache.slots)]
    lowering.call(op, kernel, arguments, new.shape[2])


def lower_attention(lowering: Lowering, op: Op) -> None:
    """Attention over the caches."""
    query = op.value(0)
    keys, values = (lowering.caches.get(op.value(index)) for index in (1, 2))
    if not isinstance(keys, DeviceCache) or not isinstance(values, DeviceCache):
        raise UnsupportedError(f"{op.describe()}: keys and values must come from caches; run `incrementalize` first")
    if op.operands[3] is not None:
        raise UnsupportedError(f"{op.describe()}: no kernel for attention with a dense bias")
    slopes, sinks = optional_weight(op, 5), optional_weight(op, 6)
    view, out = lowering.rows(query), lowering.allocate(op.result)
    _, heads, tokens, size = query.shape
    shape = Attention(
        known_size(heads, op), keys.heads, known_size(size, op), values.size, keys.element, _real(op, "scale") or 0.0,
        _real(op, "softcap"), _whole(op, "window"), _whole(op, "sink") or 0, _whole(op, "chunk"),
        bool(op.attributes["ring"]), slopes is not None, sinks is not None,
    )  # fmt: skip
    arguments: list[Argument] = [out, view, *_buffers(keys), *_buffers(values)]
    arguments += [lowering.weights.raw(w) for w in (slopes, sinks) if w is not None]
    arguments += ["tokens", "position", "lo", "hi", *_places(out), *_places(view), str(keys.slots)]
    lowering.call(op, shape.kernel(), arguments, product((tokens, heads)))


def _buffers(cache: DeviceCache) -> list[Argument]:
    return [cache.buffer] if cache.scales is None else [cache.buffer, cache.scales]


def _places(view: View) -> list[str]:
    """The strides of tokens and heads of [b, heads, tokens, size]."""
    return [str(view.strides[2]), str(view.strides[1])]


def lower_linear_attention(lowering: Lowering, op: Op) -> None:
    """Linear attention, its state updated in place."""
    if len(op.results) != 3:
        raise UnsupportedError(f"{op.describe()}: no kernel without a state; run `incrementalize` first")
    if op.attributes["feature"] != "elu1":
        raise UnsupportedError(f"{op.describe()}: no kernel for feature {op.attributes['feature']!r}; expected 'elu1'")
    views: list[Any] = [lowering.rows(op.value(index)) for index in range(3)]
    state, normalizer = (lowering.keep(op.results[1 + i], op.value(3 + i)) for i in range(2))
    out = lowering.allocate(op.results[0])
    (_, heads, _, size), (_, groups, _, _), (_, _, _, width) = (op.value(index).shape for index in range(3))
    shape = LinearAttention(*(known_size(d, op) for d in (heads, groups, size, width)))
    arguments: list[Argument] = [out, state, normalizer, *views, "tokens", "lo", "hi"]
    arguments += [stride for view in (out, *views) for stride in _places(view)]
    lowering.call(op, shape.kernel(), arguments, shape.kv_heads)
