"""The trained model and text beside the repository, where they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import slmopt
from slmopt.calibrate import SEPARATOR, tokenize_documents
from slmopt.pipeline import Context, Pass, Pipeline

__all__ = [
    "EVALUATED",
    "MODEL",
    "REFERENCE",
    "TEXT",
    "calibration_text",
    "evaluation_text",
    "needs_stories",
    "perplexity_after",
]

_SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
MODEL = _SHARED / "models" / "stories260K"
TEXT = _SHARED / "text" / "tinystories_clean.txt"
REFERENCE = 4.6218  # perplexity of the text, fp32 eager PyTorch, BOS first, one story a window of 512
EVALUATED = 4.3782  # of `evaluation_text`, likewise

needs_stories = pytest.mark.skipif(
    not (MODEL.is_dir() and TEXT.is_file()), reason="the trained model and text of ../shared are not here"
)


def _stories() -> list[str]:
    return [story for story in TEXT.read_text().split(SEPARATOR) if story.strip()]


def evaluation_text() -> str:
    """The first 120 stories."""
    return SEPARATOR.join(_stories()[:120])


def calibration_text() -> str:
    """The last 130 stories; none of them is among those for evaluation."""
    return SEPARATOR.join(_stories()[-130:])


def perplexity_after(passes: Sequence[Pass], directory: Path) -> float:
    """What the trained model's compiled artifact reaches on the evaluation text after passes, given the calibration
    text. Nothing is verified."""
    module = slmopt.load(MODEL)
    text = tokenize_documents(module.metadata, calibration_text())
    Pipeline(list(passes), verify=False).run(module, Context(calibration=text))
    artifact = slmopt.compile(module, "cpu", directory / "artifact", verify=False)
    with slmopt.open(artifact) as compiled:
        return compiled.perplexity(evaluation_text()).perplexity
