"""Compile time, size and speed on this processor: `python -m benchmarks.cpu` prints the README's table.

Models of true shapes with random weights (benchmarks/shapes.py) are compiled with recipe w4 in a process of their own.
Then memory bandwidth, our program and PyTorch eager are measured one after the other in every round, so that a busy
neighbour slows all of them; medians and the spread over the rounds are reported, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES, write_model

_PROMPT = 128
_LONG_PROMPT = 512
_DECODED = 64
_EAGER_DECODED = 8
_RESULTS = Path(__file__).parent / "results" / "cpu.json"


def processor() -> str:
    """The processor's name and the number of usable cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def compile_model(source: Path, output: Path) -> dict[str, float]:
    """Seconds and peak resident bytes of `slmopt compile`, in a process of its own."""
    command = [sys.executable, "-m", "slmopt", "compile", str(source), "--recipe", "w4", "-o", str(output)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"compiling {source} failed with status {status}")
    return {"seconds": time.perf_counter() - start, "peak_bytes": usage.ru_maxrss * 1024}


def rate(count: int, work: Callable[[], Any]) -> float:
    """`count` per second of `work`."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


class Eager:
    """PyTorch eager: float32 transformers with its own cache."""

    def __init__(self, source: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    def measure(self, ids: list[int]) -> dict[str, float]:
        """Tokens per second of a prompt and of decoding after it."""
        with self.torch.no_grad():
            prompt = self.torch.tensor([ids[:_PROMPT]])
            found: list[Any] = []
            prefill = rate(_PROMPT, lambda: found.append(self.model(prompt, use_cache=True)))
            cache = found[0].past_key_values

            def decode() -> None:
                for _ in range(_EAGER_DECODED):
                    self.model(self.torch.tensor([[5]]), past_key_values=cache, use_cache=True)

            return {"eager prefill 128": prefill, "eager decode at 128": rate(_EAGER_DECODED, decode)}


def measure_ours(model: Any, ids: list[int], threads: int) -> dict[str, float]:
    """Tokens per second of prompts of two lengths, and of decoding at two depths."""
    found: dict[str, float] = {}
    with model.session(threads=threads) as session:
        for length in (_PROMPT, _LONG_PROMPT):
            session.reset()
            found[f"prefill {length}"] = rate(length, lambda length=length: session.prefill(ids[:length]))  # type: ignore[misc]
        for depth in (1, _PROMPT):
            session.reset()
            session.prefill(ids[:depth])
            found[f"decode at {depth}"] = rate(_DECODED, lambda: [session.decode(5) for _ in range(_DECODED)])
    return found


def build_bandwidth(directory: Path) -> list[str]:
    """The command that measures memory bandwidth, without the number of threads."""
    source = Path(__file__).parent / "bandwidth.c"
    program = directory / "bandwidth"
    subprocess.run(["cc", "-O3", "-march=native", str(source), "-o", str(program), "-lpthread"], check=True)
    return [str(program), str(512 << 20)]


def bandwidth(command: list[str], threads: int) -> float:
    """Bytes read per second."""
    output = subprocess.run([*command, str(threads), "3"], check=True, capture_output=True, text=True).stdout
    return float(output.split()[0])


def measure_shape(name: str, directory: Path, rounds: int, threads: int, probe: list[str]) -> dict[str, Any]:
    """Everything about one shape."""
    import random

    import slmopt

    source, output = directory / name, directory / f"{name}-w4"
    weights = write_model(name, source)
    compiled = compile_model(source, output)
    size = sum(entry.stat().st_size for entry in output.iterdir())
    read = (output / "weights.bin").stat().st_size
    ids = [random.Random(1).randrange(1000) for _ in range(_LONG_PROMPT)]
    eager = Eager(source, threads)
    samples: dict[str, list[float]] = {}
    with slmopt.open(output) as model:
        measure_ours(model, ids, threads)  # warm: pages mapped, clocks up
        for _ in range(rounds):
            row = {"bandwidth": bandwidth(probe, threads), **measure_ours(model, ids, threads), **eager.measure(ids)}
            row["ceiling"] = row["bandwidth"] / read
            row["decode share of ceiling"] = row["decode at 128"] / row["ceiling"]
            row["decode against eager"] = row["decode at 128"] / row["eager decode at 128"]
            row["prefill against eager"] = row["prefill 128"] / row["eager prefill 128"]
            for key, value in row.items():
                samples.setdefault(key, []).append(value)
    medians = {key: statistics.median(values) for key, values in samples.items()}
    spread = {key: [min(values), max(values)] for key, values in samples.items()}
    return {
        "weights": weights, "bits per weight": size * 8 / weights, "artifact bytes": size,
        "compile seconds": compiled["seconds"], "compile peak bytes": compiled["peak_bytes"],
        "median": medians, "spread": spread,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The README's table, in Markdown."""
    head = ["shape", "compile", "peak memory", "bits/weight", "prefill 128", "prefill 512", "decode at 128", "ceiling",
            "share", "eager prefill", "eager decode"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, row in result["shapes"].items():
        m = row["median"]
        cells = [
            name, f"{row['compile seconds']:.0f} s", f"{row['compile peak bytes'] / 1e9:.2f} GB",
            f"{row['bits per weight']:.2f}", f"{m['prefill 128']:.0f} tok/s", f"{m['prefill 512']:.0f} tok/s",
            f"{m['decode at 128']:.0f} tok/s", f"{m['ceiling']:.0f} tok/s", f"{m['decode share of ceiling']:.0%}",
            f"{m['eager prefill 128']:.0f} tok/s", f"{m['eager decode at 128']:.1f} tok/s",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_results(path: Path, result: dict[str, Any]) -> None:
    """Write what was measured as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--json", type=Path, default=_RESULTS, metavar="FILE")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "date": date.today().isoformat(), "machine": processor(), "threads": arguments.threads,
        "rounds": arguments.rounds, "shapes": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="slmopt-bench-") as directory:
        probe = build_bandwidth(Path(directory))
        for name in arguments.shapes:
            shape = measure_shape(name, Path(directory), arguments.rounds, arguments.threads, probe)
            result["shapes"][name] = shape
    write_results(arguments.json, result)
    print(f"{result['date']}, {result['machine']}, {result['threads']} threads, medians of {result['rounds']} rounds\n")
    print(table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
