"""Targets opencl and cuda: kernels and program near the interpreter on a device, or as far as can be seen without one.

OpenCL runs wherever there is a device of it (pocl-opencl-icd makes one of the processor), CUDA where there is an NVIDIA
device; both compile anywhere, CUDA where there is nvcc.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import slmopt
from slmopt.backends.gpu.backend import CudaBackend, DeviceBackend, OpenClBackend
from slmopt.backends.gpu.nvcc import find_nvcc
from slmopt.errors import InputError, SlmError, UnsupportedError
from slmopt.interpreter import forward, step_through
from slmopt.ir.graph import Module
from slmopt.passes.quantize.round_to_nearest import Quantize
from slmopt.runtime import LanguageModel
from slmopt.target import parse_target
from tests.backends.cuda_stand_in import make_stand_in
from tests.backends.native import BUILTIN
from tests.backends.odd_ops import odd_ops
from tests.backends.op_module import CONTEXT as ODD_CONTEXT
from tests.backends.op_module import INTEGERS, ROWS
from tests.backends.sessions import feed
from tests.rewritten import CONTEXT, TOKENS, VARIETY, raised, rewritten
from tests.toy_model import toy_model

TOLERANCE = 1e-3  # of the largest logit
SIZES = f"context={CONTEXT},chunk=16"
CUTS: tuple[list[int], ...] = ([], [1, 2, 3, 4, 5, 6], [17, 18])
IDS = torch.randint(3, 97, (1, TOKENS), generator=torch.Generator().manual_seed(1))

OPENCL, CUDA = OpenClBackend(BUILTIN), CudaBackend(BUILTIN)
needs_opencl = pytest.mark.skipif(not OPENCL.devices(), reason="no OpenCL device: install pocl-opencl-icd")
needs_cuda = pytest.mark.skipif(not CUDA.devices(), reason="no NVIDIA device, or no driver for it")
needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: install nvidia-cuda-nvcc (pip)")


def build(backend: DeviceBackend, module: Module, directory: Path, options: str = SIZES) -> Path:
    return backend.build(module, parse_target(f"{backend.name}:{options}"), directory)


def check_logits(artifact: Path, module: Module) -> None:
    """Logits of a sequence, whole and in parts, are the interpreter's."""
    with torch.no_grad():
        expected = forward(module, IDS)[0].numpy()
    with slmopt.open(artifact) as model, model.session() as session:
        for cuts in CUTS:
            found = feed(session, IDS[0].tolist(), cuts)
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


# --- OpenCL ----------------------------------------------------------------------------------------------------------
@needs_opencl
@pytest.mark.parametrize("name", VARIETY)
def test_an_architecture_on_opencl(name: str, tmp_path: Path) -> None:
    module = rewritten(raised(tmp_path, name), [])
    check_logits(build(OPENCL, module, tmp_path / "artifact"), module)


@needs_opencl
def test_every_kind_of_kernel_on_opencl(tmp_path: Path) -> None:
    """At odd sizes: whole numbers bit by bit, others within what a kernel promises."""
    ops = odd_ops()
    target = f"opencl:context={ODD_CONTEXT}"
    path = slmopt.compile(ops.module, target, tmp_path / "odd", recipe=["incrementalize"], verify=False)
    with slmopt.open(path) as model, model.session() as session:
        for rows in (INTEGERS, range(ROWS)):
            for tokens, cuts in ((1, []), (33, [3, 4])):
                ids = [rows[(tokens + 5 * place) % len(rows)] for place in range(tokens)]
                ops.check(feed(session, ids, cuts), ids)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Module:
    return rewritten(raised(tmp_path_factory.mktemp("model"), "gpt2"), [Quantize(bits=4, group=32)])


@pytest.fixture(scope="module")
def model(quantized: Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    """A model with 4-bit weights."""
    if not OPENCL.devices():
        pytest.skip("no OpenCL device: install pocl-opencl-icd")
    with slmopt.open(build(OPENCL, quantized, tmp_path_factory.mktemp("artifact") / "q4")) as opened:
        yield opened


def test_4_bit_weights_on_opencl(model: LanguageModel, quantized: Module) -> None:
    with torch.no_grad():
        expected = forward(quantized, IDS)[0].numpy()
    with model.session() as session:
        error = np.abs(feed(session, IDS[0].tolist(), [13, 14]) - expected).max(-1) / np.abs(expected).max()
    # An activation on the edge between two codes may fall either way: most rows agree closely, none is far off.
    assert np.median(error) < 1e-4 and error.max() < 0.02, error


def test_after_a_fork_nothing_is_asked_of_the_device(model: LanguageModel) -> None:
    """The child is told so, and closes what it has without harm."""
    session = model.session()
    session.prefill([1])
    child = os.fork()
    if child == 0:
        found = [_error(lambda: session.prefill([2])), _error(model.session)]
        session.close()
        model.close()
        os._exit(0 if all("opened before fork()" in text for text in found) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    session.prefill([2])
    session.close()


def _error(call: Callable[[], object]) -> str:
    try:
        call()
    except SlmError as error:
        return str(error)
    return "no error"


def test_sessions_are_those_of_processors(model: LanguageModel) -> None:
    """Positions, resets, errors that change nothing, several sessions side by side."""
    ids = IDS[0].tolist()
    with model.session(threads=2) as first, model.session(threads=1) as second:
        assert (first.threads, first.position) == (2, 0)
        whole = first.logits(ids)
        second.prefill(ids[:7])
        first.reset()
        first.prefill(ids[:20])
        second.prefill(ids[7:])
        assert second.last_logits().tobytes() == whole[-1].tobytes()
        assert first.last_logits().tobytes() == whole[19].tobytes()
        assert (first.position, second.position) == (20, TOKENS)
        with pytest.raises(InputError, match=f"30 tokens do not fit: the context has {CONTEXT} positions and 20"):
            first.prefill([5] * 30)
        with pytest.raises(InputError, match="token 97 at index 1 is out of range"):
            first.prefill([5, 97])
        first.prefill(ids[20:])
        assert first.last_logits().tobytes() == whole[-1].tobytes()
        first.reset()
        assert first.position == 0
        assert first.logits(ids[:3]).tobytes() == whole[:3].tobytes()


def test_a_missing_compiler_is_told_before_passes_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "/nowhere/nvcc")
    with pytest.raises(InputError, match=r"target cuda cannot be compiled for here: install slmopt\[cuda\] \(pip\)"):
        CUDA.pipeline(toy_model(), parse_target("cuda"))


def open_elsewhere(artifact: Path, **environment: str) -> str:
    """What opening an artifact says in a process of its own with another environment."""
    script = "import sys, slmopt; slmopt.open(sys.argv[1]).session().prefill([5]); print('runs')"
    command = [sys.executable, "-c", script, str(artifact)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    return found.stdout + found.stderr


def test_a_device_is_chosen_when_a_model_is_opened(model: LanguageModel, tmp_path: Path) -> None:
    name = OPENCL.devices()[0]
    assert "runs" in open_elsewhere(model.path, SLM_DEVICE="0")
    assert "runs" in open_elsewhere(model.path, SLM_DEVICE=name[:7].upper())
    assert f"there is no OpenCL device nowhere; there are 0 {name}" in open_elsewhere(model.path, SLM_DEVICE="nowhere")
    said = open_elsewhere(model.path, OCL_ICD_VENDORS=str(tmp_path), OPENCL_VENDOR_PATH=str(tmp_path))
    assert "there is no OpenCL device: install" in said


def test_equal_inputs_give_equal_libraries(quantized: Module, tmp_path: Path) -> None:
    first, second = (build(OPENCL, quantized, tmp_path / name) for name in ("a", "b"))
    for name in ("libmodel.so", "weights.bin", "program.c", "kernels.cl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


# --- CUDA ------------------------------------------------------------------------------------------------------------
def launches(artifact: Path) -> str:
    """The step of a program: its launches, without what names the target."""
    return (artifact / "program.c").read_text().partition("static const slm_kernel")[2].partition("slm_device_code")[0]


@needs_nvcc
def test_cuda_compiles_what_opencl_runs(quantized: Module, tmp_path: Path) -> None:
    """For two architectures; the program has the launches that ran on OpenCL, with a kernel for each."""
    found = build(CUDA, quantized, tmp_path / "cuda", f"{SIZES},arch=sm_80+sm_90")
    assert launches(found) == launches(build(OPENCL, quantized, tmp_path / "opencl"))
    code = (found / "libmodel.so").read_bytes()
    kernels = re.findall(r'^  \{"(\w+)", \d+\},$', launches(found), re.MULTILINE)
    assert kernels and all(name.encode() in code for name in kernels)
    if not CUDA.devices():
        with pytest.raises(slmopt.errors.ArtifactError, match=r"libcuda\.so\.1|no CUDA device"):
            slmopt.open(found)


_FEED = """
import ctypes, sys, numpy, slmopt
ids, cuts = eval(sys.argv[2]), eval(sys.argv[3])
driver = ctypes.CDLL("libcuda.so.1")
with slmopt.open(sys.argv[1]) as model, model.session() as first, model.session() as second:
    parts = [first.logits(ids[start:stop]) for start, stop in zip([0, *cuts], [*cuts, len(ids)])]
    second.prefill(ids)
    parts.append(second.last_logits()[None])
    driver.stand_in_fail_after(5)
    for _ in range(2):
        try:
            second.prefill(ids[:2])
        except slmopt.errors.InputError as error:
            print(error)
    second.reset()
    parts.append(second.logits(ids))
    numpy.save(sys.argv[4], numpy.concatenate(parts))
print("left", driver.stand_in_allocations(), driver.stand_in_contexts())
"""


@needs_nvcc
@pytest.mark.parametrize("kind", ["f32", "q4"])
def test_the_cuda_program_with_a_driver_that_runs_on_the_processor(
    kind: str, quantized: Module, tmp_path: Path
) -> None:
    """The same kernels, launched by the same library, where only the driver is another: it also checks the calls."""
    module = quantized if kind == "q4" else rewritten(raised(tmp_path, "gemma2"), [])
    artifact = build(CUDA, module, tmp_path / "artifact")
    driver = make_stand_in(artifact, tmp_path / "driver")
    ids, found = IDS[0, :24].tolist(), tmp_path / "found.npy"
    command = [sys.executable, "-c", _FEED, str(artifact), str(ids), "[17, 18]", str(found)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "SLM_DEVICE": "stand"}
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    failed, lost, left = said.stdout.splitlines() or [said.stderr] * 3
    assert "stand-in error" in failed and lost.endswith("the session's state is lost: reset it")
    assert left == "left 0 0", said.stderr
    with torch.no_grad():
        expected = forward(module, IDS[:, :24])[0].numpy()
    error = np.abs(np.load(found) - expected[[*range(24), 23, *range(24)]]).max(-1) / np.abs(expected).max()
    assert np.median(error) < 1e-4 and error.max() < (TOLERANCE if kind == "f32" else 0.02), error


@needs_cuda
@needs_nvcc
@pytest.mark.parametrize("name", VARIETY)
def test_an_architecture_on_cuda(name: str, tmp_path: Path) -> None:
    module = rewritten(raised(tmp_path, name), [])
    check_logits(build(CUDA, module, tmp_path / "artifact"), module)


@needs_cuda
@needs_nvcc
def test_4_bit_weights_on_cuda(quantized: Module, tmp_path: Path) -> None:
    with torch.no_grad():
        expected = step_through(quantized, IDS, [TOKENS])[0].numpy()
    with slmopt.open(build(CUDA, quantized, tmp_path / "q4")) as opened, opened.session() as session:
        error = np.abs(feed(session, IDS[0].tolist(), [13, 14]) - expected).max(-1) / np.abs(expected).max()
    assert np.median(error) < 1e-4 and error.max() < 0.02, error


# --- what is refused -------------------------------------------------------------------------------------------------
def test_an_op_without_a_device_kernel_is_refused_by_name(quantized: Module, tmp_path: Path) -> None:
    lowerings = {name: offer for name, offer in BUILTIN.lowerings.items() if name != "tvm:layer_norm@gpu"}
    backend = OpenClBackend(replace(BUILTIN, lowerings=lowerings))
    problems = backend.supports(quantized, parse_target("opencl"))
    assert len(problems) == 5
    assert "%h_0_ln_1 = layer_norm" in problems[0] and "as 'tvm:layer_norm@gpu'" in problems[0]
    with pytest.raises(UnsupportedError, match="target opencl cannot compile @model"):
        backend.build(quantized, parse_target("opencl"), tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("opencl:arch=sm_80", "unknown option 'arch'; opencl takes chunk, context, device"),
        ("opencl:context=0", "context must be a positive number, got '0'"),
        ("opencl:context=4096", "context 4096 is longer than the 64 the model was made for"),
        ("cuda:arch=ampere", "'ampere' is no architecture of NVIDIA's; expected one such as sm_80"),
        ("cuda:isa=avx2", "unknown option 'isa'"),
    ],
)
def test_options_that_are_wrong(target: str, said: str, quantized: Module) -> None:
    backend: Any = {"opencl": OPENCL, "cuda": CUDA}[target.partition(":")[0]]
    with pytest.raises(InputError, match=re.escape(said)):
        backend.supports(quantized, parse_target(target))


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know(quantized: Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="knows no sm_20; it knows sm_"):
        build(CUDA, quantized, tmp_path / "never", f"{SIZES},arch=sm_20")


@pytest.mark.parametrize("backend", [OPENCL, CUDA], ids=lambda backend: backend.name)
def test_what_a_machine_can_do(backend: DeviceBackend) -> None:
    status = backend.status()
    assert status["run"] == bool(status["devices"])
    assert bool(status["install"]) == (not status["run"] or not status["compile"])
