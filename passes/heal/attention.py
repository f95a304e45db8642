"""Attention as torch computes it fastest: scores, positions times positions, are not kept for gradients."""

from __future__ import annotations

from typing import Any

from slmopt.ir.graph import Op

__all__ = ["attention"]

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
