"""Captures attention and its mask as one op each while a Hugging Face model is traced."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from slmopt.errors import UnsupportedError
from slmopt.masks import classify

__all__ = ["IMPLEMENTATION", "OWN_ATTENTION", "captured_attention"]

IMPLEMENTATION = "slmopt"
OWN_ATTENTION = "eager"
# Arguments that say what the mask says already, or that only steer how attention is computed.
_SAID_OTHERWISE = frozenset({
    "position_ids", "cache_position", "sliding_window", "dropout", "is_causal", "position_embeddings", "input_ids",
    "cu_seq_lens_q", "cu_seq_lens_k", "output_attentions",
})  # fmt: skip


@functools.cache
def _library() -> torch.library.Library:
    """Defines `slmopt::attention` and `slmopt::mask`: shapes only, they are never run."""
    library = torch.library.Library("slmopt", "DEF")  # type: ignore[no-untyped-call]
    library.define(  # type: ignore[no-untyped-call]
        "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, float? softcap, bool causal, Tensor? bias,"
        " Tensor? sinks) -> Tensor"
    )
    library.define(  # type: ignore[no-untyped-call]
        "mask(Tensor like, SymInt b, SymInt queries, SymInt keys, bool causal, int? window, int? chunk) -> Tensor"
    )
    torch.library.register_fake(
        "slmopt::attention", lambda q, k, v, *_: q.new_empty((*q.shape[:3], v.shape[3])), lib=library
    )
    torch.library.register_fake("slmopt::mask", lambda like, b, q, k, *_: like.new_empty((b, 1, q, k)), lib=library)
    return library


def _attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None, softcap: float | None = None,
    s_aux: torch.Tensor | None = None, position_bias: torch.Tensor | None = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """What transformers calls instead of its own attention: [b, heads, s, d] each, result [b, s, heads, d]."""
    for name, option in options.items():
        if isinstance(option, torch.Tensor) and name not in _SAID_OTHERWISE:
            raise UnsupportedError(f"attention of {type(module).__name__} takes {name!r}, which is not supported")
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    found = torch.ops.slmopt.attention(
        query, key, value, attention_mask, scale, None if softcap is None else float(softcap),
        bool(causal) and attention_mask is None, position_bias, s_aux,
    )  # fmt: skip
    return found.transpose(1, 2), None


def _mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, kv_offset: Any = 0, mask_function: Any = None,
    attention_mask: torch.Tensor | None = None, local_size: int | None = None, device: Any = "cpu", **options: Any,
) -> torch.Tensor:  # fmt: skip
    """What transformers calls to make a mask: a structural one where it is, else the dense numbers it would make."""
    from torch.utils._python_dispatch import _disable_current_modes
    from transformers import masking_utils

    options.pop("allow_is_causal_skip", None)
    options.pop("allow_is_bidirectional_skip", None)
    structure = None
    if attention_mask is None and isinstance(q_offset, int) and q_offset == kv_offset == 0:
        with _disable_current_modes():
            structure = classify(mask_function or masking_utils.causal_mask_function, local_size)
    if structure is None:
        dense: torch.Tensor = masking_utils.eager_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function=mask_function,
            attention_mask=attention_mask, device=device, **options,
        )  # fmt: skip
        return dense
    like = torch.empty(0, device=device)
    mask: torch.Tensor = torch.ops.slmopt.mask(
        like, batch_size, q_length, kv_length, structure.causal, structure.window, structure.chunk
    )
    return mask


def _chunked_overlay(chunk_size: int, left_padding: torch.Tensor) -> Any:
    """Transformers' own, without the left padding of a batch: it would close over a traced tensor."""
    return lambda batch, head, query, key: key // chunk_size == query // chunk_size


@contextmanager
def captured_attention() -> Iterator[None]:
    """While active, attention of models with implementation IMPLEMENTATION is traced as `slmopt::attention`.

    A model that has no choice of attention computes its own by tensor operations; its mask is captured all the same.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

    _library()
    AttentionInterface.register(IMPLEMENTATION, _attention)
    eager = AttentionMaskInterface()[OWN_ATTENTION]
    for name in (IMPLEMENTATION, OWN_ATTENTION):
        AttentionMaskInterface.register(name, _mask)
    replaced = {"find_packed_sequence_indices": lambda positions: None, "chunked_overlay": _chunked_overlay}
    original = {name: getattr(masking_utils, name) for name in replaced}
    for name, function in replaced.items():
        setattr(masking_utils, name, function)
    try:
        yield
    finally:
        AttentionMaskInterface.register(OWN_ATTENTION, eager)
        for name, function in original.items():
            setattr(masking_utils, name, function)
