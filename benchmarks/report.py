"""Tables in Markdown, and a plot, of what benchmarks.cpu measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["plot", "print_tables", "write_results"]

# Which peers each of ours is set beside: of the same bits, or what their users would run instead.
_RIVALS = {
    "slmopt w4": ("llama.cpp Q4_0", "OpenVINO GenAI int4", "ONNX Runtime GenAI int4"),
    "slmopt w4-kv8": ("llama.cpp Q4_0",),
    "slmopt w8": ("llama.cpp Q8_0",),
    "slmopt f16": ("llama.cpp F16",),
    "slmopt bf16": ("llama.cpp BF16", "PyTorch eager bf16"),
    "slmopt f32": ("llama.cpp F32", "PyTorch eager f32"),
    "slmopt w4 avx2": ("llama.cpp Q4_0 avx2",),
}
_MEASURES = ("prefill 128", "prefill 512", "decode at 0", "decode at 128", "decode at 512", "decode at 2048")


def write_results(path: Path, result: dict[str, Any]) -> None:
    """Write what was measured as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


def print_tables(result: dict[str, Any]) -> None:
    """Everything the README shows."""
    print(f"{result['date']}, {result['machine']}, medians of {result['rounds']} rounds")
    for threads, rates in result["gemm"].items():
        text = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
        print(f"matrix products with {threads} threads, GFLOP/s: {text}")
    for name, shape in result["shapes"].items():
        for threads, programs in shape["threads"].items():
            print(f"\n{name}, {threads} threads, tok/s")
            print(_speeds(programs, shape, threads))
        print(f"\n{name}, compiling")
        print(_compiling(shape))
        print(f"\n{name}, size and start")
        print(_start(shape))
        for line in shape["absent"]:
            print(f"absent: {line}")


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _speeds(programs: dict[str, Any], shape: dict[str, Any], threads: str) -> str:
    rows = []
    for name, row in programs.items():
        if name == "machine":
            continue
        cells = [f"{row[key]['median']:.0f}" if key in row else "" for key in _MEASURES]
        share = shape["share of bandwidth"][threads].get(name)
        rows.append([name, *cells, f"{share['median']:.0%}" if share else ""])
    for ours, rivals in _RIVALS.items():
        for theirs in rivals:
            ratios = shape["ratios"][threads].get(pair := f"{ours} / {theirs}")
            if ratios:
                cells = [f"{ratios[key]['median']:.2f}x" if key in ratios else "" for key in _MEASURES]
                rows.append([pair, *cells, ""])
    return _markdown(["", *_MEASURES, "share of bandwidth"], rows)


def _compiling(shape: dict[str, Any]) -> str:
    rows = [
        [name, f"{facts['compile seconds']:.0f} s", f"{facts['warm compile seconds']:.0f} s",
         f"{facts['compile peak bytes'] / 1e9:.2f} GB"]
        for name, facts in shape["programs"].items() if "compile seconds" in facts
    ]  # fmt: skip
    return _markdown(["", "compile", "with a warm cache", "peak memory"], rows)


def _start(shape: dict[str, Any]) -> str:
    """Memory is the most that the process has had; of ours, how much of it is neither weights nor state."""
    rows = []
    for name, facts in shape["programs"].items():
        last = shape["threads"][max(shape["threads"], key=int)][name]
        size = facts.get("artifact bytes", 0)
        peak = last.get("peak bytes", {"median": 0})["median"]
        rest = peak - facts.get("weights bytes", peak) - facts.get("state bytes", 0)
        rows.append([
            name, f"{size / 1e6:.0f} MB" if size else "", f"{size * 8 / shape['weights']:.2f}" if size else "",
            f"{facts['load seconds'] * 1000:.1f} ms", f"{peak / 1e6:.0f} MB" if peak else "",
            f"{rest / 1e6:.0f} MB" if "weights bytes" in facts else "",
        ])  # fmt: skip
    return _markdown(["", "files", "bits/weight", "open", "memory", "beyond weights and state"], rows)


def plot(result: dict[str, Any], path: Path) -> None:
    """Decode speed over depth of every program, one picture for each shape, with the most threads."""
    from matplotlib import pyplot

    shapes = result["shapes"]
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(6 * len(shapes), 4), squeeze=False)
    for axis, (name, shape) in zip(axes[0], shapes.items(), strict=True):
        threads = max(shape["threads"], key=int)
        for program, row in shape["threads"][threads].items():
            points = [(int(k.split()[-1]), v["median"]) for k, v in row.items() if k.startswith("decode at")]
            if len(points) > 1:
                axis.plot(*zip(*sorted(points), strict=True), marker="o", label=program)
        axis.set(title=f"{name}, {threads} threads", xlabel="depth (tokens)", ylabel="decode (tokens/s)")
        axis.set_ylim(0)
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
