"""The trained model and text beside the repository, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from slmopt.calibrate import SEPARATOR

__all__ = ["MODEL", "REFERENCE", "TEXT", "calibration_text", "evaluation_text", "needs_stories"]

_SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
MODEL = _SHARED / "models" / "stories260K"
TEXT = _SHARED / "text" / "tinystories_clean.txt"
REFERENCE = 4.6218  # perplexity of the text, fp32 eager PyTorch, BOS first, one story a window of 512

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
