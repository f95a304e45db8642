"""What every target must do alike: a trained model compiled, its numbers those of the interpreter, or a clear refusal.

One list of checks for all targets. A target that this machine neither runs nor emulates is skipped, with what to
install for it; what a target has no code for, it must refuse by naming the op.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import slmopt
from slmopt import Module
from slmopt.artifact_check import check_artifact
from slmopt.emulation import runner_logits
from slmopt.errors import UnsupportedError
from slmopt.interpreter import forward, step_through
from slmopt.plugins.discovery import registry
from slmopt.target import parse_target
from tests.backends.sessions import feed
from tests.stories import MODEL, calibration_text, needs_stories

pytestmark = needs_stories

TARGETS = ("cpu", "arm", "opencl", "cpu:via=mlir", "vulkan")
TOKENS = 64  # of a greedy continuation
PROMPT = [1, 403, 407, 261, 378]  # Once upon a time
EXACT = 1e-3  # absolute, on logits: float32 everywhere, added up in another order
# Relative to the largest logit. Activations are rounded to 8 bits, and one on the edge between two codes may fall
# either way: what it changed stays in the cache, and with it in all later rows. Before that, rows are equal but for
# float32.
ROUNDED = 3e-2
BEFORE_ROUNDING = 1e-4


# A little of every family of passes: narrower feed-forwards, shared blocks, linear attention, distillation, GPTQ, an
# 8-bit cache.
COMPOSED = (
    "raise", "canonicalize", "prune-ffn{ratio=0.25}", "share-blocks{pairs=3-4}", "attention-linear{layers=1-2}",
    "heal{tokens=20000,sampled=0}", "gptq{bits=4}", "fuse", "incrementalize{cache=q8}",
)  # fmt: skip


@functools.cache
def optimized(recipe: str) -> Module:
    """The trained model after a recipe."""
    if recipe == "composed":
        return slmopt.optimize(slmopt.load(MODEL), COMPOSED, text=calibration_text())
    return slmopt.optimize(slmopt.load(MODEL), recipe)


class Compiler:
    """Compiles the trained model for one target, each recipe once."""

    def __init__(self, target: str, directory: Path) -> None:
        self.target, self.directory = target, directory
        self.status = dict(registry().find_backend(parse_target(target).backend).status())

    def artifact(self, recipe: str) -> Path:
        """The artifact of a recipe."""
        path = self.directory / recipe
        return path if path.exists() else slmopt.compile(optimized(recipe), self.target, path)

    def logits(self, recipe: str, ids: Sequence[int], parts: Sequence[int]) -> np.ndarray:
        """All logits of token ids that the compiled program takes in parts of these lengths."""
        artifact = self.artifact(recipe)
        if not self.status["run"]:
            return runner_logits(artifact, ids, splits=parts)
        with slmopt.open(artifact) as model, model.session() as session:
            return feed(session, ids, np.cumsum(parts).tolist())


@pytest.fixture(scope="module", params=TARGETS)
def compiler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    found = Compiler(request.param, tmp_path_factory.mktemp("artifacts"))
    if not (found.status["run"] or found.status.get("emulate")):
        pytest.skip(f"{request.param} does not run here: install {', '.join(found.status['install'])}")
    return found


@pytest.fixture(scope="module")
def greedy() -> list[int]:
    """The interpreter's greedy continuation of the prompt, prompt included."""
    module, ids = optimized("f32"), list(PROMPT)
    with torch.no_grad():
        while len(ids) < len(PROMPT) + TOKENS:
            ids.append(int(forward(module, torch.tensor([ids]))[0, -1].argmax()))
    return ids


def test_greedy_tokens_are_the_interpreters(compiler: Compiler, greedy: list[int]) -> None:
    """Each of 64 tokens is the likeliest after those before it; the logits are the interpreter's."""
    parts = [len(PROMPT)] + [1] * (TOKENS - 1)
    found = compiler.logits("f32", greedy[:-1], parts)
    with torch.no_grad():
        expected = forward(optimized("f32"), torch.tensor([greedy[:-1]]))[0].numpy()
    assert found[len(PROMPT) - 1 :].argmax(-1).tolist() == greedy[len(PROMPT) :]
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


def test_a_prompt_of_any_length(compiler: Compiler, greedy: list[int]) -> None:
    """Whole, or in parts of odd lengths, a sequence has the same logits."""
    whole = compiler.logits("f32", greedy, [len(greedy)])
    for parts in ([1, 7, 31, len(greedy) - 39], [33, 2, len(greedy) - 35]):
        np.testing.assert_allclose(compiler.logits("f32", greedy, parts), whole, rtol=0, atol=EXACT)


# 4 bits are in the composed recipe, too.
@pytest.mark.parametrize("recipe", ["w8", pytest.param("w4", marks=pytest.mark.slow), "composed"])
def test_quantized_models_are_the_interpreters_or_refused_by_name(
    compiler: Compiler, greedy: list[int], recipe: str
) -> None:
    parts = [40] + [1] * (len(greedy) - 40)
    try:
        found = compiler.logits(recipe, greedy, parts)
    except UnsupportedError as refusal:
        assert "%" in str(refusal) and "linear" in str(refusal), "a refusal names the op"
        return
    with torch.no_grad():
        expected = step_through(optimized(recipe), torch.tensor([greedy]), parts)[0].numpy()
    error = np.abs(found - expected).max(-1) / np.abs(expected).max()
    assert error[0] <= BEFORE_ROUNDING and error.max() <= ROUNDED, error


def test_an_artifact_says_what_is_expected_of_it(compiler: Compiler) -> None:
    """What `slmopt verify` does, under the emulator that `slmopt targets` names where the program does not run here."""
    runner = None if compiler.status["run"] else str(compiler.status["emulate"])
    found = check_artifact(compiler.artifact("f32"), runner=runner)
    assert found and all(sequence.holds for sequence in found)


def test_what_runs_here_writes_the_same_story(compiler: Compiler, greedy: list[int]) -> None:
    """Generation through `slmopt.open`, where the program runs without an emulator."""
    if not compiler.status["run"]:
        with pytest.raises(slmopt.errors.ArtifactError, match="slmopt verify"):
            slmopt.open(compiler.artifact("f32"))
        return
    with slmopt.open(compiler.artifact("f32")) as model:
        assert list(model.generate_ids(PROMPT, TOKENS)) == greedy[len(PROMPT) :]
        assert model.generate("Once upon a time", TOKENS).startswith(", there was a little girl")
