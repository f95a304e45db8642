"""Compiles a generated program with the runtime's C files and links both into the shared library of an artifact."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from slmopt.cache import keep
from slmopt.errors import ArtifactError, InputError

__all__ = ["c_compiler", "link_library", "runtime_directory", "write_development_files"]

COMPILE_FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# Calls inside the library stay inside it (-Bsymbolic), also where a process holds several models. TVM's debug
# information says nothing of a kernel and is five times its size (-S).
LINK_FLAGS = ("-shared", "-Wl,-S", "-Wl,--build-id=none", "-Wl,--no-undefined", "-Wl,-Bsymbolic", "-Wl,--as-needed")
_EXPORTS = "{ global: slm_*; local: *; };\n"
_MESSAGE_LINES = 30
_PROCESSOR_SOURCES = ("cpu.c", "team.c")
_SEARCHED = ("CPATH", "C_INCLUDE_PATH", "GCC_EXEC_PREFIX", "COMPILER_PATH")  # where compilers look besides


def runtime_directory() -> Path:
    """Where slm.h, program.h and the runtime's C files lie."""
    return Path(__file__).parent / "runtime" / "c"


def c_compiler() -> list[str]:
    """The C compiler's command: the environment's CC, else cc. InputError where it cannot be found."""
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise InputError(
            f"the C compiler {command[0]!r} was not found; install gcc or clang, or name one in the environment's CC"
        )
    if os.sep in command[0]:
        command[0] = os.path.abspath(command[0])  # it runs in another directory
    return command


def link_library(
    objects: Sequence[str | os.PathLike[str]],
    program_c: str | os.PathLike[str],
    output: str | os.PathLike[str],
    name: str,
    *,
    sources: Sequence[str | os.PathLike[str]] = (),
    machine: Sequence[str | os.PathLike[str]] | None = None,
    compiler: Sequence[str] | None = None,
    flags: Sequence[str] = (),
) -> Path:
    """Compiles `program_c`, `sources` and the runtime, links them with `objects` into the shared library `output`.

    `machine` are C files and headers that stand in for those of the runtime which compute on a processor: they define
    slm_machine_* and slm_team_* of runtime.h. Only slm_* is exported. Equal inputs give equal bytes: everything is
    compiled under relative names in a directory of its own. `compiler` is the command of another compiler than
    c_compiler()'s, for cross compilation; `flags` go to both compiling and linking, last. Returns `output`. InputError
    without a compiler, ArtifactError with its messages when it fails.
    """
    check_name(name)
    command = list(compiler) if compiler is not None else c_compiler()
    target = Path(os.path.abspath(output))
    with tempfile.TemporaryDirectory(prefix="slmopt-link-") as temporary:
        work = Path(temporary)
        given = [*runtime_sources(processor=machine is None), Path(program_c), *map(Path, (*(machine or ()), *sources))]
        names = [_stage(source, work) for source in given if source.suffix != ".h"]
        for header in (*runtime_directory().glob("*.h"), *(path for path in given if path.suffix == ".h")):
            shutil.copyfile(header, work / header.name)
        staged = [_stage(Path(item), work, f"object{index}.o") for index, item in enumerate(objects)]
        (work / "exports.map").write_text(_EXPORTS)
        prefix = f"-ffile-prefix-map={work}=."
        compiled = [_compile([*command, *COMPILE_FLAGS], [prefix], flags, source, work) for source in names]
        soname = f"-Wl,-soname,lib{name}.so"
        link = [*LINK_FLAGS, soname, "-Wl,--version-script=exports.map", *compiled, *staged, *flags, "-lm", "-lpthread"]
        _run([*command, *link, "-o", "library.so"], work)
        shutil.copyfile(work / "library.so", target)
        target.chmod(0o755)
    return target


def runtime_sources(*, processor: bool = True) -> list[Path]:
    """The runtime's C files, in a fixed order; without those that compute on a processor where not `processor`."""
    found = sorted(runtime_directory().glob("*.c"))
    return [path for path in found if processor or path.name not in _PROCESSOR_SOURCES]


def write_development_files(directory: str | os.PathLike[str], name: str) -> None:
    """Writes slm.h and NAME.pc (pkg-config, relocatable with its directory) into an artifact's directory."""
    check_name(name)
    shutil.copyfile(runtime_directory() / "slm.h", Path(directory) / "slm.h")
    (Path(directory) / f"{name}.pc").write_text(
        f"Name: {name}\n"
        "Description: a language model compiled by slmopt\n"
        "Version: 1\n"
        f"Libs: -L${{pcfiledir}} -Wl,-rpath,${{pcfiledir}} -l{name}\n"
        "Cflags: -I${pcfiledir}\n"
    )


def check_name(name: str) -> None:
    """A model's name becomes a library's and a pkg-config file's."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise InputError(
            f"{name!r} cannot name a library: use letters, digits and _ . + -, starting with a letter or digit"
        )


def _stage(source: Path, work: Path, name: str | None = None) -> str:
    """Copies a file into the working directory under a name that two of them cannot share."""
    name = name or source.name
    if (work / name).exists():
        raise ArtifactError(f"two files to link are called {name}; rename {source}")
    shutil.copyfile(source, work / name)
    return name


def _compile(command: list[str], unnamed: list[str], flags: Sequence[str], source: str, work: Path) -> str:
    """Compiles a C file of `work`; returns its object's name. Kept on disk by all that decides what comes out.

    `unnamed` flags hold names that leave no trace in the object.
    """
    object = work / f"{source[:-2]}.o"

    def make() -> bytes:
        _run([*command, *unnamed, *flags, "-c", source, "-o", object.name], work)
        return object.read_bytes()

    headers = sorted(path for path in work.iterdir() if path.suffix == ".h")
    parts = [*command, *flags, *_identity(command[0]), *(os.environ.get(name, "") for name in _SEARCHED)]
    texts = [source.encode(), *((path.name.encode() + b"\n" + path.read_bytes()) for path in (work / source, *headers))]
    object.write_bytes(keep("object", b"\0".join([*(part.encode() for part in parts), *texts]), make))
    return object.name


def _identity(program: str) -> list[str]:
    """What tells one compiler from another of the same name."""
    path = Path(os.path.realpath(shutil.which(program) or program))
    status = path.stat() if path.exists() else None
    return [str(path), "" if status is None else f"{status.st_size} {status.st_mtime_ns}"]


def _run(command: list[str], work: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        result = subprocess.run(
            command, check=False, cwd=work, env=environment, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise InputError(f"the C compiler {command[0]!r} cannot be run: {error.strerror}") from error
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()[:_MESSAGE_LINES]
        raise ArtifactError(
            f"the C compiler failed (exit {result.returncode}): {shlex.join(command)}\n" + "\n".join(lines)
        )
