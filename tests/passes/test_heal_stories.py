"""What healing gives back to a trained model that was pruned: stories260K on TinyStories."""

from __future__ import annotations

from typing import Any

import pytest

import slmopt
from slmopt.calibrate import tokenize_documents
from slmopt.evaluate import measure_perplexity
from tests.stories import MODEL, calibration_text, evaluation_text, needs_stories


@needs_stories
@pytest.mark.slow
def test_a_pruned_model_learns_again() -> None:
    model = slmopt.load(MODEL)
    stories = tokenize_documents(model.metadata, evaluation_text()).head(8000)
    recipe = ["raise", "canonicalize", "prune-ffn{ratio=0.25}"]
    options: dict[str, Any] = {"text": calibration_text(), "text_tokens": 60_000, "verify": False}
    pruned = slmopt.optimize(model, recipe, **options)
    healed = slmopt.optimize(pruned, ["heal{tokens=60000,rate=0.002,sampled=0}"], **options)
    original, cut, found = (measure_perplexity(module, stories) for module in (model, pruned, healed))
    assert found - original < (cut - original) / 2
