"""Kept traces: the same module without tracing again, and never where the model has changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slmopt.frontends import huggingface
from slmopt.frontends.traces import SeenTensors
from slmopt.ir.graph import Module
from tests.architectures import save_tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLMOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories that were traced, in order."""
    found: list[Path] = []
    trace = huggingface._trace

    def note(directory: Path, seen: SeenTensors) -> bytes:
        found.append(directory)
        return trace(directory, seen)

    monkeypatch.setattr(huggingface, "_trace", note)
    return found


def assert_equal(first: Module, second: Module) -> None:
    assert str(first) == str(second)
    assert list(first.weights) == list(second.weights)
    for key in first.weights:
        assert first.weights.type(key) == second.weights.type(key)
        assert first.weights.source(key).description == second.weights.source(key).description
        assert torch.equal(first.weights.load(key), second.weights.load(key))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma3"])
def test_a_kept_trace_gives_the_same_module(name: str, tmp_path: Path, traced: list[Path]) -> None:
    save_tiny(tmp_path / "model", name)
    assert_equal(huggingface.load(tmp_path / "model"), huggingface.load(tmp_path / "model"))
    assert len(traced) == 1


def test_a_kept_trace_gives_what_no_cache_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "model", "qwen2")
    huggingface.load(tmp_path / "model")
    kept = huggingface.load(tmp_path / "model")
    monkeypatch.setenv("SLMOPT_CACHE", "off")
    assert_equal(kept, huggingface.load(tmp_path / "model"))


def test_other_numbers_in_another_place_use_the_same_trace(tmp_path: Path, traced: list[Path]) -> None:
    save_tiny(tmp_path / "a", "llama", seed=0)
    save_tiny(tmp_path / "b", "llama", seed=1)
    first, second = huggingface.load(tmp_path / "a"), huggingface.load(tmp_path / "b")
    assert traced == [tmp_path / "a"]
    assert second.name == second.metadata["name"] == "b"
    key = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first.weights.load(key), second.weights.load(key))
    assert torch.equal(second.weights.load(key), load_file(tmp_path / "b" / "model.safetensors")[key].float())


def test_another_config_is_traced_again(tmp_path: Path, traced: list[Path]) -> None:
    save_tiny(tmp_path, "llama")
    before = huggingface.load(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rms_norm_eps": 0.25}))
    assert str(huggingface.load(tmp_path)) != str(before) and len(traced) == 2


def test_numbers_that_decided_how_a_model_is_traced_are_compared(tmp_path: Path, traced: list[Path]) -> None:
    """A config ties embedding and head, the checkpoint stores both: whether they are one depends on the numbers."""
    save_tiny(tmp_path, "llama", tie_word_embeddings=True)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    table = tensors["model.embed_tokens.weight"]

    def with_head(head: torch.Tensor) -> set[str]:
        save_file({**tensors, "lm_head.weight": head.clone().contiguous()}, path, {"format": "pt"})
        return set(huggingface.load(tmp_path).weight_types())

    assert "lm_head.weight" not in with_head(table)
    assert "lm_head.weight" in with_head(table + 1)
    assert "lm_head.weight" not in with_head(table)
    assert len(traced) == 3


def test_a_kept_trace_needs_no_transformers(tmp_path: Path, cache: Path) -> None:
    save_tiny(tmp_path / "model", "llama")
    huggingface.load(tmp_path / "model")
    code = f"import slmopt, sys; slmopt.load({str(tmp_path / 'model')!r}); sys.exit('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
