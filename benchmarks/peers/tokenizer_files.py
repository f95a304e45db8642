"""A stand-in tokenizer, for peers that will not open a model without one. Its text is never used."""

from __future__ import annotations

from pathlib import Path


def write_tokenizer(directory: Path) -> None:
    """Write tokenizer.json and its configuration into a Hugging Face directory that has none."""
    if (directory / "tokenizer.json").exists():
        return
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(ord("a") + index) for index in range(26)]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)
