"""C compilers for machines other than this one: one of the environment, ziglang of PyPI, or Debian's gcc."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
from pathlib import Path

from slmopt.errors import InputError
from slmopt.link import c_compiler

__all__ = ["compiler_packages", "find_compiler", "host_machine", "require_compiler"]

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # other names of what LLVM and Linux call so
_GLIBC = "2.28"  # the oldest C library that what zig links runs on: of 2018, in every distribution that is kept up


def host_machine() -> str:
    """The kind of processor this machine has, as LLVM and Linux call it: x86_64, aarch64."""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)


def find_compiler(machine: str) -> list[str] | None:
    """The command of a C compiler that makes libraries for Linux on `machine` (x86_64, aarch64, ...), if there is one.

    For this machine it is link.c_compiler()'s. For another: the environment's CC_MACHINE, such as CC_aarch64; then
    ziglang, whose libraries run on any glibc since 2.28; then MACHINE-linux-gnu-gcc.
    """
    try:
        return require_compiler(machine)
    except InputError:
        return None


def require_compiler(machine: str) -> list[str]:
    """As find_compiler; InputError says what to install where there is none."""
    if machine == host_machine():
        return c_compiler()
    variable = f"CC_{machine}"
    if command := shlex.split(os.environ.get(variable, "")):
        if shutil.which(command[0]) is None:
            raise InputError(f"the C compiler {command[0]!r}, named by the environment's {variable}, was not found")
        return [os.path.abspath(command[0]) if os.sep in command[0] else command[0], *command[1:]]
    if zig := _find_zig():
        return [zig, "cc", "-target", f"{machine}-linux-gnu.{_GLIBC}"]
    if gcc := shutil.which(f"{machine}-linux-gnu-gcc"):
        return [gcc]
    raise InputError(f"no C compiler for {machine} was found: install {' or '.join(_packages(machine))}, or name one "
                     f"in the environment's {variable}")  # fmt: skip


def _find_zig() -> str | None:
    """The zig of the Python package ziglang, or one on the path."""
    found = importlib.util.find_spec("ziglang")
    for place in found.submodule_search_locations or [] if found is not None else []:
        if (path := Path(place) / "zig").is_file():
            return str(path)
    return shutil.which("zig")


def compiler_packages(machine: str) -> list[str]:
    """What to install for a compiler for `machine`, each with where it comes from; any one of them will do."""
    return [" or ".join(_packages(machine))]


def _packages(machine: str) -> list[str]:
    if machine == host_machine():
        return ["gcc (Debian)"]
    return ["ziglang (pip)", f"gcc-{machine.replace('_', '-')}-linux-gnu (Debian)"]
