"""Models of true shapes with random weights, as Hugging Face directories: what a speed benchmark needs and no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["SHAPES", "write_model", "write_shape"]

SHAPES: dict[str, dict[str, Any]] = {
    "smollm-135m": {
        "kind": "LlamaConfig", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 2304,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "kind": "Qwen2Config", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 2304,
        "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    },
}  # fmt: skip


def write_model(name: str, directory: Path) -> int:
    """Write the model `name` with random bfloat16 weights; returns the number of its weights."""
    return write_shape(SHAPES[name], directory)


def write_shape(shape: Mapping[str, Any], directory: Path) -> int:
    """Write a model of a shape as in SHAPES."""
    import torch
    import transformers

    options = dict(shape)
    config = getattr(transformers, options.pop("kind"))(**options, dtype="bfloat16")
    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    model.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())
