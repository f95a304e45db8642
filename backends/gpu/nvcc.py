"""CUDA source to machine code with NVIDIA's compiler: the toolkit's, or that of the Python package nvidia-cuda-nvcc."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from slmopt.cache import keep
from slmopt.errors import ArtifactError, InputError

__all__ = ["DEFAULT_ARCHITECTURES", "NVCC_PACKAGES", "compile_cuda", "find_nvcc", "parse_architectures"]

DEFAULT_ARCHITECTURES = ("sm_80",)
NVCC_PACKAGES = ("slmopt[cuda] (pip) or NVIDIA's CUDA toolkit",)
_MESSAGE_LINES = 20


def parse_architectures(text: str | None) -> tuple[str, ...]:
    """The architectures of `arch=sm_80` or `arch=sm_80+sm_90`; InputError where it is spelt otherwise."""
    if text is None:
        return DEFAULT_ARCHITECTURES
    names = tuple(dict.fromkeys(text.split("+")))
    for name in names:
        if not re.fullmatch(r"sm_\d{2,3}[a-z]?", name):
            raise InputError(f"arch {text!r}: {name!r} is no architecture of NVIDIA's; expected one such as sm_80, or "
                             "several as sm_80+sm_90")  # fmt: skip
    return names


def find_nvcc() -> str | None:
    """The compiler: the environment's NVCC, that of the Python package, or nvcc of the path or of /usr/local/cuda."""
    named = os.environ.get("NVCC")
    if named:
        return shutil.which(named)
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or [] if spec is not None else []:
        for path in sorted(Path(place).glob("*/bin/nvcc"), reverse=True):
            return str(path)
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def compile_cuda(source: str, architectures: Sequence[str]) -> bytes:
    """A "fatbin": machine code for each architecture, and PTX of the oldest, from which newer ones are served.

    Kept on disk by the source and the compiler. InputError without nvcc, and where it does not know an architecture;
    ArtifactError with its messages where it fails otherwise.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise InputError(f"target cuda: nvcc was not found; install {', '.join(NVCC_PACKAGES)}")
    known = _run([nvcc, "--list-gpu-code"], Path.cwd()).split()
    if missing := [name for name in architectures if name not in known]:
        raise InputError(f"{nvcc} knows no {missing[0]}; it knows {', '.join(known)}")
    flags = ["-w", "-O3", "-std=c++17"]
    for name in architectures:
        flags += ["-gencode", f"arch={name.replace('sm', 'compute')},code={name}"]
    oldest = min(architectures, key=lambda name: int(re.sub(r"\D", "", name))).replace("sm", "compute")
    flags += ["-gencode", f"arch={oldest},code={oldest}"]
    said = "\0".join([_run([nvcc, "--version"], Path.cwd()), *flags, source])
    return keep("cuda", said.encode(), lambda: _compile(nvcc, flags, source))


def _compile(nvcc: str, flags: Sequence[str], source: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="slmopt-cuda-") as directory:
        work = Path(directory)
        (work / "kernels.cu").write_text(source)
        _run([nvcc, *flags, "-fatbin", "kernels.cu", "-o", "kernels.fatbin"], work)
        return (work / "kernels.fatbin").read_bytes()


def _run(command: list[str], work: Path) -> str:
    try:
        result = subprocess.run(command, check=False, cwd=work, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise InputError(f"{command[0]} cannot be run: {error.strerror}") from error
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()[:_MESSAGE_LINES]
        raise ArtifactError(f"nvcc failed (exit {result.returncode}): {' '.join(command)}\n" + "\n".join(lines))
    return result.stdout
