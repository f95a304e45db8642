"""How ops that look at other positions become kernel calls: attention over caches, linear attention."""

from __future__ import annotations

from dataclasses import dataclass

from slmopt.backends.tvm import attention as attention_kernels
from slmopt.backends.tvm.cache import STORED, cache_bytes, cache_update, ring_of
from slmopt.backends.tvm.linear_attention import LinearAttention
from slmopt.backends.tvm.lower import Argument, Cache, Lowering
from slmopt.backends.tvm.operands import known_size, number, optional_weight, whole_number
from slmopt.backends.tvm.placed_operands import cache_role, head_strides, read_caches
from slmopt.backends.tvm.views import Buffer
from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Op, Value
from slmopt.ir.types import DType

__all__ = ["lower_attention", "lower_cache_update", "lower_linear_attention"]


@dataclass(frozen=True)
class BlockCache(Cache):
    """A cache state of so many positions; `kept` where it is a ring: its blocks that stay."""

    capacity: int
    kept: int | None


def _cache(lowering: Lowering, state: Value, op: Op) -> BlockCache:
    """The cache behind a state, laid out for the operand of attention that reads it."""
    known = lowering.caches.get(state)
    if isinstance(known, BlockCache):
        return known
    layout = cache_role(lowering, state, op, STORED)
    _, heads, _, size = (known_size(d, op) for d in state.shape)
    capacity, kept = _capacity(lowering, op)
    element = state.type.element
    buffer = Buffer(state.name, "state", cache_bytes(layout, element, heads, capacity, size))
    lowering.states.append(buffer)
    cache = BlockCache(buffer, layout, element, heads, size, capacity, kept)
    lowering.caches[state] = cache
    return cache


def _capacity(lowering: Lowering, op: Op) -> tuple[int, int | None]:
    """Positions that the cache of a cache_update holds, and where it is a ring, how many of its blocks stay."""
    window, sink = op.attributes["window"], op.attributes["sink"] or 0
    if isinstance(window, int) and isinstance(sink, int):
        capacity, kept = ring_of(window, sink, lowering.chunk)
        if capacity < lowering.capacity:
            return capacity, kept
    return lowering.capacity, None


def lower_cache_update(lowering: Lowering, op: Op) -> None:
    """New keys or values, written into their cache in place."""
    cache = _cache(lowering, op.value(0), op)
    lowering.caches[op.result] = cache
    new = op.value(1)
    view = lowering.rows(new)
    kernel = cache_update(
        lowering.isa, layout=cache.layout, element=cache.element, heads=cache.heads, head_dim=cache.size,
        kept=cache.kept,
    )  # fmt: skip
    arguments: list[Argument] = [cache.buffer, view, "lo", "hi", "position", *head_strides(view), str(cache.capacity)]
    lowering.call(op, kernel, arguments, new.shape[2])


def lower_attention(lowering: Lowering, op: Op) -> None:
    """Attention over the caches, work shared by (key head, token, query head)."""
    query = op.value(0)
    cache, other = read_caches(lowering, op, BlockCache)
    if op.operands[3] is not None or op.attributes["chunk"] is not None:
        raise UnsupportedError(f"{op.describe()}: no kernel for attention with a dense bias or a chunked mask")
    slopes, sinks = optional_weight(op, 5), optional_weight(op, 6)
    view, out = lowering.rows(query), lowering.allocate(op.result)
    _, heads, tokens, head_dim = query.shape
    kernel = attention_kernels.attention(
        lowering.isa, heads=known_size(heads, op), kv_heads=cache.heads, head_dim=known_size(head_dim, op),
        value_dim=other.size, scale=number(op, "scale") or 0.0, window=whole_number(op, "window"),
        softcap=number(op, "softcap"), slopes=slopes is not None, sinks=sinks is not None, element=cache.element,
        sink=whole_number(op, "sink") or 0, kept=cache.kept,
    )  # fmt: skip
    arguments: list[Argument] = [out, view, cache.buffer, other.buffer]
    arguments += [lowering.weights.raw(w) for w in (slopes, sinks) if w is not None]
    first = "first" if op.result in lowering.tail else "0"
    arguments += [first, "tokens", "position", "lo", "hi", *head_strides(out, view), str(cache.capacity)]
    lowering.call(op, kernel, arguments, tokens * known_size(heads, op))


def lower_linear_attention(lowering: Lowering, op: Op) -> None:
    """Linear attention, its state updated in place; work shared by panels of the heads of keys."""
    if len(op.results) != 3:
        raise UnsupportedError(f"{op.describe()}: its state must come from the step; run `incrementalize` first")
    rows = [lowering.rows(op.value(index)) for index in range(3)]
    (_, heads, _, size), (_, groups, _, width) = op.value(0).shape, op.value(2).shape
    shape = LinearAttention(
        lowering.isa, known_size(heads, op), known_size(groups, op), known_size(size, op), known_size(width, op),
        str(op.attributes["feature"]),
    )  # fmt: skip
    out, state = lowering.allocate(op.results[0]), lowering.keep(op.results[1], op.value(3))
    normalizer = Buffer(op.value(4).name, "state", shape.normalizer_bytes)
    lowering.states.append(normalizer)
    cache = Cache(normalizer, "normalizer", DType.f32, shape.kv_heads, shape.size)  # no other op can read it
    lowering.caches[op.value(4)] = lowering.caches[op.results[2]] = cache
    arguments: list[Argument] = [out, state, normalizer, *rows, "tokens", "lo", "hi", *head_strides(out, *rows)]
    lowering.call(op, shape.kernel(), arguments, shape.kv_heads * shape.panels)
