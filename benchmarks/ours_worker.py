"""Our program, run in a process of its own: opens an artifact, then answers JSON lines on standard input.

    python -m benchmarks.ours_worker ARTIFACT THREADS
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path


def resident() -> int:
    """Bytes of memory that the process holds: its own, and of files what it has mapped and touched."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Answer each question {prompts, depths, decoded} with tokens per second."""
    from slmopt.runtime import open as open_artifact

    path, threads = Path(sys.argv[1]), int(sys.argv[2])
    start = time.perf_counter()
    model = open_artifact(path, threads)
    opened = time.perf_counter() - start
    numbers = random.Random(1)
    session = model.session(threads=threads)

    def open_again() -> float:
        begin = time.perf_counter()
        with open_artifact(path, threads):
            return time.perf_counter() - begin

    def prefill(count: int) -> float:
        ids = [numbers.randrange(1000) for _ in range(max(count, 1))]
        session.reset()
        begin = time.perf_counter()
        session.prefill(ids)
        return time.perf_counter() - begin

    prefill(64)
    print(json.dumps({"load seconds": opened}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        found = {"open seconds": open_again()}
        for length in question["prompts"]:
            found[f"prefill {length}"] = length / prefill(length)
        for depth in question["depths"]:
            prefill(depth)
            begin = time.perf_counter()
            for _ in range(question["decoded"]):
                session.decode(5)
            found[f"decode at {depth}"] = question["decoded"] / (time.perf_counter() - begin)
        found["resident bytes"] = resident()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
