"""Runs the library of an artifact for another machine under an emulator: token ids in, logits out.

A small C program (runtime/driver/driver.c), made by the cross compiler and kept on disk, loads the library as any
program would, feeds it and writes the logits to a file. A runner is the command that starts a program of that machine,
such as `qemu-aarch64-static -L /usr/aarch64-linux-gnu`: an emulator, and where the machine's C library lies.
"""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slmopt.artifact import read_manifest
from slmopt.cache import keep
from slmopt.cross import host_machine, require_compiler
from slmopt.errors import ArtifactError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["emulator_packages", "find_runner", "library_machine", "runner_logits"]

_DRIVER = Path(__file__).parent / "runtime" / "driver" / "driver.c"
_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}  # e_machine of an ELF file
_SYSROOT = "/usr/{machine}-linux-gnu"  # of Debian's cross packages
_MESSAGE = 2000  # characters of what a failed run says


def find_runner(machine: str) -> list[str] | None:
    """The command that runs programs of `machine` here: qemu with the C library of Debian's cross packages."""
    emulator, sysroot = _find_emulator(machine), Path(_SYSROOT.format(machine=machine))
    return [emulator, "-L", str(sysroot)] if emulator is not None and sysroot.is_dir() else None


def _find_emulator(machine: str) -> str | None:
    return next(filter(None, map(shutil.which, (f"qemu-{machine}-static", f"qemu-{machine}"))), None)


def emulator_packages(machine: str) -> list[str]:
    """What is missing for find_runner, each with where it comes from."""
    short = {"aarch64": "arm64", "x86_64": "amd64"}.get(machine, machine)  # Debian's names
    missing = [] if _find_emulator(machine) else ["qemu-user-static (Debian)"]
    return missing + ([] if Path(_SYSROOT.format(machine=machine)).is_dir() else [f"libc6-{short}-cross (Debian)"])


def library_machine(path: Path) -> str:
    """The kind of processor that a shared library is for; ArtifactError where it is none."""
    try:
        with open(path, "rb") as stream:
            header = stream.read(20)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; compile the model again") from error
    if len(header) < 20 or header[:4] != b"\x7fELF":
        raise ArtifactError(f"{path} is not a shared library; compile the model again")
    number = struct.unpack_from("<H", header, 18)[0]
    return _MACHINES.get(number, f"machine {number}")


def runner_logits(
    artifact: str | os.PathLike[str], ids: Sequence[int], runner: str | Sequence[str] | None = None, *,
    splits: Sequence[int] | None = None, threads: int = 1,
) -> NDArray[np.float32]:  # fmt: skip
    """The logits float32 [len(ids), vocab] that an artifact gives for token ids, run by `runner`.

    `runner` is a command, or its words; without it, find_runner's. `splits` are the lengths of the parts in which the
    ids are fed, in one session; without it, all at once. InputError without a runner or a compiler for the driver;
    ArtifactError with what the run said where it failed.
    """
    manifest = read_manifest(artifact)
    if "library" not in manifest:
        raise InputError(f"{artifact} is compiled for {manifest.get('target')}: it has no library that a runner could "
                         "load; verify it without one")  # fmt: skip
    library = Path(artifact).resolve() / str(manifest["library"])
    machine = library_machine(library)
    parts = [len(ids)] if splits is None else list(splits)
    if not ids or sum(parts) != len(ids) or min(parts) < 1:
        raise InputError(f"splits {parts} do not part {len(ids)} token ids")
    command = _runner(runner, machine)
    with tempfile.TemporaryDirectory(prefix="slmopt-verify-") as directory:
        work = Path(directory)
        driver = work / "driver"
        driver.write_bytes(_build_driver(machine))
        driver.chmod(0o755)
        (work / "ids").write_bytes(struct.pack(f"<{len(ids)}i", *ids))
        arguments = [str(library), str(library.parent), str(work / "ids"), str(work / "logits"), str(threads)]
        _run([*command, str(driver), *arguments, *map(str, parts)], command)
        return _read_logits(work / "logits", len(ids), command)


def _read_logits(file: Path, count: int, runner: list[str]) -> NDArray[np.float32]:
    import numpy as np

    found: NDArray[np.float32] = np.fromfile(file, "<f4") if file.is_file() else np.empty(0, np.float32)
    if found.size == 0 or found.size % count:
        raise ArtifactError(f"{shlex.join(runner) or 'the program'!r} ended without an error and gave no logits: is it "
                            "an emulator?")  # fmt: skip
    return found.reshape(count, -1)


def _runner(runner: str | Sequence[str] | None, machine: str) -> list[str]:
    """The runner's words; none on the machine itself."""
    if runner is None:
        if machine == host_machine():
            return []
        found = find_runner(machine)
        if found is None:
            missing = ", ".join(emulator_packages(machine))
            raise InputError(f"nothing here runs programs of {machine}: install {missing}")
        return found
    try:
        words = shlex.split(runner) if isinstance(runner, str) else list(runner)
    except ValueError as error:
        raise InputError(f"the runner {runner!r} is no command: {error}") from error
    if not words or shutil.which(words[0]) is None:
        if machine == host_machine():
            known = "this machine runs the program without one"
        elif hint := find_runner(machine):
            known = f"this machine has {shlex.join(hint)!r}"
        else:
            known = f"install {', '.join(emulator_packages(machine)) or 'one'}, and name it with its options"
        raise InputError(f"the runner {words[0] if words else ''!r} was not found; {known}")
    return words


def _build_driver(machine: str) -> bytes:
    """The driver's executable, kept on disk by its source and compiler."""
    compiler, source = require_compiler(machine), _DRIVER.read_bytes()

    def make() -> bytes:
        with tempfile.TemporaryDirectory(prefix="slmopt-driver-") as directory:
            shutil.copyfile(_DRIVER, Path(directory) / "driver.c")
            command = [*compiler, "-std=c11", "-O1", "-Wall", "-Wextra", "driver.c", "-o", "driver", "-ldl"]
            result = subprocess.run(command, check=False, cwd=directory, capture_output=True, text=True)
            if result.returncode != 0:
                raise ArtifactError(f"the C compiler failed: {shlex.join(command)}\n{result.stderr[-_MESSAGE:]}")
            return (Path(directory) / "driver").read_bytes()

    return keep("driver", "\0".join(compiler).encode() + b"\0" + source, make)


def _run(command: list[str], runner: list[str]) -> None:
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise InputError(f"{command[0]} cannot be run: {error.strerror}") from error
    if result.returncode == 0:
        return
    said = (result.stderr or result.stdout).strip()[-_MESSAGE:]
    ended = f"signal {-result.returncode}" if result.returncode < 0 else f"exit {result.returncode}"
    hint = ""
    if "ld-linux" in said:
        hint = "; the runner needs the machine's C library: give its place, such as -L /usr/MACHINE-linux-gnu"
    where = f"under {shlex.join(runner)!r}" if runner else "on this machine"
    raise ArtifactError(f"the run {where} failed ({ended}): {said or 'it said nothing'}{hint}")
