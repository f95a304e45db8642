"""Attention, its structural mask, and the cache that its step rule keeps."""

from __future__ import annotations

from typing import Any

from slmopt.errors import IRError, UnsupportedError
from slmopt.ir.dims import Dim, dim_symbols, product
from slmopt.ir.graph import Op, operand_type
from slmopt.ir.ops.language import QUANTIZED_ROWS, quantize_rows
from slmopt.ir.spec import OpSpec, Required
from slmopt.ir.step import StepBuilder
from slmopt.ir.types import DType, QuantizedType, TensorType

__all__ = ["SPECS"]

_MASK = {"mask": "causal", "window": None, "chunk": None}


def _check_mask(op: Op) -> None:
    if op.attributes["mask"] not in ("causal", "full"):
        raise IRError(f'mask must be "causal" or "full", got {op.attributes["mask"]!r}')
    for name in ("window", "chunk"):
        size = op.attributes[name]
        if size is not None and (not isinstance(size, int) or size < 1):
            raise IRError(f"{name} must be none or a positive number of positions, got {size!r}")


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
    return TensorType(DType.f32, (*query.shape[:3], value.shape[3]))


def _allowed(op: Op, queries: Any, keys: Any) -> Any:
    """Which keys [n] each query [s] may see, as bool [s, n], from their absolute positions."""
    distance = queries[:, None] - keys[None, :]
    allowed = distance >= 0 if op.attributes["mask"] == "causal" else distance == distance
    if op.attributes["window"] is not None:
        allowed = allowed & (distance < op.attributes["window"])
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
    group = query.shape[1] // key.shape[1]
    key, value = (x.to(query.dtype).repeat_interleave(group, 1) for x in (key, value))
    scores = query.matmul(key.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    queries = torch.arange(query.shape[2]) + (0 if position is None else position)
    keys = torch.arange(key.shape[2])
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
    return torch.nan_to_num(weights).matmul(value)


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
    """Keep keys and values of all positions so far in a cache; the queries of this step look at all of it."""
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
    cached = []
    for suffix, new in (("keys", key), ("values", value)):
        b, heads, _, size = new.type.shape
        state = builder.state(suffix, TensorType(builder.cache, (b, heads, builder.capacity, size)))
        following = builder.add("cache_update", (state, new, builder.position), hint=f"{state.name}_next")
        builder.update(state, following)
        cached.append(following)
    return (builder.add("attention", (query, *cached, None, builder.position, slopes, sinks), op.attributes),)


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
    return cache


def _cache_update_reference(op: Op, cache: Any, new: Any, position: Any) -> Any:
    import torch

    start = int(position)
    if start + new.shape[2] > cache.shape[2]:
        raise IRError(f"{op.describe()}: position {start} + {new.shape[2]} tokens pass the capacity {cache.shape[2]}")
    following = cache.clone()
    # Codes are held as the numbers they stand for; a cache in float64 is one that is not to be rounded.
    if isinstance(operand_type(op.operands[0]).element, QuantizedType) and cache.dtype != torch.float64:
        new = quantize_rows(new.float())
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
"causal" (all keys with "full"); p - j < `window`, unless none; p // `chunk` = j // `chunk`, unless none. A query that
sees no key gives 0. In a step, keys and values of all positions so far are kept in two caches, and position is that
of the first token.
""".strip()
SPECS: tuple[OpSpec, ...] = (
    OpSpec("attention", ("query", "key", "value", "bias?", "position?", "slopes?", "sinks?"), _attention,
           _attention_reference,
           "softmax(scale q k^T + mask) v per head, with grouped heads, window, chunks, ALiBi, sinks and soft cap",
           {"scale": Required(float), **_MASK, "softcap": None}, flops=_attention_flops, mixes=_attention_mixes,
           step=_attention_step, rowwise=_attention_rowwise, meaning=_ATTENTION_MEANING,
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
           mixes=lambda op, symbol: True,
           meaning="The result is cache [b, g, c, d], with new[..., i, :] converted to its element type in place of "
                   "cache[..., position + i, :]; to q8g32 as quantize_rows converts. position has no axes; position + "
                   "t is at most c. The result may use the memory of the cache where nothing else reads it.",
           example="%cache: f16[b, 2, c, 16], %new: f32[b, 2, t, 16], %position: i64[] -> cache_update(%cache, %new, "
                   "%position) : f16[b, 2, c, 16]"),
)  # fmt: skip
