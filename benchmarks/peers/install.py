"""Install the peers into benchmarks/.peers: `python -m benchmarks.peers.install`. What fails is reported and left out.

A virtual environment of its own holds OpenVINO GenAI and ONNX Runtime GenAI with what converts models for them (their
dependencies do not agree with ours). llama.cpp is built from the source in llama-cpp-python's archive, for this
processor and once more without AVX-512.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["PEERS", "PYTHON", "llama_bench"]

PEERS = Path(__file__).resolve().parent.parent / ".peers"
PYTHON = PEERS / "venv" / "bin" / "python"
_PACKAGES = Path(__file__).with_name("requirements.txt")
_LLAMA = {
    "native": ["-DGGML_NATIVE=ON"],
    "avx2": ["-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON"],
}
_COMMON = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF",
           "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF"]  # fmt: skip


def llama_bench(variant: str) -> Path:
    """Where the program llama-bench of a build ("native" or "avx2") is, once installed."""
    return PEERS / f"llama-{variant}" / "bin" / "llama-bench"


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


def install_environment() -> None:
    """The virtual environment; torch first, so that what needs it finds its CPU build."""
    if not PYTHON.exists():
        _run(sys.executable, "-m", "venv", PEERS / "venv")
    lines = _PACKAGES.read_text().splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    _run(PYTHON, "-m", "pip", "install", "--quiet", torch)
    _run(PYTHON, "-m", "pip", "install", "--quiet", "-r", _PACKAGES)


def install_llama() -> None:
    """Both builds of llama-bench."""
    lines = _PACKAGES.read_text().splitlines()
    package = next(line.removeprefix("# source: ") for line in lines if line.startswith("# source: "))
    with tempfile.TemporaryDirectory(prefix="slmopt-llama-") as directory:
        _run(PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", directory, package)
        (archive,) = Path(directory).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(directory, filter="data")
        (root,) = Path(directory).glob("*/vendor/llama.cpp")
        tools = {**os.environ, "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"}
        for variant, options in _LLAMA.items():
            build = PEERS / f"llama-{variant}"
            subprocess.run(["cmake", "-S", root, "-B", build, *_COMMON, *options], check=True, env=tools)
            subprocess.run(["cmake", "--build", build, "--target", "llama-bench"], check=True, env=tools)


def main() -> int:
    """Install everything that can be."""
    PEERS.mkdir(exist_ok=True)
    failed = 0
    steps: list[Callable[[], None]] = [install_environment, install_llama]
    for step in steps:
        try:
            step()
        except (OSError, subprocess.CalledProcessError, StopIteration, ValueError) as error:
            print(f"{step.__name__} failed: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
