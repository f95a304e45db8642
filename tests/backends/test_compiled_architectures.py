"""Every architecture, compiled: eager logits = @forward = @step = the library's, whole and in parts, to 1e-3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import slmopt.runtime
from slmopt.backends.cpu.backend import CpuBackend
from slmopt.frontends import huggingface
from slmopt.interpreter import forward, step_through
from slmopt.ir.graph import Module
from slmopt.passes.canonicalize.canonicalize import Canonicalize
from slmopt.passes.fuse.fuse import Fuse
from slmopt.passes.incrementalize import Incrementalize
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.passes.raise_.raising import Raise
from slmopt.pipeline import Context, Pass
from slmopt.target import parse_target
from tests.architectures import ARCHITECTURES, save_tiny
from tests.backends.native import BUILTIN

CONTEXT = 48
TOLERANCE = 1e-3  # absolute, on logits
# What compiles to the same kinds of kernels as another; their traces and passes are tested elsewhere.
ALIKE = {"qwen2", "mistral", "granite", "olmo2", "smollm3", "phi3", "stablelm", "opt"}


def prepare(module: Module, *extra: Pass) -> Module:
    for each in (Raise(), Canonicalize(), *extra, Fuse(), Incrementalize()):
        each.run(module, Context())
    return module


def library_logits(artifact: Path, ids: np.ndarray, parts: list[int]) -> np.ndarray:
    """All logits of a sequence, fed in parts."""
    with slmopt.runtime.open(artifact) as model, model.session(threads=2) as session:
        found, start = [], 0
        for length in parts:
            found.append(session.logits(ids[start : start + length].tolist()))
            start += length
        return np.concatenate(found)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else [])
                                  for name in ARCHITECTURES])  # fmt: skip
def test_eager_forward_step_and_library_agree(name: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", name)
    ids = torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        eager = model(ids).logits[0].numpy()
        module = prepare(huggingface.load(tmp_path / "model"))
        np.testing.assert_allclose(forward(module, ids)[0].numpy(), eager, atol=TOLERANCE)
        for splits in ([40], [1] * 6 + [34], [17, 1, 22]):
            np.testing.assert_allclose(step_through(module, ids, splits)[0].numpy(), eager, atol=TOLERANCE)
    CpuBackend(BUILTIN).build(module, parse_target(f"cpu:context={CONTEXT},chunk=16"), tmp_path / "artifact")
    for parts in ([40], [1] * 6 + [34], [17, 1, 22]):
        found = library_logits(tmp_path / "artifact", ids[0].numpy(), parts)
        np.testing.assert_allclose(found, eager, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bloom"])
@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_quantized_library_equals_the_quantized_graph(name: str, bits: int, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", name)
    ids = torch.randint(3, 97, (1, 20), generator=torch.Generator().manual_seed(1))
    module = prepare(huggingface.load(tmp_path / "model"), Quantize(bits=bits, group=32))
    with torch.no_grad():
        expected = forward(module, ids)[0].numpy()
    CpuBackend(BUILTIN).build(module, parse_target(f"cpu:context={CONTEXT},chunk=16"), tmp_path / "artifact")
    found = library_logits(tmp_path / "artifact", ids[0].numpy(), [13, 1, 6])
    # An activation on the edge between two codes may fall either way: most rows agree closely, none is far off.
    error = np.abs(found - expected).max(-1) / np.abs(expected).max()
    assert np.median(error) < 1e-4 and error.max() < 0.02, error


@pytest.mark.parametrize("isa", ["avx2", "scalar"])
def test_every_instruction_set(isa: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "qwen3")
    ids = torch.randint(3, 97, (1, 30), generator=torch.Generator().manual_seed(2))
    module = prepare(huggingface.load(tmp_path / "model"))
    CpuBackend(BUILTIN).build(module, parse_target(f"cpu:isa={isa},context={CONTEXT}"), tmp_path / "artifact")
    with torch.no_grad():
        eager = model(ids).logits[0].numpy()
    np.testing.assert_allclose(library_logits(tmp_path / "artifact", ids[0].numpy(), [29, 1]), eager, atol=TOLERANCE)
