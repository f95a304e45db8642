"""Running artifacts from Python: the same C ABI that any other language links."""

from __future__ import annotations

from slmopt.runtime.language_model import LanguageModel, Perplexity, SamplingOptions, open
from slmopt.runtime.library import Sampling
from slmopt.runtime.session import Session

__all__ = ["LanguageModel", "Perplexity", "Sampling", "SamplingOptions", "Session", "open"]
