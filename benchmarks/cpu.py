"""Speed, memory and compile time on this processor, beside the peers: `python -m benchmarks.cpu` prints the tables.

Models of true shapes with random weights (benchmarks/shapes.py), batch 1. In every round the memory bandwidth and then
each program is measured, one after the other, so that a busy neighbour slows all of them; ratios are taken within a
round. Medians and spread over the rounds are reported. `python -m benchmarks.peers.install` installs the peers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS, Contestant, Program, prepare
from benchmarks.machine import Bandwidth, measure_gemm, processor
from benchmarks.report import plot, print_tables, write_results
from benchmarks.shapes import SHAPES, write_model

_PROMPTS = [128, 512]
_DEPTHS = [0, 128, 512, 2048]
_DECODED = 64
_REST = 0.3  # seconds in which the threads of the last program go to sleep
_RESULTS = Path(__file__).parent / "results" / "cpu.json"


def measure_rounds(
    contestants: list[Contestant], bandwidth: Bandwidth, threads: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Samples by program and measure, in the order of the rounds; the machine's bandwidth under "machine"."""
    programs: dict[str, Program] = {item.name: item.start(threads) for item in contestants}
    samples: dict[str, dict[str, list[float]]] = {}
    try:
        for index in range(rounds + 1):
            found = {"machine": {"bandwidth": bandwidth.measure(threads)}}
            for name, program in programs.items():
                time.sleep(_REST)
                found[name] = program.measure(_PROMPTS, _DEPTHS, _DECODED)
                print(f"round {index} of {rounds}, {threads} threads: {name}", file=sys.stderr)
            if index:  # the first round only warms up
                for name, row in found.items():
                    for key, value in row.items():
                        samples.setdefault(name, {}).setdefault(key, []).append(value)
    finally:
        for program in programs.values():
            program.close()
    return samples


def measure_shape(
    name: str, directory: Path, names: list[str], bandwidth: Bandwidth, threads: list[int], rounds: int
) -> dict[str, Any]:
    """Everything about one shape."""
    source, programs = directory / name, directory / f"{name}-programs"
    programs.mkdir(exist_ok=True)
    weights = write_model(name, source)
    contestants, absent = prepare(names, source, programs)
    for line in absent:
        print(f"absent: {line}", file=sys.stderr)
    result: dict[str, Any] = {"weights": weights, "absent": absent, "threads": {}}
    result["programs"] = {item.name: item.facts for item in contestants}
    for count in threads:
        samples = measure_rounds(contestants, bandwidth, count, rounds)
        result["threads"][str(count)] = {
            program: {key: _summary(values) for key, values in row.items()} for program, row in samples.items()
        }
        result["ratios"] = {**result.get("ratios", {}), str(count): _ratios(samples)}
        shares = _shares(samples, result["programs"])
        result["share of bandwidth"] = {**result.get("share of bandwidth", {}), str(count): shares}
    return result


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _ratios(samples: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Ours against each other program, by measure: medians of the ratios within a round."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for ours, row in samples.items():
        for theirs, other in samples.items():
            if not ours.startswith("slmopt") or theirs == "machine" or theirs.startswith("slmopt"):
                continue
            pairs = {key: list(zip(row[key], other[key], strict=True)) for key in row.keys() & other.keys()}
            found[f"{ours} / {theirs}"] = {
                key: _summary([a / b for a, b in values]) for key, values in sorted(pairs.items())
            }
    return found


def _shares(samples: dict[str, dict[str, list[float]]], facts: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Decode at 128 of ours as a share of the speed at which memory can be read, in the same round."""
    return {
        name: _summary([
            speed * facts[name]["weights bytes"] / bandwidth
            for speed, bandwidth in zip(row["decode at 128"], samples["machine"]["bandwidth"], strict=True)
        ])
        for name, row in samples.items() if name.startswith("slmopt")
    }  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--programs", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=5)
    usable = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2] if usable > 1 else [1])
    parser.add_argument("--json", type=Path, default=_RESULTS, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="default: the JSON file's name with .svg")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep models here; default: a temporary directory")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"date": date.today().isoformat(), "machine": processor(), "rounds": arguments.rounds}
    result["gemm"] = {str(count): measure_gemm(count) for count in arguments.threads}
    result["shapes"] = {}
    with tempfile.TemporaryDirectory(prefix="slmopt-bench-") as temporary:
        directory = arguments.work or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        bandwidth = Bandwidth.build(Path(temporary))
        for name in arguments.shapes:
            result["shapes"][name] = measure_shape(
                name, directory, arguments.programs, bandwidth, arguments.threads, arguments.rounds
            )
            write_results(arguments.json, result)  # what there is, should the next shape fail
    print_tables(result)
    plot(result, arguments.plot or arguments.json.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
