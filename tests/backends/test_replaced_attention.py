"""Windows in rings and linear attention, compiled: as the interpreter says, in any parts, without growing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import slmopt
from slmopt.artifact import read_manifest
from slmopt.backends.cpu.backend import CpuBackend
from slmopt.interpreter import step_through
from slmopt.ir.graph import Module
from slmopt.layers import Layers
from slmopt.passes.attention.attention_linear import AttentionLinear
from slmopt.passes.attention.attention_window import AttentionWindow
from slmopt.passes.incrementalize import Incrementalize
from slmopt.pipeline import Pass, Pipeline
from slmopt.target import parse_target
from tests.backends.native import BUILTIN
from tests.backends.sessions import TOKENS, check_parts, check_threads, feed
from tests.rewritten import VARIETY, check_rewritten, raised, rewritten
from tests.stories import MODEL, evaluation_text, needs_stories

FLOAT = 4.3782  # perplexity of the evaluation text with attention as it was trained
PASSES = {"window": AttentionWindow(size=5, sink=2), "linear": AttentionLinear()}
MIXED = (AttentionLinear(layers=Layers("1")), AttentionWindow(size=3, sink=1))


@pytest.mark.parametrize("replaced", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("name", VARIETY)
def test_library_and_interpreter_agree(name: str, replaced: Pass, tmp_path: Path) -> None:
    module = raised(tmp_path, name)
    check_rewritten(rewritten(module, [replaced]), tmp_path)


def compiled(module: Module, directory: Path, context: int) -> Path:
    return CpuBackend(BUILTIN).build(module, parse_target(f"cpu:context={context},chunk=8"), directory)


def test_parts_and_threads_change_no_byte(tmp_path: Path) -> None:
    module = rewritten(raised(tmp_path, "gemma2"), MIXED)
    ids = [3 + 7 * place % 90 for place in range(TOKENS)]
    with slmopt.open(compiled(module, tmp_path / "artifact", 40)) as model:
        check_threads(model, ids, (1, 8, 9, TOKENS))
        for cuts in ([1, 2, 19], range(TOKENS), [8, 15, 16, 17]):
            check_parts(model, 2, ids, cuts)


def test_a_ring_of_codes(tmp_path: Path) -> None:
    """The interpreter rounds the same numbers: float32 sums differ, and a code that tips over."""
    module = raised(tmp_path, "gpt_neox")
    Pipeline([AttentionWindow(size=5, sink=2), Incrementalize("q8")]).run(module)
    ids = [3 + 7 * place % 90 for place in range(TOKENS)]
    with torch.no_grad():
        expected = step_through(module, torch.tensor([ids]), [TOKENS])[0].numpy()
    with slmopt.open(compiled(module, tmp_path / "artifact", 40)) as model, model.session(1) as session:
        for cuts in ([], [1, 2, 19], range(TOKENS)):
            found = feed(session, ids, cuts)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_memory_of_a_session_does_not_grow_with_the_context(tmp_path: Path) -> None:
    module = rewritten(raised(tmp_path, "gpt_neox", max_position_embeddings=4096), MIXED)
    sizes = [
        read_manifest(compiled(module, tmp_path / str(context), context))["bytes"]["state"] for context in (64, 4096)
    ]
    assert sizes[0] == sizes[1] > 0


@needs_stories
def test_a_window_costs_a_trained_model_little(tmp_path: Path) -> None:
    recipe = ["raise", "canonicalize", "attention-window", "fuse", "incrementalize"]
    artifact = slmopt.compile(MODEL, "cpu", tmp_path / "stories", recipe=recipe)
    with slmopt.open(artifact) as model:
        assert model.perplexity(evaluation_text()).perplexity <= FLOAT * 1.012
