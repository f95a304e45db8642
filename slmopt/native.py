"""C routines of the compiler itself, built for this processor when they are first needed."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path

from slmopt.cache import keep_file
from slmopt.errors import InputError
from slmopt.link import c_compiler

__all__ = ["native_library"]

# No contraction: results are those of numpy to the last bit.
_FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared")
_DIRECTORIES: list[tempfile.TemporaryDirectory[str]] = []  # of libraries that are kept nowhere else


@functools.cache
def native_library(source: Path, includes: tuple[Path, ...] = ()) -> ctypes.CDLL | None:
    """The library of one C file and of the files it includes; None where no C compiler works."""
    try:
        command = c_compiler()
        version = subprocess.run([*command, "--version"], capture_output=True, check=True).stdout
    except (InputError, OSError, subprocess.CalledProcessError):
        return None
    host = hashlib.sha256(Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0]).digest() if _has_cpuinfo() else b""

    def build(path: Path) -> None:
        whole = [*command, *_FLAGS, str(source), "-o", str(path), "-lm"]
        done = subprocess.run(whole, capture_output=True, check=False)
        if done.returncode != 0:
            raise OSError(done.stderr.decode(errors="replace"))

    contents = [path.read_bytes() for path in (source, *includes)]
    path = keep_file("native", b"\0".join([*contents, version, host, " ".join(_FLAGS).encode()]), build)
    try:
        if path is None:
            _DIRECTORIES.append(tempfile.TemporaryDirectory(prefix="slmopt-native-"))
            path = Path(_DIRECTORIES[-1].name) / "native.so"
            build(path)
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _has_cpuinfo() -> bool:
    return Path("/proc/cpuinfo").is_file()
