"""What holds of every rewrite, of every architecture: it compiles, and library, @forward and @step agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import slmopt.runtime
from slmopt.backends.cpu.backend import CpuBackend
from slmopt.calibrate import Calibration
from slmopt.frontends import huggingface
from slmopt.interpreter import forward, step_through
from slmopt.ir.graph import Module
from slmopt.passes.canonicalize.canonicalize import Canonicalize
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.raise_.raising import Raise
from slmopt.pipeline import Context, Pass, Pipeline
from slmopt.target import parse_target
from tests.architectures import save_tiny
from tests.backends.native import BUILTIN
from tests.backends.sessions import feed

__all__ = ["VARIETY", "check_rewritten", "raised", "random_calibration", "rewritten"]

# Grouped queries with windows in some layers; parallel blocks; learnt positions and biases.
VARIETY = ("gemma2", "gpt_neox", "gpt2")
CONTEXT = 48
TOKENS = 40
TOLERANCE = 1e-3  # relative to the largest logit
_SPLITS = ([TOKENS], [1] * 6 + [TOKENS - 6], [17, 1, TOKENS - 18])


def raised(directory: Path, name: str, **changes: Any) -> Module:
    """A tiny model of an architecture with random weights, traced and raised."""
    save_tiny(directory / "model", name, **changes)
    module = huggingface.load(directory / "model")
    Pipeline([Raise(), Canonicalize()]).run(module)
    return module


def random_calibration(documents: int = 12, tokens: int = 32, vocabulary: int = 97) -> Calibration:
    """Documents of random tokens: enough to see that a pass which looks at text works."""
    ids = torch.randint(3, vocabulary, (documents, tokens), generator=torch.Generator().manual_seed(7))
    return Calibration(tuple(map(tuple, ids.tolist())))


def rewritten(module: Module, passes: Sequence[Pass], calibration: Calibration | None = None) -> Module:
    """The module after the passes, each checked by the pipeline; with its @step."""
    Pipeline([*passes, Fuse(), Incrementalize()]).run(module, Context(calibration=calibration))
    return module


def check_rewritten(module: Module, directory: Path) -> None:
    """The compiled library gives the logits of @forward, and so does @step, for a sequence whole and in parts."""
    ids = torch.randint(3, 97, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = forward(module, ids)[0].numpy()
        allowed = TOLERANCE * np.abs(expected).max()
        for splits in _SPLITS:
            np.testing.assert_allclose(step_through(module, ids, splits)[0].numpy(), expected, rtol=0, atol=allowed)
    artifact = directory / "artifact"
    CpuBackend(BUILTIN).build(module, parse_target(f"cpu:context={CONTEXT},chunk=16"), artifact)
    with slmopt.runtime.open(artifact) as model, model.session(threads=2) as session:
        for splits in _SPLITS:
            found = feed(session, ids[0].tolist(), np.cumsum(splits).tolist())
            np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)
