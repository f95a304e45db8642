"""Who is measured: our programs and the peers', made ready for one shape."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.peers.install import PYTHON
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.worker import Worker

__all__ = ["CONTESTANTS", "Contestant", "Program", "prepare"]

_WARM = 3  # compiles with a warm cache; the first still shares the disk with what the cold one has written


class Program(Protocol):
    """Something that can be asked for its speed."""

    def measure(self, prompts: list[int], depths: list[int], decoded: int) -> dict[str, float]:
        """Tokens per second by name, and "peak bytes": the most memory that the process has had resident."""

    def close(self) -> None:
        """It is not needed any more."""


@dataclass
class Contestant:
    """One program on one shape. `start` runs it with so many threads; `facts`: what is known before it is measured."""

    name: str
    start: Callable[[int], Program]
    facts: dict[str, float] = field(default_factory=dict)


def _compile(source: Path, output: Path, recipe: str, target: str, kernels: Path) -> dict[str, float]:
    """Seconds and peak resident bytes of `slmopt compile` in a process of its own, and the size of what it wrote."""
    command = [sys.executable, "-m", "slmopt", "compile", str(source), "--recipe", recipe, "-t", target, "-o",
               str(output)]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "SLMOPT_CACHE": str(kernels)})
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"compiling {source} failed with status {status}")
    size = sum(entry.stat().st_size for entry in output.iterdir())
    return {
        "compile seconds": time.perf_counter() - start, "compile peak bytes": usage.ru_maxrss * 1024,
        "artifact bytes": size, "weights bytes": (output / "weights.bin").stat().st_size,
    }  # fmt: skip


def _ours(recipe: str, target: str, source: Path, directory: Path) -> Contestant:
    """Compiled by a recipe: one of slmopt's, or a file of benchmarks/recipes."""
    name = f"slmopt {recipe}" + ("" if target == "cpu" else f" {target.partition('=')[2]}")
    output = directory / name.replace(" ", "-")
    kernels = directory / f"kernels-{output.name}"
    shutil.rmtree(kernels, ignore_errors=True)
    file = Path(__file__).parent / "recipes" / f"{recipe}.toml"
    passes = str(file) if file.exists() else recipe
    facts = _compile(source, output, passes, target, kernels)
    warm = [_compile(source, output, passes, target, kernels)["compile seconds"] for _ in range(_WARM)]
    facts["warm compile seconds"] = statistics.median(warm)
    facts |= _state_bytes(output)

    def start(threads: int) -> Worker:
        return Worker([sys.executable, "-m", "benchmarks.ours_worker", output, str(threads)])

    return Contestant(name, start, {**facts, **_load(start)})


def _load(start: Callable[[int], Worker]) -> dict[str, float]:
    """Seconds in which a program makes a model ready that was read before."""
    start(1).close()  # converts the model where it has to, and shows what does not work
    again = start(1)
    again.close()
    found: dict[str, float] = again.facts
    return found


def _state_bytes(artifact: Path) -> dict[str, float]:
    return {"state bytes": json.loads((artifact / "manifest.json").read_text())["bytes"]["state"]}


class _Bench:
    """llama.cpp's own program, started anew for every measurement."""

    def __init__(self, model: LlamaCpp, threads: int) -> None:
        self.model, self.threads = model, threads

    def measure(self, prompts: list[int], depths: list[int], decoded: int) -> dict[str, float]:
        return self.model.measure(prompts, depths, decoded, self.threads)

    def close(self) -> None:
        return None


def _llama(kind: str, variant: str, source: Path, directory: Path) -> Contestant:
    model = LlamaCpp.prepare(source, directory, kind, variant)
    name = f"llama.cpp {kind}" + ("" if variant == "native" else f" {variant}")
    facts = {"artifact bytes": model.model.stat().st_size, "load seconds": model.first_token_seconds()}
    return Contestant(name, lambda threads: _Bench(model, threads), facts)


def _worker(name: str, program: str, bits: int, source: Path, directory: Path) -> Contestant:
    if not PYTHON.exists():
        raise FileNotFoundError(f"the peers' Python of {name}")
    python = sys.executable if program == "eager_worker.py" else PYTHON
    script, converted = Path(__file__).parent / "peers" / program, directory / program.partition("_")[0]

    def start(threads: int) -> Worker:
        return Worker([python, script, source, converted, str(bits), str(threads)])

    facts = _load(start)
    if converted.is_dir():
        facts["artifact bytes"] = sum(entry.stat().st_size for entry in converted.rglob("*") if entry.is_file())
    return Contestant(name, start, facts)


CONTESTANTS: dict[str, Callable[[Path, Path], Contestant]] = {
    "w4": lambda source, directory: _ours("w4", "cpu", source, directory),
    "w4-kv8": lambda source, directory: _ours("w4-kv8", "cpu", source, directory),
    "w8": lambda source, directory: _ours("w8", "cpu", source, directory),
    "f16": lambda source, directory: _ours("f16", "cpu", source, directory),
    "bf16": lambda source, directory: _ours("bf16", "cpu", source, directory),
    "f32": lambda source, directory: _ours("f32", "cpu", source, directory),
    "w4-avx2": lambda source, directory: _ours("w4", "cpu:isa=avx2", source, directory),
    "llama-q4": lambda source, directory: _llama("Q4_0", "native", source, directory),
    "llama-q8": lambda source, directory: _llama("Q8_0", "native", source, directory),
    "llama-f16": lambda source, directory: _llama("F16", "native", source, directory),
    "llama-bf16": lambda source, directory: _llama("BF16", "native", source, directory),
    "llama-f32": lambda source, directory: _llama("F32", "native", source, directory),
    "llama-q4-avx2": lambda source, directory: _llama("Q4_0", "avx2", source, directory),
    "openvino": lambda source, directory: _worker("OpenVINO GenAI int4", "openvino_worker.py", 4, source, directory),
    "onnxruntime": lambda s, d: _worker("ONNX Runtime GenAI int4", "onnxruntime_worker.py", 4, s, d),
    "eager": lambda source, directory: _worker("PyTorch eager f32", "eager_worker.py", 32, source, directory),
    "eager-bf16": lambda source, directory: _worker("PyTorch eager bf16", "eager_worker.py", 16, source, directory),
}


def prepare(names: list[str], source: Path, directory: Path) -> tuple[list[Contestant], list[str]]:
    """Those that can be made ready, and why the others are absent."""
    ready, absent = [], []
    for name in names:
        try:
            ready.append(CONTESTANTS[name](source, directory))
        except (OSError, subprocess.CalledProcessError) as error:
            absent.append(f"{name}: {error}")
    return ready, absent
