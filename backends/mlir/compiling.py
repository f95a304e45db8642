"""IREE's compiler: a program in MLIR to the file that its runtime loads."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from slmopt.cache import keep
from slmopt.errors import InputError, UnsupportedError

__all__ = ["PACKAGES", "compile_program", "missing_packages", "require_compiler"]

PACKAGES = {"torch-mlir": "torch_mlir", "iree-base-compiler": "iree.compiler"}  # and the modules they hold
_RUNTIME = {"iree-base-runtime": "iree.runtime"}
_LOCATION = re.compile(r"<stdin>:(\d+):\d+: error: (.*)")
# A weight that is widened when it is read stays as small as it is stored; and locations are of no use to anyone.
_FLAGS = ("--iree-opt-const-expr-max-size-increase-threshold=0", "--iree-vm-bytecode-module-strip-source-map=true")
_SHOWN = 3  # errors of the compiler that a message repeats


def missing_packages(*, run: bool) -> list[str]:
    """The Python packages to install before anything can be compiled, or run."""
    return [package for package, module in (_RUNTIME if run else PACKAGES).items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package it lies in
        return False


def require_compiler() -> None:
    """InputError where a package that compiling needs is not installed."""
    if missing := missing_packages(run=False):
        raise InputError(f"compiling through MLIR needs {' and '.join(missing)}: pip install 'slmopt[mlir]'")


def compile_program(text: str, machine: str, flags: Sequence[str]) -> bytes:
    """The program for a machine that IREE names (`llvm-cpu`, `vulkan-spirv`), with its compiler's flags.

    It is kept on disk by all that it is made of (`slmopt.cache`). UnsupportedError with the ops that the compiler could
    not make anything of.
    """
    from importlib.metadata import version

    given = "\0".join([version("iree-base-compiler"), machine, *_FLAGS, *flags, text])
    return keep("iree", given.encode(), lambda: _compile(text, machine, flags))


def _compile(text: str, machine: str, flags: Sequence[str]) -> bytes:
    from iree.compiler import compile_str
    from iree.compiler.tools import CompilerToolError

    extra = [*_FLAGS, *flags]
    try:
        found: bytes = compile_str(text, input_type="torch", target_backends=[machine], extra_args=extra)
    except CompilerToolError as error:
        reasons = _explain(str(error), text)
        raise UnsupportedError(f"IREE cannot compile the program for {machine}:\n  {reasons}") from error
    return found


def _explain(messages: str, text: str) -> str:
    """The compiler's first errors, each with the line of the program it is about."""
    lines = text.splitlines()
    found = []
    for number, message in _LOCATION.findall(messages):
        line = lines[int(number) - 1].strip() if int(number) <= len(lines) else ""
        found.append(f"{message[:200]} in: {line[:160]}")
    return "\n  ".join(list(dict.fromkeys(found))[:_SHOWN]) or messages.strip()[:1000]
