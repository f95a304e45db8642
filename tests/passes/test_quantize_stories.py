"""What storage costs a trained model in perplexity: stories260K on TinyStories, data beside the repository."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from slmopt.interpreter import forward
from slmopt.ir.graph import Module
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.quantize.cast_weights import CastWeights
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.pipeline import Pass
from tests.passes.toys import apply

SHARED = Path(__file__).resolve().parents[3] / "shared"
MODEL, TEXT = SHARED / "models" / "stories260K", SHARED / "text" / "tinystories_clean.txt"
pytestmark = pytest.mark.skipif(
    not (MODEL.is_dir() and TEXT.is_file()),
    reason="needs shared/models/stories260K and shared/text beside the repository",
)

# What each storage may cost in perplexity over the whole text, as a share of the float32 model's.
BUDGET: dict[str, tuple[Pass, float]] = {
    "f16": (CastWeights(), 0.0001),
    "bf16": (CastWeights("bf16", "bf16"), 0.0005),
    "w8": (Quantize(bits=8), 0.001),
    "w4": (Quantize(bits=4), 0.12),
}


@cache
def stories() -> Module:
    from slmopt.frontends import huggingface

    return huggingface.load(MODEL)


@cache
def windows() -> list[list[int]]:
    """One story a window, BOS first, cut at the model's context."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    texts = [text.strip() for text in TEXT.read_text().split("<|endoftext|>")]
    metadata = stories().metadata
    ids = ([metadata["bos_token_id"], *tokenizer.encode(t, add_special_tokens=False).ids] for t in texts if t)
    return [window[: metadata["context"]] for window in ids]


def perplexity(module: Module, texts: list[list[int]]) -> float:
    """exp of the mean negative log likelihood of every token after the first of its window."""
    loss, count = 0.0, 0
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), 8):
        batch = ordered[start : start + 8]
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
        for row, window in enumerate(batch):
            ids[row, : len(window)] = torch.tensor(window)
        scores = forward(module, ids).log_softmax(-1)
        for row, window in enumerate(batch):
            picked = scores[row, : len(window) - 1].gather(1, torch.tensor(window[1:])[:, None])
            loss, count = loss - float(picked.sum()), count + len(window) - 1
    return math.exp(loss / count)


@pytest.mark.parametrize("storage", ["f16", "bf16", "w4"])
def test_a_few_stories_stay_within_the_budget(storage: str) -> None:
    each, budget = BUDGET[storage]
    few = windows()[:16]
    module, _ = apply(stories(), each)
    assert perplexity(module, few) <= perplexity(stories(), few) * (1 + budget)


@pytest.mark.slow
@pytest.mark.parametrize("storage", BUDGET)
def test_the_whole_text_stays_within_the_budget(storage: str) -> None:
    each, budget = BUDGET[storage]
    module, _ = apply(stories(), each, Fuse())
    assert perplexity(module, windows()) <= whole() * (1 + budget)


@cache
def whole() -> float:
    """The float32 model's perplexity over the whole text."""
    return perplexity(stories(), windows())


def test_fusing_the_quantized_model_changes_no_logit() -> None:
    before, _ = apply(stories(), Quantize(bits=4))
    found, _ = apply(before, Fuse())
    ids = torch.tensor([windows()[0]])
    expected = forward(before, ids)
    assert float((forward(found, ids) - expected).abs().max() / expected.abs().max()) < 1e-4
