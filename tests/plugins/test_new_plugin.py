"""`slmopt new-plugin`: what it writes passes its own tests, and a name or place that will not do is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from slmopt.cli import main
from tests.toy_model import TEXT

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin as generated, with the .dist-info that an editable install would leave beside it."""
    directory = tmp_path_factory.mktemp("made") / "plugin"
    assert main(["new-plugin", "Slmopt.Half_Width", "-o", str(directory)]) == 0
    project = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
    assert project["name"] == "slmopt-half-width"
    info = directory / "slmopt_half_width-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{name} = {place}" for name, place in project["entry-points"]["slmopt"].items())
    (info / "entry_points.txt").write_text(f"[slmopt]\n{points}\n")
    return directory


def python(plugin: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(plugin), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, input=text, env=environment, cwd=plugin, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_it_passes_its_own_tests(plugin: Path) -> None:
    done = python(plugin, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_it_is_found_and_runs(plugin: Path) -> None:
    listed = python(plugin, "slmopt", "passes", "half-width")
    assert listed.returncode == 0 and "from slmopt-half-width" in listed.stdout and listed.stderr == ""
    checked = python(plugin, "slmopt", "plugins", "--check")
    assert checked.returncode == 0 and "slmopt-half-width 0.1.0" in checked.stdout, checked.stdout
    done = python(plugin, "slmopt", "opt", "-p", "half-width", "--check", text=TEXT)
    assert done.returncode == 0, done.stderr


def test_it_is_clean(plugin: Path) -> None:
    rules = "B,C4,E,F,I,N,PIE,RUF,SIM,T20,UP,W"
    done = python(plugin, "ruff", "check", "--no-cache", "--line-length", "120", "--select", rules, ".")
    assert done.returncode == 0, done.stdout
    assert python(plugin, "ruff", "format", "--no-cache", "--check", "--line-length", "120", ".").returncode == 0


@pytest.mark.slow
def test_its_types_are_strictly_right(plugin: Path, tmp_path: Path) -> None:
    done = python(plugin, "mypy", "--follow-imports", "silent", "--cache-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("-foo", "no name for a package"),
        ("foo bar", "no name for a package"),
        ("foo/bar", "no name for a package"),
        ("café", "no name for a package"),
        ("", "no name for a package"),
        ("4bit", "a pass named '4bit'"),
        ("slmopt-4bit", "a pass named '4bit'"),
        ("class", "which Python cannot import"),
        ("slmopt", "a package that exists"),
        ("json", "a package that exists"),
        ("numpy", "is installed already"),
        ("slmopt-quantize", "which slmopt has already"),
        ("slmopt-exact", "a class named Exact"),
        ("slmopt-none", "a class named None"),
    ],
)
def test_a_name_that_will_not_do_is_refused(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "plugin"
    assert main(["new-plugin", "-o", str(directory), "--", name]) == 2
    assert message in capsys.readouterr().err
    assert not directory.exists()


def test_what_exists_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("full", "file", "file/inside"):
        assert main(["new-plugin", "slmopt-foo", "-o", str(tmp_path / place)]) == 2
        assert str(tmp_path / place) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "full"]
    (tmp_path / "empty").mkdir()
    assert main(["new-plugin", "slmopt-foo", "-o", str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "slmopt_foo" / "plugin.py").is_file()


def test_nothing_is_left_of_a_failed_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    assert main(["new-plugin", "slmopt-foo", "-o", str(tmp_path / "new")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
