"""Hugging Face directories: sixteen architectures against eager transformers, names, ties, shards, precision, place."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slmopt import interpreter
from slmopt.frontends import export, huggingface
from slmopt.ir.graph import Module, Weight
from slmopt.ir.text import parse_module
from tests.architectures import ARCHITECTURES, save_tiny

SIZES = ((2, 13), (3, 29), (1, 5), (1, 2), (4, 1), (1, 1))
SHARED = Path(__file__).parents[3] / "shared" / "models" / "stories260K"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks the network fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def difference(module: Module, model: torch.nn.Module) -> float:
    """The largest difference of logits over several batches and lengths, relative to the largest logit."""
    worst = 0.0
    for size in SIZES:
        ids = torch.randint(0, module.metadata["vocab"], size, generator=torch.Generator().manual_seed(sum(size)))
        with torch.no_grad():
            expected = model(input_ids=ids, use_cache=False).logits
            found = interpreter.forward(module, ids)
        assert found.shape == expected.shape
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_equal_eager(name: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path, name)
    module = huggingface.load(tmp_path)
    assert difference(module, model) < 1e-5
    assert parse_module(str(module)) == module


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "bloom"])
def test_functional_form_gives_the_same_graph(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path, name)
    monkeypatch.setattr(export, "_is_convertible", lambda program: False)
    assert difference(huggingface.load(tmp_path), model) < 1e-5


def attention_of(module: Module) -> list[dict[str, Any]]:
    return [{name: op.attributes[name] for name in ("mask", "window", "chunk", "softcap")}
            for op in module.graph().walk() if op.name == "attention"]  # fmt: skip


def test_window_softcap_and_full_layers_are_structure(tmp_path: Path) -> None:
    save_tiny(tmp_path, "gemma2")
    window = {"mask": "causal", "window": 6, "chunk": None, "softcap": 5.0}
    assert attention_of(huggingface.load(tmp_path)) == [window, {**window, "window": None}, window]


def test_window_wider_than_any_example_is_seen(tmp_path: Path) -> None:
    model = save_tiny(tmp_path, "mistral", sliding_window=5000, max_position_embeddings=8192)
    module = huggingface.load(tmp_path)
    assert [found["window"] for found in attention_of(module)] == [5000, 5000]
    assert difference(module, model) < 1e-5


def test_places_and_names_come_from_modules(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    graph = huggingface.load(tmp_path).graph()
    norm = graph.value("layers_1_post_attention_layernorm")
    assert norm.op is not None and norm.op.location == "model.layers.1.post_attention_layernorm"
    query = graph.value("layers_0_self_attn_q_proj")
    assert query.op is not None and query.op.name == "linear"
    assert query.op.operands[1] == Weight("model.layers.0.self_attn.q_proj.weight", query.op.operands[1].type)  # type: ignore[union-attr]
    assert graph.outputs[0].name == "lm_head"


def test_tied_weights_have_one_key(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    module = huggingface.load(tmp_path)
    used = [operand.key for op in module.graph().walk() for operand in op.operands if isinstance(operand, Weight)]
    assert used.count("model.embed_tokens.weight") == 2 and "lm_head.weight" not in module.weights


def test_only_the_head_stored_of_a_tied_pair(tmp_path: Path) -> None:
    model = save_tiny(tmp_path, "llama")
    rename(tmp_path, r"^model\.embed_tokens\.weight$", "lm_head.weight")
    assert difference(huggingface.load(tmp_path), model) < 1e-5


def test_tied_by_config_but_stored_unlike_stay_two(tmp_path: Path) -> None:
    """transformers loads such a checkpoint as two weights, whatever the config says; so do we."""
    model = save_tiny(tmp_path, "llama", tie_word_embeddings=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    module = huggingface.load(tmp_path)
    assert "lm_head.weight" in module.weights
    assert difference(module, model) < 1e-5


def test_tied_by_config_and_stored_twice_alike_stay_one(tmp_path: Path) -> None:
    model = save_tiny(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    twice = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(twice, tmp_path / "model.safetensors")
    module = huggingface.load(tmp_path)
    assert "lm_head.weight" not in module.weights and difference(module, model) < 1e-5


def rename(directory: Path, pattern: str, by: str) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({re.sub(pattern, by, name): value for name, value in tensors.items()}, directory / "model.safetensors")


@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama"])
def test_names_without_the_base_prefix(name: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path, name)
    rename(tmp_path, r"^(transformer|model)\.", "")
    assert difference(huggingface.load(tmp_path), model) < 1e-5


def test_buffers_that_older_checkpoints_store_are_left_alone(tmp_path: Path) -> None:
    model = save_tiny(tmp_path, "gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    old = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64), "transformer.h.1.attn.bias": torch.ones(1, 1, 64, 64)}
    save_file({**tensors, **old}, tmp_path / "model.safetensors")
    assert difference(huggingface.load(tmp_path), model) < 1e-5


def test_shards_with_an_index(tmp_path: Path) -> None:
    model = save_tiny(tmp_path, "qwen2")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert difference(huggingface.load(tmp_path / "shards"), model) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_compute_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save_tiny(tmp_path, "llama").to(dtype).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    module = huggingface.load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert {str(type.element) for type in module.weight_types().values()} == {"f32"}
    assert difference(module, model) < 1e-5


def test_loading_reads_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slmopt.frontends.safetensors_files import StoredTensor

    save_tiny(tmp_path, "qwen2")

    def refuse(tensor: StoredTensor) -> None:
        raise AssertionError(f"{tensor} was read")

    monkeypatch.setattr(StoredTensor, "load", refuse)
    huggingface.load(tmp_path)


def test_transformers_is_left_as_it_was(tmp_path: Path) -> None:
    from transformers import masking_utils

    before = (
        masking_utils.find_packed_sequence_indices,
        masking_utils.chunked_overlay,
        torch.nn.Module.register_parameter,
    )
    save_tiny(tmp_path, "llama")
    huggingface.load(tmp_path)
    after = (
        masking_utils.find_packed_sequence_indices,
        masking_utils.chunked_overlay,
        torch.nn.Module.register_parameter,
    )
    assert before == after


def test_metadata_says_what_a_runtime_needs(tmp_path: Path) -> None:
    save_tiny(tmp_path / "my model", "gpt2")
    generation = {"bos_token_id": 5, "eos_token_id": [6, 7]}
    (tmp_path / "my model" / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "my model" / "tokenizer.json").write_text("{}")
    metadata = huggingface.load(tmp_path / "my model").metadata
    assert metadata.pop("source")
    assert metadata == {
        "name": "my_model", "vocab": 97, "context": 64, "bos_token_id": 5, "eos_token_ids": [6, 7], "batch": "b",
        "sequence": "s", "tokenizer": str(tmp_path / "my model" / "tokenizer.json"),
    }  # fmt: skip


def test_metadata_without_tokenizer_or_generation_config(tmp_path: Path) -> None:
    save_tiny(tmp_path, "bloom")
    (tmp_path / "generation_config.json").unlink()
    metadata = huggingface.load(tmp_path).metadata
    assert (metadata["tokenizer"], metadata["context"]) == (None, None)
    assert (metadata["bos_token_id"], metadata["eos_token_ids"]) == (1, [2])


@pytest.mark.parametrize("options", [{"add_bos_token": False}, {"bos_token": None}])
def test_no_token_begins_a_text_where_the_tokenizer_adds_none(options: dict[str, Any], tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    assert huggingface.load(tmp_path).metadata["bos_token_id"] is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs shared/models/stories260K beside the repository")
def test_a_trained_model_equals_eager() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(SHARED, dtype=torch.float32, attn_implementation="eager").eval()
    assert difference(huggingface.load(SHARED), model) < 1e-5
