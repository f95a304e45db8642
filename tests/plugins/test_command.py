"""`slmopt plugins`, --no-plugins and SLMOPT_DISABLE_PLUGINS, and warnings on the command line."""

from __future__ import annotations

import importlib.metadata
import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import slmopt
from slmopt.cli import main
from slmopt.errors import PluginWarning
from slmopt.offers import replaces
from slmopt.plugins import discovery
from slmopt.plugins.hooks import slmopt_plugin
from tests.plugins.test_faults import Distribution

RECIPE = Path(__file__).parent.parent / "plugin_example" / "slmopt_example" / "sparse.toml"


def _watch(module: Any) -> None:
    return None


def _misspelt() -> dict[str, str]:
    return {}


FINE = SimpleNamespace(
    slmopt_passes=slmopt_plugin(lambda: {"mine": "no_such_package:Mine", "fuse": replaces("no_such_package:Fuse")}),
    slmopt_recipes=slmopt_plugin(lambda: {"sparse": RECIPE}),
    slmopt_after_pass=slmopt_plugin(_watch),
)
BAD = SimpleNamespace(slmopt_pases=slmopt_plugin(_misspelt))


@pytest.fixture(autouse=True)
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes plugins of this file, by name, the installed ones; none at first."""
    points: list[importlib.metadata.EntryPoint] = []

    def install(*names: str) -> None:
        for name in names:
            found = importlib.metadata.EntryPoint(name.lower(), f"{__name__}:{name}", "slmopt")
            vars(found).update(dist=Distribution(f"{name.lower()}-package", "3.0"))
            points.append(found)

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.delenv("SLMOPT_DISABLE_PLUGINS", raising=False)
    discovery._registry.cache_clear()
    yield install
    discovery._registry.cache_clear()


def test_the_listing_says_what_came_from_where(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install("FINE")
    assert main(["plugins"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"slmopt {slmopt.__version__} (built in)\n    passes: raise, ")
    assert text.endswith(
        f"fine-package 3.0 (entry point fine = {__name__}:FINE)\n"
        "    passes: fuse (replaces slmopt's), mine\n"
        "    recipes: sparse\n"
        "    observes: slmopt_after_pass\n"
    )


def test_the_listing_as_json(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install("FINE")
    assert main(["plugins", "--json"]) == 0
    builtin, fine = json.loads(capsys.readouterr().out)["plugins"]
    assert builtin["distribution"] == "slmopt" and len(builtin["offers"]["isas"]) >= 3
    assert fine == {
        "distribution": "fine-package", "version": "3.0", "entry_point": "fine", "module": f"{__name__}:FINE",
        "off": False, "observes": ["slmopt_after_pass"], "problems": [], "offers": {
            "passes": [
                {"name": "fuse", "place": "no_such_package:Fuse", "replaces": ["slmopt"]},
                {"name": "mine", "place": "no_such_package:Mine", "replaces": []},
            ],
            "recipes": [{"name": "sparse", "place": str(RECIPE), "replaces": []}],
        },
    }  # fmt: skip


def test_a_problem_is_a_failed_check(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install("FINE", "BAD")
    assert main(["plugins"]) == 1
    captured = capsys.readouterr()
    problem = "    problem: slmopt_pases: there is no such hook; did you mean 'slmopt_passes'?\n"
    assert f"bad-package 3.0 (entry point bad = {__name__}:BAD)\n{problem}" in captured.out and captured.err == ""


def test_check_imports_what_is_offered(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install("FINE")
    assert main(["plugins", "--check"]) == 1
    text = capsys.readouterr().out
    assert "problem: pass 'mine', offered by fine-package 3.0 (fine), cannot be imported from 'no_such_package" in text
    assert "problem: pass 'fuse', offered by" in text


@pytest.mark.parametrize("arguments", [["--no-plugins", "plugins"], ["plugins", "--no-plugins"]])
def test_third_parties_are_off_for_one_command(
    install: Any, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    install("FINE", "BAD")
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        f"bad-package 3.0 (entry point bad = {__name__}:BAD): switched off",
        f"fine-package 3.0 (entry point fine = {__name__}:FINE): switched off",
    ]
    assert "SLMOPT_DISABLE_PLUGINS" not in os.environ
    assert main(["plugins"]) == 1


def test_the_environment_switches_some_off(
    install: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("FINE", "BAD")
    monkeypatch.setenv("SLMOPT_DISABLE_PLUGINS", "bad-package")
    assert main(["plugins"]) == 0
    text = capsys.readouterr().out
    assert "BAD): switched off" in text and ", mine\n" in text
    assert main(["plugins", "--no-plugins"]) == 0 and os.environ["SLMOPT_DISABLE_PLUGINS"] == "bad-package"
    monkeypatch.setenv("SLMOPT_DISABLE_PLUGINS", "bad,fien")
    capsys.readouterr()
    assert main(["plugins"]) == 1
    assert capsys.readouterr().out.endswith(
        "problem: SLMOPT_DISABLE_PLUGINS names 'fien', and no such plugin is installed; did you mean 'fine'?\n"
    )


def test_warnings_are_one_line_each_and_said_once(
    install: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    install("BAD")
    assert main(["recipes"]) == 0
    assert capsys.readouterr().err == (
        f"warning: plugin bad-package 3.0 (entry point bad = {__name__}:BAD): "
        "hook slmopt_pases: there is no such hook; did you mean 'slmopt_passes'?\n"
    )
    assert main(["passes"]) == 0  # said once in a process
    assert capsys.readouterr().err == ""


def test_in_python_they_are_warnings(install: Any) -> None:
    install("BAD")
    with pytest.warns(PluginWarning, match=r"bad-package 3\.0"):
        discovery.registry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert discovery.registry() is discovery.registry()
