"""Real architectures with random weights: for every split, @step over the parts gives what @forward gives."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmopt.errors import UnsupportedError
from slmopt.interpreter import forward, step_through
from slmopt.ir.graph import Module
from slmopt.passes.canonicalize.canonicalize import Canonicalize
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.raise_.raising import Raise
from tests.architectures import ARCHITECTURES, save_tiny
from tests.passes.toys import apply, relative_error

QUICK = ("bloom", "gemma2", "opt")  # slopes; windows, soft caps and grouped heads; learned positions
LENGTH = 16


@cache
def load(name: str) -> Module:
    """The loaded module, as its frontend gives it; the weights are read before the directory goes."""
    from slmopt.frontends import huggingface

    with tempfile.TemporaryDirectory() as directory:
        save_tiny(Path(directory), name)
        module = huggingface.load(Path(directory))
        kept = {key: module.weights.load(key) for key in module.weight_types()}
    held = Module(module.name, module.graphs.values(), metadata=module.metadata)
    for key, value in kept.items():
        held.weights.add_tensor(key, value)
    return held


@cache
def incremental(name: str) -> Module:
    return apply(load(name), Raise(), Canonicalize(), Fuse(), Incrementalize())[0]


parts_strategy = st.lists(st.integers(1, 9), min_size=1, max_size=6).filter(lambda parts: sum(parts) <= LENGTH)


def check(name: str, parts: list[int], batch: int, seed: int) -> None:
    ids = torch.randint(3, 97, (batch, sum(parts)), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = forward(load(name), ids)
        assert relative_error(forward(incremental(name), ids), expected) < 1e-4
        assert relative_error(step_through(incremental(name), ids, parts, LENGTH), expected) < 1e-4


@pytest.mark.parametrize("name", QUICK)
@settings(deadline=None, max_examples=8)
@given(parts=parts_strategy, batch=st.integers(1, 2), seed=st.integers(0, 99))
def test_every_split_of_a_few_architectures(name: str, parts: list[int], batch: int, seed: int) -> None:
    check(name, parts, batch, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(QUICK)))
@settings(deadline=None, max_examples=30)
@given(parts=parts_strategy, batch=st.integers(1, 2), seed=st.integers(0, 99))
def test_every_split_of_the_others(name: str, parts: list[int], batch: int, seed: int) -> None:
    check(name, parts, batch, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_before_raising_too(name: str) -> None:
    """Only attention has to be raised: everything else that mixes positions has a rule, or does not mix them."""
    if not any(op.name == "attention" for op in load(name).graph().walk()):
        with pytest.raises(UnsupportedError, match="op without a step rule"):
            apply(load(name), Incrementalize())
        return
    module, _ = apply(load(name), Incrementalize())
    ids = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
    assert relative_error(step_through(module, ids, [1, 4, 6]), forward(load(name), ids)) < 1e-4
