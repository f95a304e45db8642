"""Reproducers: directories that show a fault without the model and the recipe, and replaying them.

    before.slm  before.safetensors   the module before the pass, cut down, and its weights
    original.slm  original.safetensors  the module before the first pass, where the pass looks at it
    inputs.safetensors               the inputs of its graph, where it is a part of a model
    tokens.json                      the text's tokens, where the whole model and a text are needed
    reproducer.json                  the pass, the rewrites that it may make, the check; see `slmopt.bisection.replay`
    reproduce.sh  report.md          one command that exits with 1 while the fault is there; what was found
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from slmopt import __version__
from slmopt.bisection.case import Case
from slmopt.bisection.finding import Finding, Reproducer
from slmopt.bisection.properties import CommandCheck, CompilesCheck, OutputsCheck, TextCheck
from slmopt.bisection.report import write_report
from slmopt.errors import InputError
from slmopt.module_files import write_module
from slmopt.options import describe_pass

__all__ = ["check_directory", "write_reproducer"]

_SCRIPT = """#!/bin/sh
# Exits with 1 while the fault is there, with 0 when it is mended.
exec slmopt bisect --replay "$(dirname "$0")"
"""


def check_directory(path: str | os.PathLike[str]) -> None:
    """InputError where a reproducer cannot be written to `path`: something is there."""
    place = Path(path)
    if os.path.lexists(place) and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place} is there already: choose another directory for the reproducer with -o")


def write_reproducer(case: Case, finding: Finding, path: str | os.PathLike[str]) -> Reproducer:
    """Write the directory, whole or not at all, run it in a process of its own, and say whether it fails there."""
    place = Path(path)
    check_directory(place)
    temporary = place.parent / f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        _write_case(case, temporary)
        fails, said = _try_alone(temporary, raises=case.check is None)
        found = Reproducer(place, fails, case.why if fails else f"{case.why}; {said}",
                           sum(1 for graph in case.module.graphs.values() for _ in graph.walk()), 0)  # fmt: skip
        (temporary / "report.md").write_text(write_report(case, finding, found, said), encoding="utf-8")
        found = dataclasses.replace(found, bytes=sum(entry.stat().st_size for entry in temporary.iterdir()))
        os.rename(temporary, place)
    except OSError as error:
        raise InputError(f"cannot write the reproducer to {place}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _write_case(case: Case, directory: Path) -> None:
    if case.stored_weights:
        write_module(case.module, directory / "before.slm")
    else:
        (directory / "before.slm").write_text(str(case.module), encoding="utf-8")
    original = case.subject.context.original
    if case.subject.item.compares and original is not None:
        write_module(original, directory / "original.slm")
    if case.inputs is not None:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous().clone() for name, tensor in case.inputs.items()},
                  directory / "inputs.safetensors")  # fmt: skip
    if _needs_tokens(case):
        (directory / "tokens.json").write_text(json.dumps(_tokens(case)) + "\n", encoding="utf-8")
    text = json.dumps(_describe(case), indent=2, sort_keys=True) + "\n"
    (directory / "reproducer.json").write_text(text, encoding="utf-8")
    script = directory / "reproduce.sh"
    script.write_text(_SCRIPT, encoding="utf-8")
    script.chmod(0o755)


def _needs_tokens(case: Case) -> bool:
    return isinstance(case.check, TextCheck) or case.subject.item.calibrated


def _tokens(case: Case) -> dict[str, Any]:
    calibration, documents = case.texts.calibration, case.texts.documents
    return {
        "calibration": None if calibration is None else [list(ids) for ids in calibration.documents],
        "documents": None if documents is None else [[list(document.ids), document.bytes] for document in documents],
    }


def _describe(case: Case) -> dict[str, Any]:
    item, check, error = case.subject.item, case.check, case.subject.error
    target = case.subject.context.target
    return {
        "format": 1, "slmopt": __version__, "pass": describe_pass(item),
        "class": None if case.subject.offered else f"{type(item).__module__}:{type(item).__qualname__}",
        "weights": case.stored_weights, "inputs": case.inputs is not None,
        "rewrites": None if case.allowed is None else list(case.allowed), "graph": case.graph,
        "raises": None if check is not None or error is None else type(error).__name__,
        "check": check.text if isinstance(check, OutputsCheck | TextCheck | CompilesCheck) else None,
        "command": check.command if isinstance(check, CommandCheck) else None,
        "target": check.target if isinstance(check, CompilesCheck) else None if target is None else str(target),
    }  # fmt: skip


def _try_alone(directory: Path, *, raises: bool) -> tuple[bool, str]:
    """Whether it fails in a process of its own, and as it should; and what is said there."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *(entry for entry in sys.path if entry)])
    command = [sys.executable, "-m", "slmopt", "bisect", "--json", "--replay", str(directory)]
    environment = {**os.environ, "PYTHONPATH": paths}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode == 1 and found.stdout.startswith("{"):
        told = json.loads(found.stdout)
        return told["raised"] == raises, str(told["words"])
    said = (found.stderr.strip() or found.stdout.strip() or f"exit code {found.returncode}").splitlines()
    return False, f"alone it says: {said[-1]}"
