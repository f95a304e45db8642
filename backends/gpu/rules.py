"""How each language-model op becomes a launch of a device kernel: what "tvm:OP@gpu" names."""

from __future__ import annotations

from slmopt.backends.gpu.attention import Attention
from slmopt.backends.gpu.cache import STORED, DeviceCache, cache_update
from slmopt.backends.gpu.embedding import embedding
from slmopt.backends.gpu.linear import linear
from slmopt.backends.gpu.linear_attention import LinearAttention
from slmopt.backends.gpu.norm import Norm
from slmopt.backends.gpu.token_wise import glu, quantize_rows, rope
from slmopt.backends.tvm.lower import Argument, Lowering
from slmopt.backends.tvm.operands import is_quantized, known_size, number, optional_weight, whole_number, word
from slmopt.backends.tvm.packing import GROUP
from slmopt.backends.tvm.placed_operands import (
    cache_role,
    check_linear,
    head_strides,
    place_embedding,
    place_linear,
    place_rope,
    read_caches,
)
from slmopt.backends.tvm.rows import Rows
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
    table, arguments, count = place_embedding(lowering, op)
    kernel = embedding(table.type.element, *(known_size(d, op) for d in table.type.shape))
    lowering.call(op, kernel, arguments, count)


def lower_linear(lowering: Lowering, op: Op) -> None:
    """A packed matrix by rows."""
    check_linear(op)
    placed = place_linear(lowering, op, op.value(0))
    kernel = linear(
        placed.weight.type.element, placed.outputs, placed.columns, bias=placed.bias, residual=placed.residual,
        activation=word(op, "activation"), rounded=op.attributes["act"] == "bf16",
    )  # fmt: skip
    lowering.call(op, kernel, [*placed.arguments, "lo", "hi", *_spacing(placed.rows)], placed.rows.outer)


def lower_norm(lowering: Lowering, op: Op) -> None:
    """RMS or layer normalization over rows."""
    centred = op.name == "layer_norm"
    x, weight, bias = op.value(0), optional_weight(op, 1), optional_weight(op, 2) if centred else None
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, x)
    norm = Norm(known_size(x.shape[-1], op), number(op, "eps") or 0.0, centred, is_quantized(op.result),
                weight is not None, bias is not None)  # fmt: skip
    weights = [lowering.weights.raw(w) for w in (weight, bias) if w is not None]
    lowering.call(op, norm.kernel(), [*rows.views, *weights, "lo", "hi", *_layout(rows)], rows.count)


def lower_rope(lowering: Lowering, op: Op) -> None:
    """Rotary positions over rows (token, head)."""
    rows = place_rope(lowering, op)
    head_dim, rotary_dim = (known_size(op.value(index).shape[-1], op) for index in (0, 1))
    kernel = rope(head_dim, rotary_dim, str(op.attributes["style"]))
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *_layout(rows)[:5], str(rows.strides[2][0])], rows.count)


def lower_glu(lowering: Lowering, op: Op) -> None:
    """A gated unit over rows."""
    gate, up = op.value(0), op.value(1)
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, gate, up, even=True)
    kernel = glu(known_size(gate.shape[-1], op), word(op, "activation"), is_quantized(op.result))
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
    layout = cache_role(lowering, state, op, STORED)
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
    kernel = cache_update(cache.layout, cache.element, cache.heads, cache.size, ring, whole_number(op, "sink") or 0)
    arguments: list[Argument] = [cache.buffer, *([] if cache.scales is None else [cache.scales]), view]
    arguments += ["lo", "hi", "position", *head_strides(view), str(cache.slots)]
    lowering.call(op, kernel, arguments, new.shape[2])


def lower_attention(lowering: Lowering, op: Op) -> None:
    """Attention over the caches."""
    query = op.value(0)
    keys, values = read_caches(lowering, op, DeviceCache)
    if op.operands[3] is not None:
        raise UnsupportedError(f"{op.describe()}: no kernel for attention with a dense bias")
    slopes, sinks = optional_weight(op, 5), optional_weight(op, 6)
    view, out = lowering.rows(query), lowering.allocate(op.result)
    _, heads, tokens, size = query.shape
    shape = Attention(
        known_size(heads, op), keys.heads, known_size(size, op), values.size, keys.element, number(op, "scale") or 0.0,
        number(op, "softcap"), whole_number(op, "window"), whole_number(op, "sink") or 0, whole_number(op, "chunk"),
        bool(op.attributes["ring"]), slopes is not None, sinks is not None,
    )  # fmt: skip
    arguments: list[Argument] = [out, view, *_buffers(keys), *_buffers(values)]
    arguments += [lowering.weights.raw(w) for w in (slopes, sinks) if w is not None]
    arguments += ["tokens", "position", "lo", "hi", *head_strides(out, view), str(keys.slots)]
    lowering.call(op, shape.kernel(), arguments, product((tokens, heads)))


def _buffers(cache: DeviceCache) -> list[Argument]:
    return [cache.buffer] if cache.scales is None else [cache.buffer, cache.scales]


def lower_linear_attention(lowering: Lowering, op: Op) -> None:
    """Linear attention, its state updated in place."""
    if len(op.results) != 3:
        raise UnsupportedError(f"{op.describe()}: no kernel without a state; run `incrementalize` first")
    if op.attributes["feature"] != "elu1":
        raise UnsupportedError(f"{op.describe()}: no kernel for feature {op.attributes['feature']!r}; expected 'elu1'")
    views: list[View] = [lowering.rows(op.value(index)) for index in range(3)]
    state, normalizer = (lowering.keep(op.results[1 + i], op.value(3 + i)) for i in range(2))
    out = lowering.allocate(op.results[0])
    (_, heads, _, size), (_, groups, _, _), (_, _, _, width) = (op.value(index).shape for index in range(3))
    shape = LinearAttention(*(known_size(d, op) for d in (heads, groups, size, width)))
    arguments: list[Argument] = [out, state, normalizer, *views, "tokens", "lo", "hi", *head_strides(out, *views)]
    lowering.call(op, shape.kernel(), arguments, shape.kv_heads)
