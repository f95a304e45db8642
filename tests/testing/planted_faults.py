"""How many examples each planted fault needs; run as a program, it writes the table of docs/testing-a-pass.md."""

from __future__ import annotations

from pathlib import Path

from slmopt.pipeline import Pass
from slmopt.testing import ConformanceError, check_pass
from tests.testing.faulty import FAULTS, forget

__all__ = ["SEEDS", "find_fault", "read_table", "table"]

SEEDS = range(6)
_PAGE = Path(__file__).resolve().parents[2] / "docs" / "testing-a-pass.md"
_FOUND: dict[tuple[str, int], ConformanceError | None] = {}
_BEGIN, _END = "<!-- planted faults -->\n", "<!-- end -->"


def find_fault(fault: type[Pass], seed: int) -> ConformanceError | None:
    """What `check_pass` says of a faulty pass within its default budget; None where it finds nothing."""
    place = (fault.name, seed)
    if place not in _FOUND:
        _FOUND[place] = _find(fault, seed)
    return _FOUND[place]


def _find(fault: type[Pass], seed: int) -> ConformanceError | None:
    forget()
    try:
        check_pass(fault, seed=seed, shrink=False, compile=0)
    except ConformanceError as error:
        return error
    return None


def table() -> str:
    """The table of the page, measured."""
    lines = ["| A pass that ... | is found by | examples, seed 0 | most of six seeds |", "| --- | --- | --- | --- |"]
    for fault in FAULTS:
        found = [error for seed in SEEDS if (error := find_fault(fault, seed)) is not None]
        checks = ", ".join(f"`{check}`" for check in sorted({error.check for error in found}))
        most = max(error.examples for error in found) if len(found) == len(SEEDS) else "not found"
        summary = (fault.__doc__ or "").splitlines()[0]
        lines.append(f"| {summary} | {checks} | {found[0].examples} | {most} |")
    return "\n".join(lines) + "\n"


def read_table() -> str:
    """The table as the page has it."""
    return _PAGE.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]


if __name__ == "__main__":
    before, _, rest = _PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    _PAGE.write_text(f"{before}{_BEGIN}{table()}{_END}{after}", encoding="utf-8")
