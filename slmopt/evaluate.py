"""Perplexity of a module, computed by the interpreter; the compiled model has its own in `LanguageModel.perplexity`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from slmopt.calibrate import Calibration
from slmopt.interpreter import run

if TYPE_CHECKING:
    import torch

    from slmopt.ir.graph import Module

__all__ = ["measure_perplexity"]

_LOGITS_AT_ONCE = 1 << 22  # numbers: so many rows of logits become probabilities at a time


def measure_perplexity(
    module: Module, calibration: Calibration, report: Callable[[str, float], None] = lambda what, share: None
) -> float:
    """exp(mean of -log p) over every token but the first of each document, in float64.

    Each document is run whole through @forward, alone in its batch: the convention of `LanguageModel.perplexity`.
    """
    import torch

    nats, tokens = 0.0, 0
    for index, document in enumerate(calibration.documents):
        with torch.no_grad():
            (logits, *_) = run(module, "forward", [torch.tensor([document])])
        nats += _nats(logits[0], document)
        tokens += len(document) - 1
        report("perplexity", (index + 1) / len(calibration.documents))
    return math.exp(min(nats / tokens, 700.0)) if not math.isnan(nats) else math.inf


def _nats(logits: torch.Tensor, document: tuple[int, ...]) -> float:
    """The sum of -log p(document[i + 1] | document[: i + 1])."""
    import torch

    rows, total = max(1, _LOGITS_AT_ONCE // logits.shape[-1]), 0.0
    targets = torch.tensor(document[1:])
    for start in range(0, len(targets), rows):
        part = logits[start : start + rows][: len(targets) - start].double()
        total += float(torch.nn.functional.cross_entropy(part, targets[start : start + rows], reduction="sum"))
    return total
