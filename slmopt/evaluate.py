"""Perplexity of a module, computed by the interpreter; what metrics measure, opened from whatever stands for it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.calibrate import Calibration
from slmopt.errors import InputError
from slmopt.interpreter import run

if TYPE_CHECKING:
    import torch

    from slmopt.ir.graph import Module
    from slmopt.metrics import CompiledSubject, ModuleSubject
    from slmopt.runtime import LanguageModel

__all__ = ["measure_perplexity", "open_subject"]

_LOGITS_AT_ONCE = 1 << 22  # numbers: so many rows of logits become probabilities at a time


def measure_perplexity(
    module: Module, calibration: Calibration, report: Callable[[str, float], None] = lambda what, share: None
) -> float:
    """exp(mean of -log p) over every token but the first of each document, in float64.

    Each document is run whole through @forward, alone in its batch: the convention of `LanguageModel.perplexity`.
    InputError where no document has a token to predict.
    """
    import torch

    nats, tokens = 0.0, 0
    for index, document in enumerate(calibration.documents):
        with torch.no_grad():
            (logits, *_) = run(module, "forward", [torch.tensor([document])])
        nats += _nats(logits[0], document)
        tokens += len(document) - 1
        report("perplexity", (index + 1) / len(calibration.documents))
    if tokens == 0:
        raise InputError("the text has no token to predict: it needs a document of two tokens or more")
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


@contextmanager
def open_subject(
    source: Module | LanguageModel | str | os.PathLike[str], threads: int = 0
) -> Iterator[ModuleSubject | CompiledSubject]:
    """What metrics measure: a module, an opened model, or the artifact or model at a path.

    InputError where it is a module without weights.
    """
    from slmopt.artifact import MANIFEST
    from slmopt.ir.graph import Module
    from slmopt.metrics import CompiledSubject, ModuleSubject

    if isinstance(source, str | os.PathLike) and (Path(source) / MANIFEST).is_file():
        from slmopt.runtime import open as open_artifact

        with open_artifact(source, threads) as model:
            yield CompiledSubject(model)
        return
    if isinstance(source, str | os.PathLike):
        from slmopt.api import load

        source = load(source)
    if not isinstance(source, Module):
        yield CompiledSubject(source)
        return
    for key in source.weight_types():
        if key not in source.weights:
            raise InputError(f"@{source.name} has no weights (@{key} is missing): IR text alone cannot be measured; "
                             "give the model's directory")  # fmt: skip
    yield ModuleSubject(source)
