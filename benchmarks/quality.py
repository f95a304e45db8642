"""What each preset costs in quality and size: `python -m benchmarks.quality` prints the README's second table.

A trained model is compiled with every preset; the perplexity of a text is computed by the compiled library, one story
a window, beginning-of-sequence token first. Model and text lie beside the repository (../shared) or are given.
With --rewrites the recipes of benchmarks.rewrites are measured, all or those named; what was measured of others before
is kept. Those that heal take minutes each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from benchmarks.report import write_results
from benchmarks.rewrites import ROWS, measure_rewrites, rewrites_table

_SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
_RESULTS = Path(__file__).parent / "results" / "quality.json"
_EVERY = 10.0  # seconds
_PRESETS = ("f32", "f16", "w8", "w4", "w4-kv8", "w4-gptq")


def measure(model: Path, text: str, directory: Path) -> dict[str, dict[str, float]]:
    """Perplexity, tokens and bytes of weights of every preset."""
    import slmopt
    from slmopt.artifact import read_manifest

    found: dict[str, dict[str, float]] = {}
    for preset in _PRESETS:
        artifact = slmopt.compile(model, "cpu", directory / preset, recipe=preset)
        with slmopt.open(artifact) as compiled:
            result = compiled.perplexity(text)
        size = read_manifest(artifact)["bytes"]["weights"]
        found[preset] = {"perplexity": result.perplexity, "tokens": result.tokens, "weight bytes": size}
    return found


def table(presets: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| recipe | perplexity | change | weights |", "| --- | --- | --- | --- |"]
    first = presets["f32"]["perplexity"]
    for name in _PRESETS:
        row = presets[name]
        change = row["perplexity"] / first - 1
        lines.append(f"| `{name}` | {row['perplexity']:.4f} | {change:+.3%} | {row['weight bytes'] / 1e6:.2f} MB |")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=_SHARED / "models" / "stories260K")
    parser.add_argument("--text", type=Path, default=_SHARED / "text" / "tinystories_clean.txt")
    parser.add_argument("--json", type=Path, default=_RESULTS, metavar="FILE")
    parser.add_argument("--rewrites", nargs="*", metavar="NAME", help="measure rewrites: all, or those named")
    arguments = parser.parse_args()
    if not arguments.model.is_dir() or not arguments.text.is_file():
        parser.error(f"no model at {arguments.model} or no text at {arguments.text}: give --model and --text")
    known = [row.name for row in ROWS]
    for name in arguments.rewrites or ():
        if name not in known:
            parser.error(f"no rewrite {name!r}; there are {', '.join(map(repr, known))}")
    return arguments


class _Progress:
    """Says on standard error what is being done, now and then."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, what: str, share: float) -> None:
        if time.monotonic() - self.last > _EVERY:
            print(f"{share:4.0%} {what}", file=sys.stderr, flush=True)
            self.last = time.monotonic()


def main() -> int:
    """Measure and print."""
    arguments = _parse()
    text = arguments.text.read_text()
    result: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="slmopt-quality-") as directory:
        if arguments.rewrites is None:
            presets = measure(arguments.model, text, Path(directory))
            result.update(date=date.today().isoformat(), machine=processor(), presets=presets)
            print(f"{result['date']}, {result['machine']}, {arguments.model.name} on {arguments.text.name}\n")
            print(table(presets))
        else:
            names = arguments.rewrites or [row.name for row in ROWS]
            found = measure_rewrites(arguments.model, text, Path(directory), names, _Progress())
            result["rewrites"] = {**result.get("rewrites", {}), **found}
            print(rewrites_table(result["rewrites"]))
    write_results(arguments.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
