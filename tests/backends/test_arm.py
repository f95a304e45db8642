"""Target arm: cross-compiled programs, run by an emulator, have the interpreter's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import slmopt
from slmopt.backends.arm.backend import ArmBackend
from slmopt.backends.cpu.backend import CpuBackend
from slmopt.backends.tvm.isa import Isas, read_isa
from slmopt.cross import host_machine
from slmopt.emulation import library_machine, runner_logits
from slmopt.errors import ArtifactError, InputError
from slmopt.interpreter import forward, step_through
from slmopt.target import parse_target
from tests.backends.native import BUILTIN
from tests.backends.odd_ops import odd_linears, odd_ops
from tests.backends.op_module import INTEGERS, NORMALS, ROWS, OpModule
from tests.emulators import needs_emulator
from tests.rewritten import CONTEXT, TOKENS, TOLERANCE, VARIETY, raised, rewritten
from tests.toy_model import toy_model

ISAS = Isas(BUILTIN.isas, "aarch64")
ARM = ArmBackend(BUILTIN)
# A number on the edge between two 8-bit codes may fall either way: as tests/backends/test_small_models.py has it.
CODE_ERROR = 0.05


def choose(target: str) -> Any:
    return ARM.choose_isa(parse_target(target))


# --- what is known without a compiler ------------------------------------------------------------------------------
def test_the_sets_of_a_machine_are_its_own() -> None:
    assert ISAS.names() == ["neon-bf16", "neon-dot", "neon"]
    with pytest.raises(InputError, match=r"avx2 is one of x86_64 processors.*compiles for aarch64, which has neon,"):
        ISAS.load("avx2")
    with pytest.raises(InputError, match=r"unknown instruction set 'neno'; did you mean 'neon'\?; known are neon,"):
        ISAS.load("neno")
    for name in ISAS.names():
        isa = ISAS.load(name)
        assert isa.machine == "aarch64" and len(isa.cpu_features) == len(isa.flags) and not isa.unsigned


@pytest.mark.skipif(host_machine() == "aarch64", reason="what this machine has decides there")
def test_elsewhere_the_usual_set_is_compiled_for() -> None:
    assert choose("arm").name == "neon-dot"
    assert ARM.status()["isa"] == "neon-dot" and not ARM.status()["run"]


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("fp asimd evtstrm crc32 cpuid", "neon"),  # Cortex-A72
        ("fp asimd fphp asimdhp asimddp", "neon-dot"),
        ("fp asimd fphp asimdhp asimddp sve bf16", "neon-bf16"),
        ("fp", None),
    ],
)
def test_on_such_a_machine_it_gets_what_it_has(
    features: str, expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nFeatures\t: {features}\nCPU part\t: 0xd08\n")
    monkeypatch.setattr("slmopt.backends.tvm.isa._CPU_INFO", tmp_path / "cpuinfo")
    for place in ("slmopt.backends.tvm.isa", "slmopt.backends.tvm.processor", "slmopt.cross"):
        monkeypatch.setattr(f"{place}.host_machine", lambda: "aarch64")
    status = ARM.status()
    assert status["run"] and status["isa"] == expected and status["install"] == [] and status["emulate"] is None
    if expected is None:
        with pytest.raises(InputError, match=r"none of the instruction sets on offer \(neon-bf16, neon-dot, neon\)"):
            choose("arm")
    other = CpuBackend(BUILTIN).status()
    assert not other["run"] and other["isa"] == "avx2"  # for which this machine compiles


@pytest.mark.parametrize(
    ("cpu", "expected"), [("cortex-a53", "neon"), ("cortex-a76", "neon-dot"), ("neoverse-v1", "neon-bf16")]
)
def test_a_named_processor_gets_what_it_has(cpu: str, expected: str) -> None:
    isa = choose(f"arm:cpu={cpu}")
    assert (isa.name, isa.cpu) == (expected, cpu)
    assert set(isa.cpu_features) >= set(ISAS.load(expected).cpu_features)
    assert ("sve" in isa.cpu_features) == (cpu == "neoverse-v1")  # it may be used, so it is asked for


def test_a_processor_that_cannot_be_meant() -> None:
    with pytest.raises(InputError, match=r"LLVM knows no cpu 'cortex-a67'; did you mean 'cortex-a"):
        choose("arm:cpu=cortex-a67")
    with pytest.raises(InputError, match=r"cortex-a53 has no neon-dot"):
        choose("arm:cpu=cortex-a53,isa=neon-dot")


def test_instructions_of_another_machine_are_refused(tmp_path: Path) -> None:
    text = BUILTIN.isas["neon-dot"].file().read_text()
    path = tmp_path / "mixed.toml"
    path.write_text(text.replace("aarch64-unknown", "x86_64-unknown"))
    with pytest.raises(InputError, match=r"dot sdot is made of NEON instructions of aarch64, and the triple"):
        read_isa(path)
    path.write_text(text.replace("lanes = 4", "lanes = 8"))
    with pytest.raises(InputError, match=r"dot sdot is made of NEON instructions and needs lanes = 4, got 8"):
        read_isa(path)


def test_without_a_compiler_the_error_names_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("slmopt.cross._find_zig", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("slmopt.cross.host_machine", lambda: "x86_64")
    monkeypatch.setattr("slmopt.backends.tvm.processor.host_machine", lambda: "x86_64")
    status = ARM.status()
    assert not status["compile"] and status["compiler"] is None and status["emulate"] is None
    assert "ziglang (pip) or gcc-aarch64-linux-gnu (Debian)" in status["install"]
    assert "qemu-user-static (Debian)" in status["install"]
    with pytest.raises(InputError, match=r"no C compiler for aarch64 was found: install ziglang \(pip\) or"):
        slmopt.compile(toy_model(), "arm", tmp_path / "artifact", verify=False)
    assert not (tmp_path / "artifact").exists()


# --- programs under an emulator ------------------------------------------------------------------------------------
@needs_emulator
@pytest.mark.parametrize("name", [VARIETY[0], *(pytest.param(name, marks=pytest.mark.slow) for name in VARIETY[1:])])
def test_other_architectures_have_the_interpreters_logits(name: str, tmp_path: Path) -> None:
    module = rewritten(raised(tmp_path, name), [])
    ids = torch.randint(3, 97, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = forward(module, ids)[0].numpy()
    ARM.build(module, parse_target(f"arm:context={CONTEXT},chunk=16"), tmp_path / "artifact")
    for splits in ([TOKENS], [1] * 6 + [TOKENS - 6], [17, 1, TOKENS - 18]):
        found = runner_logits(tmp_path / "artifact", ids[0].tolist(), splits=splits, threads=2)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.slow
@needs_emulator
def test_linears_of_odd_sizes_without_dot_products(tmp_path: Path) -> None:
    _check_odd(odd_linears(), "neon", tmp_path)


@needs_emulator
def test_products_of_pairs_of_bfloat16(tmp_path: Path) -> None:
    _check_odd(odd_linears(rounding=True), "neon-bf16", tmp_path)


@pytest.mark.slow
@needs_emulator
def test_every_kernel_at_odd_sizes(tmp_path: Path) -> None:
    _check_odd(odd_ops(), "neon-dot", tmp_path)


def _check_odd(ops: OpModule, isa: str, directory: Path) -> None:
    artifact = ops.compile(isa, directory, backend="arm")
    normals = list(NORMALS)
    for ids, splits in ((list(INTEGERS), [1, 23]), (normals, [9, 1, len(normals) - 10]), (list(range(40, ROWS)), None)):
        ops.check(runner_logits(artifact, ids, splits=splits), ids)


@needs_emulator
@pytest.mark.parametrize(("recipe", "target"), [("w4-kv8", "arm:isa=neon"), ("w8", "arm:cpu=neoverse-v1")])
def test_quantized_models(recipe: str, target: str, tmp_path: Path) -> None:
    kept: list[slmopt.Module] = []
    slmopt.compile(toy_model(), target, tmp_path / "toy", recipe=recipe, verify=False, observe=kept.append)
    ids = torch.randint(0, int(kept[0].metadata["vocab"]), (1, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = step_through(kept[0], ids, [24])[0].numpy()
    for splits in ([24], [5, 1, 1, 17]):
        found = runner_logits(tmp_path / "toy", ids[0].tolist(), splits=splits)
        error = np.abs(found - expected).max(-1) / np.abs(expected).max()
        assert error.max() <= CODE_ERROR and np.median(error) <= 1e-4, error


@needs_emulator
def test_equal_inputs_give_equal_bytes_and_another_machine_is_told(tmp_path: Path) -> None:
    for name in ("one", "two"):
        slmopt.compile(toy_model(), "arm", tmp_path / name / "toy", recipe="w8", verify=False)
    files = sorted(path.name for path in (tmp_path / "one" / "toy").iterdir())
    for name in files:
        assert (tmp_path / "one" / "toy" / name).read_bytes() == (tmp_path / "two" / "toy" / name).read_bytes(), name
    library = next((tmp_path / "one" / "toy").glob("lib*.so"))
    assert library_machine(library) == "aarch64"
    if host_machine() != "aarch64":
        with pytest.raises(ArtifactError, match=r"compiled for another machine\?.*`slmopt verify --runner`"):
            slmopt.open(tmp_path / "one" / "toy")


@needs_emulator
def test_a_processor_without_the_instructions_is_refused(tmp_path: Path) -> None:
    slmopt.compile(toy_model(), "arm:isa=neon-dot", tmp_path / "toy", recipe="f32", verify=False)
    sysroot = "/usr/aarch64-linux-gnu"
    with pytest.raises(ArtifactError, match=r"this CPU lacks 'asimddp'; compile the model for this machine"):
        runner_logits(tmp_path / "toy", [1], f"qemu-aarch64-static -cpu cortex-a53 -L {sysroot}")
