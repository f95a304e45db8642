"""The C files, alone: under the sanitizers, with damaged artifacts, and from a C program of thirty lines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slmopt.artifact import WEIGHTS_HEADER, verify_weights
from slmopt.cross import require_compiler
from slmopt.emulation import find_runner
from slmopt.link import c_compiler
from tests.emulators import MACHINE, needs_emulator

from .stand_in import BOS, HERE, build_driver, expected_greedy

Driver = Callable[[str], Path]
BUILDS = {
    "plain": ["-O2"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
ENVIRONMENT = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}


@pytest.fixture(scope="session")
def driver(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The test driver by build, each compiled once."""
    directory = tmp_path_factory.mktemp("driver")
    size = (stand_in / "weights.bin").stat().st_size - WEIGHTS_HEADER

    def build(name: str) -> Path:
        output = directory / name
        return output if output.exists() else build_driver(output, verify_weights(stand_in), size, BUILDS[name])

    return build


def drive(executable: Path, check: str, artifact: Path) -> str:
    """Runs one check and returns what it prints; the failed condition is the message where it does not hold."""
    command = [str(executable), check, str(artifact)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("check", ["equal", "errors", "parallel", "busy", "generate"])
def test_holds_under_sanitizers(driver: Driver, stand_in: Path, build: str, check: str) -> None:
    drive(driver(build), check, stand_in)


@needs_emulator
def test_holds_on_another_machine(stand_in: Path, tmp_path: Path) -> None:
    size = (stand_in / "weights.bin").stat().st_size - WEIGHTS_HEADER
    compiler = require_compiler(MACHINE)
    features = '-DFEATURES=(const char*[]){"asimd","asimddp",0}'
    built = build_driver(tmp_path / "driver", verify_weights(stand_in), size, ["-O2", features], compiler)
    runner = find_runner(MACHINE) or []
    for check in ("open", "equal", "errors", "parallel", "busy", "generate"):
        command = [*runner, str(built), check, str(stand_in)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, (check, result.stderr)


@pytest.mark.parametrize("check", ["idle", "fork", "threads"])
def test_threads_and_processes(driver: Driver, stand_in: Path, check: str) -> None:
    drive(driver("plain"), check, stand_in)


@pytest.mark.parametrize("build", ["plain", "address"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "opened"),
        ("missing", "cannot open"),
        ("directory", "is not a file"),
        ("fifo", "is not a file"),
        ("empty", "0 bytes are less than its header"),
        ("short header", "100 bytes are less than its header"),
        ("truncated", "is damaged: it has"),
        ("longer", "is damaged: it has"),
        ("magic", "is not a weights file"),
        ("version", "has format version 77"),
        ("hash", "belongs to another compilation"),
    ],
)
def test_damaged_weights_are_refused(
    driver: Driver, stand_in: Path, tmp_path: Path, build: str, damage: str | None, message: str
) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(stand_in, artifact)
    if damage is not None:
        damage_weights(artifact / "weights.bin", damage)
    assert message in drive(driver(build), "open", artifact)


def damage_weights(file: Path, damage: str) -> None:
    content = file.read_bytes()
    file.unlink()
    if damage == "directory":
        file.mkdir()
    elif damage == "fifo":
        os.mkfifo(file)
    elif damage != "missing":
        changed = {
            "empty": b"",
            "short header": content[:100],
            "truncated": content[:-1],
            "longer": content + b"x",
            "magic": b"ELF?" + content[4:],
            "version": content[:4] + bytes([77, 0, 0, 0]) + content[8:],
            "hash": content[:16] + bytes([content[16] ^ 1]) + content[17:],
        }
        file.write_bytes(changed[damage])


def absent_feature() -> str:
    """An instruction set that this processor lacks, by the system's word; AMD and Intel never shared all of these."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return next(name for name in ("xop", "fma4", "sse4a") if name not in flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ('-DFEATURES=(const char*[]){"sse2","no-such-feature",0}', "cannot check for it"),
        ("absent", "this CPU lacks '{feature}'; compile the model for this machine"),
        ('-DFEATURES=(const char*[]){"sse2",0}', "opened"),
        ("-DABI=9", "speaks version 9 of the runtime's contract"),
        ("-DSTATE_BYTES=1ull<<60", "out of memory: a session of stand-in needs 1152921504606846976 bytes"),
        ("-DCONTEXT=0", "the program is malformed"),
    ],
)
def test_programs_that_cannot_run_are_refused(stand_in: Path, tmp_path: Path, flag: str, message: str) -> None:
    if os.uname().machine != "x86_64" and "FEATURES" in flag:
        pytest.skip("names of x86 instruction sets")
    if flag == "absent":
        message = message.format(feature=absent_feature())
        flag = f'-DFEATURES=(const char*[]){{"sse2","{absent_feature()}",0}}'
    size = (stand_in / "weights.bin").stat().st_size - WEIGHTS_HEADER
    executable = build_driver(tmp_path / "driver", verify_weights(stand_in), size, [flag])
    assert message in drive(executable, "open", stand_in)


def test_a_c_program_of_thirty_lines(stand_in: Path, tmp_path: Path) -> None:
    assert len((HERE / "generate.c").read_text().splitlines()) <= 30
    moved = tmp_path / "moved"  # the pkg-config file goes with its directory
    shutil.copytree(stand_in, moved)
    pkg_config = ["pkg-config", "--cflags", "--libs", str(moved / "standin.pc")]
    flags = subprocess.run(pkg_config, check=True, capture_output=True, text=True).stdout.split()
    program = tmp_path / "generate"
    command = [*c_compiler(), "-Wall", "-Wextra", "-Werror", str(HERE / "generate.c"), *flags, "-o", str(program)]
    subprocess.run(command, check=True)
    run = [str(program), str(moved), "12", str(BOS), "5", "9"]
    output = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in output.split()] == expected_greedy([BOS, 5, 9], 12)
    wrong = subprocess.run([str(program), str(tmp_path), "12", "1"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "cannot open" in wrong.stderr


def test_the_library_exports_slm_alone_and_needs_libc_alone(stand_in: Path) -> None:
    library = str(stand_in / "libstandin.so")
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in symbols.splitlines()]
    header = (stand_in / "slm.h").read_text()
    declared = set(re.findall(r"^SLM_API .*?(slm_\w+)\(", header, re.MULTILINE))
    assert set(names) == declared
    dynamic = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    relocations = subprocess.run(["readelf", "-rW", library], check=True, capture_output=True, text=True).stdout
    assert "slm_" not in relocations  # it calls itself, whatever other models the process holds
