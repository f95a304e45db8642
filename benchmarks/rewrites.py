"""What rewrites of a trained model cost in quality, each beside what it may cost at most.

Perplexity of the first 120 stories, one a window, computed by the compiled library; the last 130 stories calibrate and,
with text that the model samples itself, heal. `python -m benchmarks.quality --rewrites` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import processor

__all__ = ["ROWS", "Row", "measure_rewrites", "rewrites_table"]

_EVALUATED, _CALIBRATING = 120, 130  # stories
_TOKENS = 60_000  # more than the calibration text has
_HEAL = "heal{tokens=500000,rate=0.002}"
_HEAL_A_LITTLE = "heal{tokens=500000,rate=0.0005}"  # where little was lost, a higher rate loses more at first


@dataclass(frozen=True)
class Row:
    """A recipe: `passes` between raising and fusing. most: the largest relative increase of perplexity, if one is set.

    cache: the element type of the key-value cache.
    """

    name: str
    passes: tuple[str, ...] = ()
    most: float | None = None
    cache: str = "f32"

    @property
    def recipe(self) -> list[str]:
        """All passes, in order."""
        return ["raise", "canonicalize", *self.passes, "fuse", f"incrementalize{{cache={self.cache}}}"]


_GPTQ = "gptq{bits=4,group=32,grid=asymmetric}"
_LINEAR = 'attention-linear{feature="elu1",layers="%s"}'
ROWS = (
    Row("f32"),
    Row("window 128", ("attention-window{size=128,sink=4}",), 0.012),
    Row("gptq, body", (_GPTQ,), 0.06),
    Row("gptq, body and head", ("gptq{bits=4,group=32,grid=asymmetric,head=4}",), 0.08),
    Row("8-bit cache", (), 0.003, "q8"),
    Row("prune-ffn 0.25", ("prune-ffn{ratio=0.25}",), 0.70),
    Row("prune-ffn 0.25, healed", ("prune-ffn{ratio=0.25}", _HEAL), 0.20),
    Row("prune-heads 1 group", ("prune-heads{groups=1}",), 0.14),
    Row("prune-heads 1 group, healed", ("prune-heads{groups=1}", _HEAL_A_LITTLE), 0.11),
    Row("drop-layers 1, healed", ("drop-layers{count=1}", _HEAL), 0.27),
    Row("share-blocks 1-2 3-4, healed", ('share-blocks{pairs="1-2,3-4"}', _HEAL), 0.85),
    Row("linear attention in 3 of 5 layers, healed", (_LINEAR % "1,2,3", _HEAL), 0.60),
    Row("composed", (
        "prune-ffn{ratio=0.25}", 'share-blocks{pairs="3-4"}', _LINEAR % "1,2", _HEAL, _GPTQ,
    ), None, "q8"),
)  # fmt: skip


def measure_rewrites(
    model: Path, text: str, directory: Path, names: Iterable[str], report: Callable[[str, float], None]
) -> dict[str, dict[str, Any]]:
    """Perplexity, bytes of weights and seconds of healing of the rows that are named."""
    from slmopt.calibrate import SEPARATOR

    stories = [story for story in text.split(SEPARATOR) if story.strip()]
    evaluated, calibrating = stories[:_EVALUATED], stories[-_CALIBRATING:]
    if len(stories) < _EVALUATED + _CALIBRATING:
        raise SystemExit(f"the text has {len(stories)} stories: {_EVALUATED} are evaluated, {_CALIBRATING} calibrate")
    wanted = set(names)
    found: dict[str, dict[str, Any]] = {}
    for row in ROWS:
        if row.name in wanted:
            place = directory / f"rewrite-{len(found)}"
            texts = SEPARATOR.join(evaluated), SEPARATOR.join(calibrating)
            found[row.name] = _measure(row, model, *texts, place, report)
    return found


def _measure(
    row: Row, model: Path, evaluated: str, calibrating: str, place: Path, report: Callable[[str, float], None]
) -> dict[str, Any]:
    import slmopt
    from slmopt.artifact import read_manifest
    from slmopt.ledger import Ledger

    ledgers: list[Ledger] = []
    # Not verified: perplexity after each pass takes longer than the pass, and is measured at the end.
    artifact = slmopt.compile(
        model, "cpu", place, recipe=row.recipe, text=calibrating, text_tokens=_TOKENS, name="model", verify=False,
        report=lambda what, share: report(f"{row.name}: {what}", share),
        observe=lambda module: ledgers.append(module.ledger),
    )  # fmt: skip
    with slmopt.open(artifact) as compiled:
        result = compiled.perplexity(evaluated)
    healing = [one.seconds for one in ledgers[0].rows if one.name.startswith("heal")]
    return {
        "date": date.today().isoformat(), "machine": processor(), "recipe": row.recipe, "most": row.most,
        "perplexity": result.perplexity, "tokens": result.tokens,
        "weight bytes": read_manifest(artifact)["bytes"]["weights"], "seconds of healing": round(sum(healing), 1),
    }  # fmt: skip


def rewrites_table(rewrites: dict[str, dict[str, Any]]) -> str:
    """Markdown of the rows that were measured."""
    lines = ["| rewrite | perplexity | change | at most | weights | healing |", "| --- | --- | --- | --- | --- | --- |"]
    first = rewrites[ROWS[0].name]["perplexity"] if ROWS[0].name in rewrites else None
    for row in ROWS:
        found = rewrites.get(row.name)
        if found is not None:
            lines.append(f"| {' | '.join(_cells(row, found, first))} |")
    return "\n".join(lines)


def _cells(row: Row, found: dict[str, Any], first: float | None) -> Sequence[str]:
    healing = found["seconds of healing"]
    return (
        row.name, f"{found['perplexity']:.4f}",
        "" if first is None else f"{found['perplexity'] / first - 1:+.2%}",
        "" if row.most is None else f"{row.most:+.1%}", f"{found['weight bytes'] / 1e6:.2f} MB",
        f"{healing / 60:.1f} min" if healing else "",
    )  # fmt: skip
