"""Attention without scores, positions times positions, that are kept for gradients: what most of healing would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slmopt.ir.graph import Op
from slmopt.ir.ops.linear_attention import LEAST

__all__ = ["SUBSTITUTES", "attention", "linear_attention"]

_CHUNK = 64  # positions among which linear attention is computed as a product of scores
_KNOWN = {"mask", "window", "chunk", "sink", "scale", "softcap", "ring"}


def attention(op: Op, query: Any, key: Any, value: Any, *more: Any) -> Any:
    """What the op's reference gives; where it has a soft cap, biases, a position, slopes or sinks, by its reference."""
    import torch

    given = {name for name, attribute in op.attributes.items() if attribute not in (None, False)}
    plain = op.attributes["mask"] == "causal" and not given & {"softcap", "ring"} and given <= _KNOWN
    if not plain or any(operand is not None for operand in more) or query.shape[2] != key.shape[2]:
        return op.spec.reference(op, query, key, value, *more)
    scale: Any = op.attributes["scale"]
    group = query.shape[1] // key.shape[1]
    key, value = (x.to(query.dtype).repeat_interleave(group, 1) for x in (key, value))
    allowed = _allowed(op, query.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, is_causal=allowed is None, scale=scale
    )


def _allowed(op: Op, positions: int) -> Any:
    """Which keys each query sees, bool [s, s], in a window or chunk; None where it sees all before it, and itself."""
    import torch

    window: Any = op.attributes["window"]
    chunk: Any = op.attributes["chunk"]
    if all(size is None or size >= positions for size in (window, chunk)):
        return None
    place = torch.arange(positions)
    distance = place[:, None] - place[None, :]
    seen = distance >= 0
    if window is not None:
        sink: Any = op.attributes.get("sink") or 0
        seen &= (distance < window) | (place[None, :] < sink)
    if chunk is not None:
        seen &= place[:, None] // chunk == place[None, :] // chunk
    return seen


def linear_attention(op: Op, query: Any, key: Any, value: Any, *states: Any) -> Any:
    """What the op's reference gives: scores within chunks of positions, and sums over the chunks before.

    By its reference where it has a state, or features other than elu(x) + 1.
    """
    import torch

    if op.attributes != {"feature": "elu1"} or any(state is not None for state in states):
        return op.spec.reference(op, query, key, value, *states)
    (b, heads, s, size), groups = query.shape, key.shape[1]
    more = (0, 0, 0, -s % _CHUNK)
    padded = [torch.nn.functional.pad(torch.nn.functional.elu(x) + 1, more) for x in (query, key)]
    q = padded[0].reshape(b, groups, heads // groups, -1, _CHUNK, size)
    k = padded[1].reshape(b, groups, 1, -1, _CHUNK, size)
    ones = torch.nn.functional.pad(value, (0, 1), value=1.0)  # of which the sums are what divides
    v = torch.nn.functional.pad(ones, more).reshape(b, groups, 1, -1, _CHUNK, ones.shape[-1])
    sums = k.transpose(-1, -2).matmul(v).cumsum(3)
    before = torch.cat((torch.zeros_like(sums[:, :, :, :1]), sums[:, :, :, :-1]), 3)
    found = q.matmul(before) + q.matmul(k.transpose(-1, -2)).tril().matmul(v)
    found = found.reshape(b, heads, -1, ones.shape[-1])[:, :, :s]
    return found[..., :-1] / found[..., -1:].clamp(min=LEAST)


SUBSTITUTES: Mapping[str, Callable[..., Any]] = {"attention": attention, "linear_attention": linear_attention}
