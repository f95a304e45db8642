"""llama.cpp through its own program llama-bench."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.install import PYTHON, llama_bench

__all__ = ["LlamaCpp"]


@dataclass(frozen=True)
class LlamaCpp:
    """A GGUF file and a build. `kind`: Q4_0 or Q8_0, of every matrix; `variant`: "native" or "avx2"."""

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

    def measure(self, prompts: list[int], depths: list[int], decoded: int, threads: int) -> dict[str, float]:
        """Tokens per second: `prefill N` of prompts, `decode at N` of `decoded` tokens at depths."""
        common = [str(llama_bench(self.variant)), "-m", str(self.model), "-t", str(threads), "-r", "1", "-o", "json"]
        found: dict[str, float] = {}
        for arguments in (
            ["-p", ",".join(map(str, prompts)), "-n", "0"],
            ["-p", "0", "-n", str(decoded), "-d", ",".join(map(str, depths))],
        ):
            done = subprocess.run([*common, *arguments], check=True, capture_output=True, text=True)
            for row in json.loads(done.stdout):
                key = f"decode at {row['n_depth']}" if row["n_gen"] else f"prefill {row['n_prompt']}"
                found[key] = row["avg_ts"]
        return found
