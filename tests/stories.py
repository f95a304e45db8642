"""The trained model and text beside the repository, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["MODEL", "REFERENCE", "TEXT", "needs_stories"]

_SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
MODEL = _SHARED / "models" / "stories260K"
TEXT = _SHARED / "text" / "tinystories_clean.txt"
REFERENCE = 4.6218  # perplexity of the text, fp32 eager PyTorch, BOS first, one story a window of 512

needs_stories = pytest.mark.skipif(
    not (MODEL.is_dir() and TEXT.is_file()), reason="the trained model and text of ../shared are not here"
)
