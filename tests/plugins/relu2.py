"""A tiny model whose feed-forward uses relu(x)^2, with a tokenizer: what the example plugin's op is for."""

from __future__ import annotations

from pathlib import Path

from tests.architectures import save_tiny

__all__ = ["WORDS", "save_relu2"]

WORDS = ["<pad>", "<s>", "</s>", *(f"w{index}" for index in range(3, 97))]


def save_relu2(directory: Path) -> None:
    """Write a Llama of two layers with the activation `relu2`, random weights and one token for each of WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    save_tiny(directory, "llama", hidden_act="relu2")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
