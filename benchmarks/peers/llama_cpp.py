"""llama.cpp through its own program llama-bench."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.install import PYTHON, llama_bench

__all__ = ["LlamaCpp"]


@dataclass(frozen=True)
class LlamaCpp:
    """A GGUF file and a build. `kind`: Q4_0, Q8_0, F16, BF16 or F32, of every matrix; `variant`: "native" or "avx2".

    Its cache is float16 whatever the kind: llama-bench offers no float32 cache.
    """

    model: Path
    kind: str
    variant: str = "native"

    @classmethod
    def prepare(cls, source: Path, directory: Path, kind: str, variant: str = "native") -> LlamaCpp:
        """Write the GGUF file of a Hugging Face directory. FileNotFoundError where llama.cpp is not installed."""
        if not llama_bench(variant).exists():
            raise FileNotFoundError(f"{llama_bench(variant).name} ({variant})")
        path = directory / f"{source.name}-{kind}.gguf"
        if not path.exists():
            script = Path(__file__).with_name("gguf_files.py")
            subprocess.run([PYTHON, script, source, path, kind], check=True)
        return cls(path, kind, variant)

    def first_token_seconds(self) -> float:
        """From the start of the program to one token of a prompt: loading is most of it."""
        command = [str(llama_bench(self.variant)), "-m", str(self.model), "-p", "1", "-n", "0", "-r", "1"]
        start = time.perf_counter()
        _run([*command, "--no-warmup"])
        return time.perf_counter() - start

    def measure(self, prompts: list[int], depths: list[int], decoded: int, threads: int) -> dict[str, float]:
        """Tokens per second: `prefill N` of prompts, `decode at N` of `decoded` tokens at depths; and `peak bytes`."""
        common = [str(llama_bench(self.variant)), "-m", str(self.model), "-t", str(threads), "-r", "1", "-o", "json"]
        found: dict[str, float] = {"peak bytes": 0}
        for arguments in (
            ["-p", ",".join(map(str, prompts)), "-n", "0"],
            ["-p", "0", "-n", str(decoded), "-d", ",".join(map(str, depths))],
        ):
            text, peak = _run([*common, *arguments])
            found["peak bytes"] = max(found["peak bytes"], peak)
            for row in json.loads(text):
                key = f"decode at {row['n_depth']}" if row["n_gen"] else f"prefill {row['n_prompt']}"
                found[key] = row["avg_ts"]
        return found


def _run(command: list[str]) -> tuple[str, int]:
    """What a program prints, and the most memory it has had resident. CalledProcessError where it fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        text = process.stdout.read() if process.stdout is not None else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return text, usage.ru_maxrss * 1024
