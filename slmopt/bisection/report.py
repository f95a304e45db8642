"""The report beside a reproducer, for whoever mends the pass."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from slmopt import __version__
from slmopt.bisection.case import Case
from slmopt.bisection.finding import Finding, Reproducer

__all__ = ["write_report"]

_PACKAGES = ("torch", "transformers", "apache-tvm")


def write_report(case: Case, finding: Finding, found: Reproducer, said: str) -> str:
    """Markdown: what breaks, what of the pass does it, how to see it, what changed."""
    allowed = "" if case.allowed is None else f", with only the rewrites {', '.join(case.allowed)},"
    breaks = "raises" if finding.raised else f"breaks {finding.check}"
    lines = [
        f"# {finding.name} {breaks}", "",
        f"Pass {finding.index + 1} of {len(finding.passes)}, offered by {finding.owner}.", "",
        f"- before it: {finding.before.words}", f"- after it: {finding.after.words}", "",
        "## What of it", "", *_parts(finding), "",
        "## See it", "",
        "    sh reproduce.sh", "",
        f"runs {finding.name}{allowed} on before.slm: {said}.",
        f"It exits with 1 while the fault is there and with 0 when it is mended; it needs slmopt and {_package(case)}, "
        "not the model." if found.fails else "It does NOT fail on its own.",
        f"Kept of the model: {case.why}.", "",
        "## The recipe", "",
        *(f"{number}. {'**' if number == finding.index + 1 else ''}{text}{'**' if number == finding.index + 1 else ''}"
          for number, text in enumerate(finding.passes, 1)), "",
    ]  # fmt: skip
    if finding.difference:
        lines += ["## What changed", "", "```", *finding.difference, "```", ""]
    return "\n".join([*lines, "## Versions", "", _versions(), ""])


def _package(case: Case) -> str:
    """Where the pass comes from: it is imported by the name of its module where no plugin offers it."""
    module = type(case.subject.item).__module__
    return "the plugin of the pass" if case.subject.offered else f"the Python module {module} (PYTHONPATH)"


def _parts(finding: Finding) -> list[str]:
    if finding.means == "pass":
        return ["No part of what it does breaks it alone: the whole pass."]
    alone = "" if finding.isolated is None else f" With these alone: {finding.isolated.words}."
    return [f"{len(finding.names)} of its {finding.candidates} {finding.means} suffice, and none of them can be left "
            f"out.{alone}", "", *(f"- `{name}`" for name in finding.names)]  # fmt: skip


def _versions() -> str:
    found = [f"slmopt {__version__}", f"Python {platform.python_version()}", platform.machine()]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
