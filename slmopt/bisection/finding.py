"""What a bisection found, for people and for machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmopt.bisection.checks import Measured

__all__ = ["Finding", "Reproducer"]


@dataclass(frozen=True)
class Reproducer:
    """A directory that shows the fault without the model and the recipe.

    fails: it was run in a process of its own, and the property broke there. why: what it keeps, or why it does not.
    ops, bytes: of the graphs in it, and of all its files.
    """

    path: Path
    fails: bool
    why: str
    ops: int
    bytes: int


@dataclass(frozen=True)
class Finding:
    """The first pass that breaks a property, and what within it does.

    check: as the user wrote it. index: of the pass in the recipe, from 0. name: the pass as the recipe writes it.
    owner: who offers the pass. before, after: what the check says without and with it; after.value is None where the
    pass raises. means, names, candidates: see `Isolated`. pipeline_runs: of the whole recipe. pass_runs: of the one
    pass alone. evaluations: how often the check was made on whole modules.
    """

    check: str
    passes: tuple[str, ...]
    index: int
    name: str
    owner: str
    before: Measured
    after: Measured
    raised: bool
    means: str
    names: tuple[str, ...]
    candidates: int
    isolated: Measured | None
    pipeline_runs: int
    pass_runs: int
    evaluations: int
    reproducer: Reproducer | None = None
    difference: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        lines = [f"pass {self.index + 1} of {len(self.passes)}, {self.name}, {_verb(self)} {self.check}"]
        lines.append(f"  before it: {self.before.words}")
        lines.append(f"  after it:  {self.after.words}")
        lines += _isolated_lines(self)
        lines += [f"  {line}" for line in self.difference[:_LINES]]
        if len(self.difference) > _LINES:
            lines.append(f"  ... and {len(self.difference) - _LINES} more lines")
        lines.append(f"{self.pipeline_runs} run of the recipe, {self.pass_runs} of the pass alone, "
                     f"{self.evaluations} evaluations of the check")  # fmt: skip
        if self.reproducer is not None:
            lines.append(_reproducer_line(self.reproducer))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        measured = {
            name: None if found is None else {"value": _number(found.value), "words": found.words}
            for name, found in (("before", self.before), ("after", self.after), ("isolated", self.isolated))
        }
        reproducer = None if self.reproducer is None else {
            "path": str(self.reproducer.path), "fails": self.reproducer.fails, "why": self.reproducer.why,
            "ops": self.reproducer.ops, "bytes": self.reproducer.bytes,
        }  # fmt: skip
        return {
            "check": self.check, "passes": list(self.passes), "index": self.index, "pass": self.name,
            "owner": self.owner, "raised": self.raised, **measured, "means": self.means, "names": list(self.names),
            "candidates": self.candidates, "pipeline_runs": self.pipeline_runs, "pass_runs": self.pass_runs,
            "evaluations": self.evaluations, "difference": list(self.difference), "reproducer": reproducer,
        }  # fmt: skip


_LINES = 12
_NAMES = 10


def _verb(finding: Finding) -> str:
    return "raises under" if finding.raised else "breaks"


def _number(value: float | None) -> float | str | None:
    """A number that JSON has; others as text."""
    return value if value is None or abs(value) < float("inf") else str(value)


def _isolated_lines(finding: Finding) -> list[str]:
    if finding.means == "pass":
        return ["  no part of what it does breaks it alone: the whole pass"]
    alone = "" if finding.isolated is None else f"; with these alone: {finding.isolated.words}"
    lines = [f"  {len(finding.names)} of its {finding.candidates} {finding.means} suffice{alone}"]
    lines += [f"    {name}" for name in finding.names[:_NAMES]]
    if len(finding.names) > _NAMES:
        lines.append(f"    ... and {len(finding.names) - _NAMES} more")
    return lines


def _reproducer_line(found: Reproducer) -> str:
    state = "fails on its own" if found.fails else "DOES NOT FAIL ON ITS OWN"
    return (f"reproducer {found.path}: {state}, {found.ops} ops, {found.bytes} bytes; {found.why}\n"
            f"  sh {found.path}/reproduce.sh")  # fmt: skip
