"""A trained model through the whole compiler: numbers, text and sizes of the compiled library, per preset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import slmopt
from tests.stories import MODEL, REFERENCE, TEXT, needs_stories

pytestmark = needs_stories


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], slmopt.LanguageModel]]:
    """The model compiled with a preset; each preset once."""
    open_models: dict[str, slmopt.LanguageModel] = {}

    def get(recipe: str) -> slmopt.LanguageModel:
        if recipe not in open_models:
            output = tmp_path_factory.mktemp(recipe) / "stories"
            slmopt.compile(MODEL, "cpu", output, recipe=recipe)
            open_models[recipe] = slmopt.open(output)
        return open_models[recipe]

    yield get
    for model in open_models.values():
        model.close()


@pytest.fixture(scope="module")
def eager() -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    return model


def test_greedy_text_is_that_of_eager_transformers(
    compiled: Callable[[str], slmopt.LanguageModel], eager: torch.nn.Module
) -> None:
    expected = eager.generate(torch.tensor([[1]]), max_new_tokens=256, do_sample=False)[0, 1:].tolist()  # type: ignore[operator]
    assert len(expected) == 256
    assert list(compiled("f32").generate_ids([1], 256)) == expected


def test_logits_of_a_whole_window(compiled: Callable[[str], slmopt.LanguageModel], eager: torch.nn.Module) -> None:
    tokens = compiled("f32").encode(TEXT.read_text()[:4000])[:512]
    assert len(tokens) == 512
    with torch.no_grad():
        expected = eager(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(compiled("f32").logits(tokens) - expected).max() <= 1e-3


@pytest.mark.parametrize(
    ("recipe", "least", "most"),
    [
        ("f32", -1e-4, 1e-4), pytest.param("f16", -1e-3, 1e-4, marks=pytest.mark.slow), ("w8", -1e-2, 1e-3),
        ("w4", 0.0, 0.12),
    ],
)  # fmt: skip
def test_perplexity_of_the_compiled_library(
    compiled: Callable[[str], slmopt.LanguageModel], recipe: str, least: float, most: float
) -> None:
    found = compiled(recipe).perplexity(TEXT.read_text())
    assert found.tokens == 99863
    assert least <= found.perplexity / REFERENCE - 1 <= most


def test_an_8_bit_cache_costs_little_and_is_smaller(compiled: Callable[[str], slmopt.LanguageModel]) -> None:
    from slmopt.artifact import read_manifest

    narrow, wide = (compiled(recipe).perplexity(TEXT.read_text()).perplexity for recipe in ("w4-kv8", "w4"))
    assert wide < narrow <= wide * 1.003
    state, halves = (read_manifest(compiled(recipe).path)["bytes"]["state"] for recipe in ("w4-kv8", "w4"))
    assert state * 16 == halves * 12  # heads of 8 numbers: 8 codes and a scale of 4 bytes


def test_four_bits_take_four_and_a_half(compiled: Callable[[str], slmopt.LanguageModel], tmp_path: Path) -> None:
    from slmopt.artifact import read_manifest

    manifest = read_manifest(compiled("w4").path)
    weights = 260_032 - 11 * 64  # all but the norms are quantized
    assert manifest["bytes"]["weights"] * 8 / weights <= 4.9  # inner width 172 is padded to 192
