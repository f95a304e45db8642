"""Softmax attention, its structural mask, and the caches that its step rule keeps."""

from __future__ import annotations

from typing import Any

from slmopt.errors import IRError, UnsupportedError
from slmopt.ir.dims import Dim, dim_symbols, product
from slmopt.ir.graph import Op, Operand, operand_type
from slmopt.ir.linking import AxisLinker
from slmopt.ir.ops.language import QUANTIZED_ROWS, quantize_rows
from slmopt.ir.spec import OpSpec, Required
from slmopt.ir.step import StepBuilder
from slmopt.ir.types import DType, QuantizedType, TensorType

__all__ = ["SPECS", "couple_heads"]

_MASK = {"mask": "causal", "window": None, "chunk": None}


def _check_mask(op: Op) -> None:
    if op.attributes["mask"] not in ("causal", "full"):
        raise IRError(f'mask must be "causal" or "full", got {op.attributes["mask"]!r}')
    for name in ("window", "chunk", "sink"):
        size = op.attributes.get(name)
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise IRError(f"{name} must be none or a positive number of positions, got {size!r}")
    if op.attributes.get("sink") is not None and op.attributes["window"] is None:
        raise IRError("sink keeps positions visible that a window would hide, and there is no window")


def _attention(op: Op) -> TensorType:
    query, key, value = (operand_type(o) for o in op.operands[:3])
    if not query.rank == key.rank == value.rank == 4:
        raise IRError("query, key and value must have 4 axes [batch, heads, positions, size]")
    heads, kv_heads = query.shape[1], key.shape[1]
    fits = key.shape[:3] == value.shape[:3] and query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3]
    if not fits or not isinstance(heads, int) or not isinstance(kv_heads, int) or heads % kv_heads:
        expected = "q [b, h, s, d], k [b, g, n, d], v [b, g, n, e], h divisible by g"
        raise IRError(f"expected {expected}; got {query}, {key}, {value}")
    for index, name in ((5, "slopes"), (6, "sinks")):
        operand = op.operands[index] if len(op.operands) > index else None
        if operand is not None and operand_type(operand).shape != (heads,):
            raise IRError(f"{name} must have shape [{heads}], got {operand_type(operand)}")
    _check_mask(op)
    if op.attributes["ring"]:
        _check_ring(op, query.shape[2], key.shape[2])
    return TensorType(DType.f32, (*query.shape[:3], value.shape[3]))


def _check_ring(op: Op, tokens: Dim, slots: Dim) -> None:
    """The slots of a ring hold all that the first of the tokens sees, when the last of them is written."""
    window, sink = op.attributes["window"], op.attributes["sink"]
    if not isinstance(window, int) or op.attributes.get("mask", "causal") != "causal":
        raise IRError('a ring holds the keys of a causal window: give mask = "causal" and a window')
    needed = _room(op, tokens)
    if isinstance(slots, int) and isinstance(needed, int) and slots < needed:
        raise IRError(f"a step of {tokens} tokens, window = {window}, sink = {sink or 0} needs a ring of {needed} "
                      f"slots, and it has {slots}")  # fmt: skip


def _room(op: Op, tokens: Dim) -> Dim:
    """Slots of a ring: all that a query sees, the tokens after it in its step included."""
    window: Any = op.attributes["window"]
    sink: Any = op.attributes["sink"] or 0
    room: Dim = tokens + (sink + window - 1)
    return room


def _slots(op: Op, positions: Any, size: int) -> Any:
    """The slots of a ring of `size` slots in which positions are kept: the first `sink` ones never make room."""
    import torch

    sink: Any = op.attributes["sink"] or 0
    return torch.where(positions < sink, positions, sink + (positions - sink) % (size - sink))


def _held(op: Op, size: int, last: Any) -> Any:
    """The position that each slot of a ring holds after `last` was written; one below `sink`: none yet."""
    import torch

    sink: Any = op.attributes["sink"] or 0
    slots = torch.arange(size)
    held = last - (last - slots) % (size - sink)
    # A slot behind the kept ones that was not written yet would count as a position that has a slot of its own.
    return torch.where(slots < sink, slots, torch.where(held < sink, last + 1, held))


def _allowed(op: Op, queries: Any, keys: Any) -> Any:
    """Which keys [n] each query [s] may see, as bool [s, n], from their absolute positions."""
    distance = queries[:, None] - keys[None, :]
    allowed = distance >= 0 if op.attributes["mask"] == "causal" else distance == distance
    if op.attributes["window"] is not None:
        near = distance < op.attributes["window"]
        if op.attributes.get("sink") is not None:
            near = near | (keys[None, :] < op.attributes["sink"])
        allowed = allowed & near
    if op.attributes["chunk"] is not None:
        chunk = op.attributes["chunk"]
        allowed = allowed & (queries[:, None] // chunk == keys[None, :] // chunk)
    return allowed


def _attention_reference(
    op: Op, query: Any, key: Any, value: Any, bias: Any = None, position: Any = None, slopes: Any = None,
    sinks: Any = None,
) -> Any:  # fmt: skip
    import torch

    scale: Any = op.attributes["scale"]
    softcap: Any = op.attributes["softcap"]
    key, value = (x.to(query.dtype) for x in (key, value))
    grouped = query.reshape(*key.shape[:2], -1, query.shape[3])  # the queries of a head of keys, one after the other
    scores = grouped.matmul(key.transpose(-1, -2)).reshape(*query.shape[:3], -1) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    start = 0 if position is None else position
    queries = torch.arange(query.shape[2]) + start
    keys = torch.arange(key.shape[2])
    if op.attributes["ring"]:
        _check_ring(op, query.shape[2], key.shape[2])
        keys = _held(op, key.shape[2], start + query.shape[2] - 1)
    if slopes is not None:
        scores = scores + slopes[:, None, None] * (keys[None, :] - queries[:, None])
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~_allowed(op, queries, keys), float("-inf"))
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        extra = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat((scores, extra), -1).softmax(-1)[..., :-1]
    weights = torch.nan_to_num(weights).reshape(*grouped.shape[:3], -1)
    return weights.matmul(value).reshape(*query.shape[:3], -1)


def _attention_flops(op: Op) -> Dim:
    query, key, value = (operand_type(o) for o in op.operands[:3])
    positions = product(query.shape[:3]) * key.shape[2]
    return positions * (query.shape[3] + value.shape[3]) * 2


def _attention_mixes(op: Op, symbol: str) -> bool:
    """Also where only queries run along the axis: what a query sees depends on its position."""
    return any(symbol in dim_symbols(operand_type(operand).shape[2]) for operand in op.operands[:2])


def _attention_rowwise(op: Op, symbol: str) -> bool:
    """No query looks at another; the keys are its own matter."""
    return symbol not in dim_symbols(operand_type(op.operands[1]).shape[2])


def _attention_step(builder: StepBuilder, op: Op, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep keys and values in a cache: of all positions so far, or in a ring where the queries see a window of them."""
    absent: tuple[Any, ...] = (None,) * (7 - len(operands))
    query, key, value, bias, position, slopes, sinks = operands + absent
    if position is not None:
        raise UnsupportedError(f"{op.describe()} has a position already, which a step gives it")
    # Keys that do not grow, such as a learned prefix, need no cache.
    if builder.sequence not in dim_symbols(operand_type(op.operands[1]).shape[2]):
        return (builder.add("attention", (query, key, value, bias, builder.position, slopes, sinks), op.attributes),)
    if op.attributes["mask"] != "causal":
        raise UnsupportedError(f"{op.describe()} is not causal: a step cannot see the positions that follow it")
    if bias is not None:
        raise UnsupportedError(f"{op.describe()} adds a dense bias [queries, keys], which has no incremental form")
    is_ring = op.attributes["window"] is not None
    kept = {name: op.attributes[name] for name in ("window", "sink")} if is_ring else {}
    slots = _room(op, builder.chunk) if is_ring else builder.capacity
    cached = []
    for suffix, new in (("keys", key), ("values", value)):
        b, heads, _, size = new.type.shape
        state = builder.state(suffix, TensorType(builder.cache, (b, heads, slots, size)))
        following = builder.add("cache_update", (state, new, builder.position), kept, hint=f"{state.name}_next")
        builder.update(state, following)
        cached.append(following)
    attributes = {**op.attributes, "ring": is_ring}
    return (builder.add("attention", (query, *cached, None, builder.position, slopes, sinks), attributes),)


def _mask(op: Op) -> TensorType:
    _check_mask(op)
    queries, keys = op.attributes["queries"], op.attributes["keys"]
    return TensorType(DType.f32, (1, 1, queries, keys))  # type: ignore[arg-type]


def _mask_reference(op: Op) -> Any:
    import torch

    queries: Any = op.attributes["queries"]
    keys: Any = op.attributes["keys"]
    allowed = _allowed(op, torch.arange(queries), torch.arange(keys))
    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))[None, None]


def _cache_update(op: Op) -> TensorType:
    cache, new, position = (operand_type(o) for o in op.operands)
    same = cache.rank == new.rank == 4 and all(cache.shape[i] == new.shape[i] for i in (0, 1, 3))
    if not same or position.shape != ():
        expected = "cache [b, g, c, d], new [b, g, t, d] and a scalar position"
        raise IRError(f"expected {expected}, got {cache}, {new}, {position}")
    if isinstance(cache.element, QuantizedType) and cache.element != QUANTIZED_ROWS:
        raise IRError(f"a cache of codes is {QUANTIZED_ROWS}, got {cache}")
    if op.attributes["window"] is not None:
        _check_ring(op, new.shape[2], cache.shape[2])
    return cache


def _cache_update_reference(op: Op, cache: Any, new: Any, position: Any) -> Any:
    import torch

    following = cache.clone()
    # Codes are held as the numbers they stand for; a cache in float64 is one that is not to be rounded.
    if isinstance(operand_type(op.operands[0]).element, QuantizedType) and cache.dtype != torch.float64:
        new = quantize_rows(new.float())
    if op.attributes["window"] is not None:
        _check_ring(op, new.shape[2], cache.shape[2])
        return following.index_copy(2, _slots(op, position + torch.arange(new.shape[2]), cache.shape[2]),
                                    new.to(cache.dtype))  # fmt: skip
    start = int(position)
    if start + new.shape[2] > cache.shape[2]:
        raise IRError(f"{op.describe()}: position {start} + {new.shape[2]} tokens pass the capacity {cache.shape[2]}")
    following[:, :, start : start + new.shape[2]] = new.to(cache.dtype)
    return following


_ATTENTION_MEANING = """
query is [b, h, s, d], key [b, g, n, d], value [b, g, n, e], the result f32[b, h, s, e]. h is a multiple of g: query
head i reads head i g / h, rounded down, of key and value. Query i stands at p = position + i (position has no axes;
absent it is 0), key j at j.

    score[i, j] = softcap tanh(scale q[i] . k[j] / softcap)    (`softcap` none: scale q[i] . k[j], with `scale`)
                  + slope (j - p) + bias[i, j]
    weight[i, j] = exp(score[i, j]) / (exp(sink) + the sum over all visible keys l of exp(score[i, l]))
    result[i] = the sum over visible keys j of weight[i, j] v[j]

slopes [h] (ALiBi, Press 2022) and sinks [h] hold a number per query head, and where absent their term is left out;
bias broadcasts to [b, h, s, n]. Key j is visible to the query at p where all of these hold: j <= p with `mask` =
"causal" (all keys with "full"); p - j < `window` or j < `sink` (StreamingLLM, Xiao et al. 2023), unless there is no
window; p // `chunk` = j // `chunk`, unless none. A query that sees no key gives 0.

In a step, keys and values of all positions so far are kept in two caches, and position is that of the first token. Of
a causal window they are kept in rings of n slots, as cache_update writes them, and `ring` is true: with L = position +
s - 1, the last position, key and value at slot i < sink are those of position i, at other slots i those of the position
L - ((L - i) mod (n - sink)), where that is sink or more; the others are empty. n is at least sink + window - 1 + s.
""".strip()
def _couple_attention(axes: AxisLinker, op: Op) -> None:
    query, key, value = op.operands[:3]
    couple_heads(axes, query, key, value)
    bias = axes.operand(3)
    if bias is not None and len(axes.shape(bias)) > 2 and axes.shape(bias)[-3] == axes.shape(query)[1]:
        axes.link(bias, -3, query, 1)
    for index in (5, 6):
        axes.link(axes.operand(index), 0, query, 1)


def couple_heads(axes: AxisLinker, query: Operand, key: Operand, value: Operand) -> None:
    """Query head i reads head i g / h of key and value: with one of these go all its queries."""
    heads, groups = axes.shape(query)[1], axes.shape(key)[1]
    if not isinstance(heads, int) or not isinstance(groups, int):
        return
    axes.link_same(query, axes.result, but=(3,))
    axes.link_same(key, value, but=(3,))
    axes.link(query, 3, key, 3)
    axes.link(value, 3, axes.result, 3)
    axes.link(query, 1, key, 1, ([head * groups // heads for head in range(heads)], range(groups)))


def _couple_cache_update(axes: AxisLinker, op: Op) -> None:
    state, new = op.operands[:2]
    axes.link_same(state, axes.result)
    axes.link_same(new, axes.result, but=(2,))


SPECS: tuple[OpSpec, ...] = (
    OpSpec("attention", ("query", "key", "value", "bias?", "position?", "slopes?", "sinks?"), _attention,
           _attention_reference,
           "softmax(scale q k^T + mask) v per head, with grouped heads, window, chunks, ALiBi, sinks and soft cap",
           {"scale": Required(float), **_MASK, "sink": None, "softcap": None, "ring": False},
           flops=_attention_flops, mixes=_attention_mixes, step=_attention_step, rowwise=_attention_rowwise,
           couple=_couple_attention, meaning=_ATTENTION_MEANING,
           example='%q: f32[b, 8, s, 16], %k: f32[b, 2, s, 16], %v: f32[b, 2, s, 16] -> attention(%q, %k, %v) '
                   '{scale = 0.25, mask = "causal", window = 128} : f32[b, 8, s, 16]'),
    OpSpec("attention_mask", (), _mask, _mask_reference,
           "a structural mask as numbers: 0 where a query may see a key, else -inf; [1, 1, queries, keys]",
           {"queries": Required(int), "keys": Required(int), **_MASK},
           mixes=lambda op, symbol: any(symbol in dim_symbols(d) for d in op.results[0].shape),
           meaning="Of shape [1, 1, `queries`, `keys`], f32, the queries at positions 0, 1, ...; `mask`, `window` and "
                   "`chunk` as in attention.",
           example='%ids: i64[b, s] -> attention_mask() {queries = s, keys = s, mask = "causal"} : f32[1, 1, s, s]'),
    OpSpec("cache_update", ("cache", "new", "position"), _cache_update, _cache_update_reference,
           "the cache with `new` [b, g, t, d] written at position, position + 1, ...",
           {"window": None, "sink": None}, mixes=lambda op, symbol: True,
           couple=_couple_cache_update,
           meaning="The result is cache [b, g, c, d], with new[..., i, :] converted to its element type in place of "
                   "cache[..., position + i, :]; to q8g32 as quantize_rows converts. position has no axes; position + "
                   "t is at most c. With a `window` the cache is a ring, for attention with this window and this "
                   "`sink` (0 where none): position p is written to slot p where p < sink, else to sink + ((p - sink) "
                   "mod (c - sink)), and c is at least sink + window - 1 + t. The result may use the memory of the "
                   "cache where nothing else reads it.",
           example="%cache: f16[b, 2, c, 16], %new: f32[b, 2, t, 16], %position: i64[] -> cache_update(%cache, %new, "
                   "%position) : f16[b, 2, c, 16]"),
)  # fmt: skip
