"""What each preset costs in quality and size: `python -m benchmarks.quality` prints the README's second table.

A trained model is compiled with every preset; the perplexity of a text is computed by the compiled library, one story
a window, beginning-of-sequence token first. Model and text lie beside the repository (../shared) or are given.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from benchmarks.report import write_results

_SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
_RESULTS = Path(__file__).parent / "results" / "quality.json"
_PRESETS = ("f32", "f16", "w8", "w4", "w4-kv8")


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


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=_SHARED / "models" / "stories260K")
    parser.add_argument("--text", type=Path, default=_SHARED / "text" / "tinystories_clean.txt")
    parser.add_argument("--json", type=Path, default=_RESULTS, metavar="FILE")
    arguments = parser.parse_args()
    if not arguments.model.is_dir() or not arguments.text.is_file():
        print(f"no model at {arguments.model} or no text at {arguments.text}: give --model and --text")
        return 2
    with tempfile.TemporaryDirectory(prefix="slmopt-quality-") as directory:
        presets = measure(arguments.model, arguments.text.read_text(), Path(directory))
    result: dict[str, Any] = {"date": date.today().isoformat(), "machine": processor(), "presets": presets}
    write_results(arguments.json, result)
    print(f"{result['date']}, {result['machine']}, {arguments.model.name} on {arguments.text.name}\n")
    print(table(presets))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
