"""What a token costs far into a text: `python -m benchmarks.linear_attention` prints time and memory at positions up to
16,384, for attention, attention to a window, and linear attention.

One small model with random weights is compiled three times. Each program takes the same tokens up to a position; then
the time of single tokens is measured, the programs in turn, and the memory that the session has touched by then.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from benchmarks.ours_worker import resident
from benchmarks.report import write_results

_RESULTS = Path(__file__).parent / "results" / "linear_attention.json"
_POSITIONS = (128, 512, 2048, 8192, 16384)
_DECODED = 64  # tokens that are timed at a position
_PART = 128  # tokens that a program is given at once before
_SHAPE = {
    "kind": "LlamaConfig", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 2048, "rms_norm_eps": 1e-5,
    "max_position_embeddings": _POSITIONS[-1] + _DECODED,
}  # fmt: skip
_PROGRAMS = {
    "attention": (), "attention-window": ("attention-window",), "attention-linear": ("attention-linear",),
}  # fmt: skip


def measure(directory: Path, positions: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Of every program the bytes of its state, and at each position the time of a token and the memory touched."""
    import slmopt
    from benchmarks.shapes import write_shape
    from slmopt.artifact import read_manifest

    write_shape(_SHAPE, directory / "model")
    workers: dict[str, subprocess.Popen[str]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, passes in _PROGRAMS.items():
        recipe = ["raise", "canonicalize", *passes, "fuse", "incrementalize"]
        artifact = slmopt.compile(directory / "model", "cpu", directory / name, recipe=recipe)
        found[name] = {"state bytes": read_manifest(artifact)["bytes"]["state"], "positions": {}}
        workers[name] = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.linear_attention", "--worker", str(artifact)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    for position in positions:
        for name, worker in workers.items():
            assert worker.stdin is not None and worker.stdout is not None
            print(position, file=worker.stdin, flush=True)
            found[name]["positions"][str(position)] = json.loads(worker.stdout.readline())
    for worker in workers.values():
        worker.communicate()
    return found


def work(artifact: str) -> None:
    """Answer each position on standard input, ever later ones, with a JSON line."""
    from slmopt.runtime import open as open_artifact

    numbers = random.Random(1)
    with open_artifact(artifact, 1) as model, model.session(threads=1) as session:
        session.decode(1)
        session.reset()
        before = resident()
        for line in sys.stdin:
            while session.position < int(line):
                part = min(_PART, int(line) - session.position)
                session.prefill([numbers.randrange(model.vocab) for _ in range(part)])
            times = []
            for _ in range(_DECODED):
                start = time.perf_counter()
                session.decode(5)
                times.append(time.perf_counter() - start)
            row = {"seconds": statistics.median(times), "quickest": min(times), "bytes": max(0, resident() - before)}
            print(json.dumps(row), flush=True)


def table(programs: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown."""
    head = ["position", *(f"{name}, {what}" for name in programs for what in ("µs", "MB"))]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for position in next(iter(programs.values()))["positions"]:
        rows = [program["positions"][position] for program in programs.values()]
        cells = [f"{row['seconds'] * 1e6:.0f} | {row['bytes'] / 1e6:.2f}" for row in rows]
        lines.append(f"| {int(position):,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, nargs="+", default=_POSITIONS)
    parser.add_argument("--json", type=Path, default=_RESULTS, metavar="FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return 0
    positions = tuple(sorted(position for position in arguments.positions if position <= _POSITIONS[-1]))
    with tempfile.TemporaryDirectory(prefix="slmopt-linear-") as directory:
        programs = measure(Path(directory), positions)
    result = {"date": date.today().isoformat(), "machine": processor(), "shape": _SHAPE, "programs": programs}
    write_results(arguments.json, result)
    print(f"{result['date']}, {result['machine']}, one thread, medians of {_DECODED} tokens\n")
    print(table(programs))
    for name, program in programs.items():
        print(f"{name}: {program['state bytes'] / 1e6:.2f} MB of state for {_POSITIONS[-1] + _DECODED:,} positions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
