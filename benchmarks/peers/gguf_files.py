"""Models of benchmarks/shapes.py as GGUF files, all matrices in one type: run by the peers' Python (it has `gguf`).

    python gguf_files.py MODEL_DIRECTORY FILE.gguf Q4_0|Q8_0|F16|BF16|F32
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2"}


def write_gguf(source: Path, output: Path, kind: str) -> None:
    """Write `source` (a Hugging Face directory) with every matrix, embedding and head included, as `kind`."""
    import gguf
    import torch
    from safetensors import safe_open

    config = json.loads((source / "config.json").read_text())
    name = _ARCHITECTURES[config["model_type"]]
    layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[name], layers)
    writer = gguf.GGUFWriter(output, name)
    _write_config(writer, config)
    type = gguf.GGMLQuantizationType[kind]
    with safe_open(source / "model.safetensors", "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a mapping
            value = tensors.get_tensor(key).to(torch.float32).numpy()
            new = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if value.ndim > 1:
                writer.add_tensor(new, gguf.quants.quantize(value, type), raw_dtype=type)
            else:
                writer.add_tensor(new, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or config
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
