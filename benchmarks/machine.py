"""What the machine can do at most: memory bandwidth and the rate of matrix products."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Bandwidth", "measure_gemm", "processor"]

_READ = 512 << 20  # bytes that are read: far more than any cache


def processor() -> str:
    """The processor's name and the number of usable cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


@dataclass(frozen=True)
class Bandwidth:
    """The program that measures how fast memory is read."""

    program: Path

    @classmethod
    def build(cls, directory: Path) -> Bandwidth:
        """Compile it into `directory`."""
        source, program = Path(__file__).parent / "bandwidth.c", directory / "bandwidth"
        subprocess.run(["cc", "-O3", "-march=native", source, "-o", program, "-lpthread"], check=True)
        return cls(program)

    def measure(self, threads: int) -> float:
        """Bytes read per second."""
        command = [str(self.program), str(_READ), str(threads), "3"]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0])


def measure_gemm(threads: int, size: int = 1536) -> dict[str, float]:
    """FLOP per second of torch's products of two square matrices, by element type; the best of several."""
    import torch

    torch.set_num_threads(threads)
    found = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        best = 0.0
        for _ in range(6):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
        found[name] = best
    codes = torch.randint(-127, 127, (size, size), dtype=torch.int8)
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        torch._int_mm(codes, codes)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return {**found, "int8": best}
