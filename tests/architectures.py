"""Tiny models of many architectures, with random weights: one table of configs that all tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["ARCHITECTURES", "save_tiny", "tiny_config", "tiny_model"]

# Sizes that nothing divides evenly by accident: inner widths are no multiple of 32, vocabularies are odd.
_COMMON: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 76, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GPT: dict[str, Any] = {
    "vocab_size": 97, "n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {**_COMMON, "model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False},
    "qwen3": {**_COMMON, "model_type": "qwen3", "head_dim": 20},
    "mistral": {**_COMMON, "model_type": "mistral", "sliding_window": 6, "head_dim": 12},
    "gemma2": {
        **_COMMON, "model_type": "gemma2", "num_hidden_layers": 3, "head_dim": 16, "query_pre_attn_scalar": 16,
        "sliding_window": 6, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        **_COMMON, "model_type": "gemma3_text", "num_hidden_layers": 3, "head_dim": 16, "query_pre_attn_scalar": 16,
        "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi": {**_COMMON, "model_type": "phi", "partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "phi3": {**_COMMON, "model_type": "phi3"},
    "gpt2": {**_GPT, "model_type": "gpt2"},
    "gpt_neox": {
        **{name: value for name, value in _COMMON.items() if name != "num_key_value_heads"}, "model_type": "gpt_neox",
        "rotary_pct": 0.5, "use_parallel_residual": True,
    },
    "opt": {
        "model_type": "opt", "vocab_size": 97, "hidden_size": 36, "word_embed_proj_dim": 36, "ffn_dim": 76,
        "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 64, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    },
    "olmo2": {**_COMMON, "model_type": "olmo2"},
    "stablelm": {**_COMMON, "model_type": "stablelm", "partial_rotary_factor": 0.5},
    "granite": {
        **_COMMON, "model_type": "granite", "embedding_multiplier": 3.0, "attention_multiplier": 0.2,
        "residual_multiplier": 0.5, "logits_scaling": 2.0,
    },
    "smollm3": {**_COMMON, "model_type": "smollm3", "no_rope_layers": [1, 0]},
    "bloom": {
        "model_type": "bloom", "vocab_size": 97, "hidden_size": 36, "n_layer": 2, "n_head": 3, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    },
}  # fmt: skip


def tiny_config(name: str, **changes: Any) -> Any:
    """The transformers config of an architecture, some fields changed."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**{**ARCHITECTURES[name], **changes})


def tiny_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """An eager transformers model with random weights, every parameter away from its trivial start (0 or 1)."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        tiny_config(name, **changes), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model


def save_tiny(directory: Path, name: str, seed: int = 0, **changes: Any) -> Any:
    """Write a tiny model as a Hugging Face directory; returns the model."""
    model = tiny_model(name, seed, **changes)
    model.save_pretrained(directory)
    return model
