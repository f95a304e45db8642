"""Reproducers: small directories that fail on their own, in a process that knows no model and no recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import slmopt
from slmopt.bisection import Finding, replay
from slmopt.errors import InputError
from slmopt.pipeline import Pass
from tests.bisection.faults import Compares, Expand, Fails, Harmless, Head, Marks, Rounds, Scales, layered_model

_ROOT = Path(__file__).resolve().parents[2]


def _find(recipe: list[Pass], path: Path, check: str | None = "outputs", command: str | None = None) -> Finding:
    found = slmopt.bisect(layered_model(), recipe, check, command=command, reproducer=path)
    assert found is not None
    return found


def _run_script(path: Path) -> subprocess.CompletedProcess[str]:
    """reproduce.sh, where `slmopt` is this one."""
    tools = path.parent / "tools"
    tools.mkdir()
    (tools / "slmopt").write_text(f'#!/bin/sh\nexec {sys.executable} -m slmopt "$@"\n')
    (tools / "slmopt").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(_ROOT)}
    return subprocess.run(["sh", str(path / "reproduce.sh")], cwd="/", env=environment, capture_output=True, text=True)


def test_a_wrong_rule(tmp_path: Path) -> None:
    """Of the model, the one op stays that is rewritten wrongly, with its input; of 30 passes, one."""
    place = tmp_path / "found" / "here"
    found = _find([*map(Harmless, range(20)), Expand((4,)), *map(Harmless, range(9))], place)
    assert found.reproducer is not None and found.reproducer.fails and found.reproducer.ops == 1
    module = slmopt.load(place / "before.slm")
    assert [op.name for op in module.graph().walk()] == ["silu"]
    assert sorted(entry.name for entry in place.iterdir()) == [
        "before.slm", "inputs.safetensors", "report.md", "reproduce.sh", "reproducer.json",
    ]  # fmt: skip
    assert found.reproducer.bytes < 20_000
    ran = _run_script(place)
    assert ran.returncode == 1, ran.stderr
    assert ran.stdout.startswith("it fails: outputs differ by 0.0")
    report = (place / "report.md").read_text()
    assert "expand at @forward/%a4" in report and "sh reproduce.sh" in report and "- %a4 = silu(%u4)" in report


def test_a_pass_that_looks_at_the_original(tmp_path: Path) -> None:
    """It does nothing to a module that is the original, so the original is stored, too."""
    found = _find([Expand(), Compares()], tmp_path / "found", "outputs<=1e-2")
    assert found.name == "compares"
    assert found.reproducer is not None and found.reproducer.fails, found.reproducer
    assert str(slmopt.load(tmp_path / "found" / "original.slm")) == str(layered_model())


def test_only_the_weights_that_are_read(tmp_path: Path) -> None:
    found = _find([Harmless(), Rounds((2,))], tmp_path / "found", "outputs<=2e-2")
    assert found.reproducer is not None and found.reproducer.fails
    module = slmopt.load(tmp_path / "found" / "before.slm")
    assert list(module.weights) == ["layers.2.up"]
    model = layered_model()
    assert module.weights.load("layers.2.up").equal(model.weights.load("layers.2.up"))


def test_definitions(tmp_path: Path) -> None:
    found = _find([Harmless(), Scales(3)], tmp_path / "found")
    assert found.reproducer is not None and found.reproducer.fails and found.reproducer.ops == 1


def test_a_pass_that_raises(tmp_path: Path) -> None:
    found = _find([Harmless(), Fails(3)], tmp_path / "found")
    assert found.reproducer is not None and found.reproducer.fails and found.reproducer.ops == 1
    assert "it raises ZeroDivisionError: a planted fault" in (tmp_path / "found" / "report.md").read_text()


def test_a_command(tmp_path: Path) -> None:
    found = _find([Harmless(), Expand()], tmp_path / "found", None, '! grep -q "sigmoid(%u3)" {}')
    assert found.reproducer is not None and found.reproducer.fails and found.reproducer.ops == 1


def test_a_whole_module(tmp_path: Path) -> None:
    found = _find([Harmless(), Marks()], tmp_path / "found", None, "! grep -q planted {}")
    assert found.reproducer is not None and found.reproducer.fails
    replayed = replay(tmp_path / "found")
    assert replayed.fails and replayed.words == "the command exits with 1"


def test_it_passes_once_the_fault_is_mended(tmp_path: Path) -> None:
    _find([Harmless(), Expand((1,))], tmp_path / "found")
    file = tmp_path / "found" / "reproducer.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "pass": "expand"}))
    assert not replay(tmp_path / "found").fails


def test_drift_that_only_adds_up_over_passes_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """Each pass stays within the limit, two do not: of the second, half of what it does is what is looked for."""
    found = _find([Head(5e-4), Harmless(), Head(5e-4)], tmp_path / "found", "outputs<=8e-4")
    assert found.index == 2
    assert found.reproducer is not None and found.reproducer.fails and found.reproducer.ops == 1
    assert "half of what it does" in found.reproducer.why
    assert json.loads((tmp_path / "found" / "reproducer.json").read_text())["check"] == "outputs<=0.00025"


def test_a_pass_that_cannot_be_imported_is_not_claimed(tmp_path: Path) -> None:
    class Local(Scales):
        """A pass that only this function knows."""

    found = _find([Local(1)], tmp_path / "found")
    assert found.reproducer is not None and not found.reproducer.fails
    assert "cannot be imported" in found.reproducer.why
    assert "DOES NOT FAIL ON ITS OWN" in str(found)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        _find([Expand((1,))], tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("reproducer.json", None, "cannot read"),
    ("reproducer.json", "{", "is no JSON"),
    ("reproducer.json", '{"format": 7}', "has format 7"),
    ("reproducer.json", '{"format": 1}', "lacks 'pass'"),
    ("reproducer.json", '{"format": 1, "pass": 3}', "lacks 'class'"),
    ("before.slm", "module", "expected"),
])  # fmt: skip
def test_damaged_reproducers(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    _write_minimal(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(slmopt.SlmError, match=words):
        replay(tmp_path)


def _write_minimal(path: Path) -> None:
    told = {
        "format": 1, "pass": "scales{wrong=1}", "class": "tests.bisection.faults:Scales", "weights": False,
        "inputs": False, "rewrites": None, "raises": None, "check": "outputs", "command": None, "graph": "forward",
        "target": None,
    }  # fmt: skip
    (path / "reproducer.json").write_text(json.dumps(told))
    (path / "before.slm").write_text(str(layered_model()))


@pytest.mark.parametrize("name", ["before.safetensors", "inputs.safetensors"])
def test_a_missing_file_is_not_made_up(tmp_path: Path, name: str) -> None:
    _find([Rounds((2,))], tmp_path / "found", "outputs<=2e-2")
    (tmp_path / "found" / name).unlink()
    with pytest.raises(InputError, match=f"lacks {name}"):
        replay(tmp_path / "found")


def test_drawn_weights_stand_in_for_those_that_are_not_stored(tmp_path: Path) -> None:
    _write_minimal(tmp_path)
    assert replay(tmp_path).fails
