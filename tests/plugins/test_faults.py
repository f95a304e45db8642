"""Plugins that clash, misspell, raise or lie: each is a warning that names it, and nobody else is harmed."""

from __future__ import annotations

import importlib.metadata
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from slmopt.cli import main
from slmopt.errors import InputError, PluginWarning
from slmopt.ir.graph import Module
from slmopt.offers import replaces
from slmopt.pipeline import Context, Pass
from slmopt.plugins import builtin, discovery
from slmopt.plugins.discovery import Registry
from slmopt.plugins.hooks import slmopt_plugin
from slmopt.plugins.installed import Plugin, find_plugins


@dataclass(frozen=True)
class Other(Pass):
    """x -> x"""

    name = "raise"

    def run(self, module: Module, context: Context) -> dict[str, int]:
        return {}


class Plain(Pass):
    """x -> x"""

    name = "plain"


class Silent:
    """A backend that says nothing of itself; it is made without arguments."""

    name, summary = "silent", "silence"

    def status(self) -> dict[str, Any]:
        raise RuntimeError("not now")


class Fragile:
    """A frontend that cannot be asked."""

    summary = "fragile"

    def accepts(self, source: Any) -> bool:
        raise RuntimeError("ouch")


HERE = __name__
GOOD = {"good": f"{HERE}:Other"}


def offering(**hooks: Any) -> SimpleNamespace:
    """A plugin whose hooks return fixed values."""
    return SimpleNamespace(**{name: slmopt_plugin(lambda found=found: found) for name, found in hooks.items()})


def mine(content: Any, name: str = "mine") -> Plugin:
    """A plugin as discovery finds it."""
    return Plugin(f"{name} (point)", content, name, "1.5", "point", f"{name}.plugin")


def registry_of(*plugins: Plugin, warns: str) -> Registry:
    """The registry of the built-ins and these plugins, which gives one warning that matches."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        known = Registry([("slmopt", builtin), *plugins])
    (found,) = (str(item.message) for item in caught if issubclass(item.category, PluginWarning))
    assert warns in found and found.count("\n") == 0
    assert [str(problem) for problem in known.problems] == [found]
    assert known.find_pass("fuse").name == "fuse"  # the others go on working
    return known


# --- names that clash ----------------------------------------------------------------------------------------------
def test_a_clash_names_both_owners_where_the_name_is_used_and_nowhere_else() -> None:
    plugin = mine(offering(slmopt_passes={"raise": f"{HERE}:Other"}, slmopt_metrics={"new": f"{HERE}:Other"}))
    known = registry_of(plugin, warns="pass 'raise' is offered by slmopt and by mine 1.5 (point)")
    with pytest.raises(InputError, match=r"pass 'raise' is offered by slmopt and by mine 1.5 \(point\): uninstall"):
        known.find_pass("raise")
    assert "new" in known.metrics
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of the clash was warned
        assert "raise" not in known.working_passes() and "fuse" in known.working_passes()


def test_a_clash_of_files(tmp_path: Path) -> None:
    file = tmp_path / "w4.toml"
    file.write_text("passes = []")
    known = registry_of(mine(offering(slmopt_recipes={"w4": file})), warns="recipe 'w4' is offered by slmopt and by")
    with pytest.raises(InputError, match="offered by slmopt and by mine"):
        known.find_recipe("w4")
    assert known.find_recipe("w8").passes


def test_an_explicit_replacement_is_no_clash() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = Registry([("slmopt", builtin), mine(offering(slmopt_passes={"raise": replaces(f"{HERE}:Other")}))])
    assert known.find_pass("raise") is Other
    assert known.passes["raise"].owner == "mine (point)" and known.passes["raise"].replaced == ("slmopt",)


def test_two_replacements_clash() -> None:
    both = [mine(offering(slmopt_passes={"raise": replaces(f"{HERE}:Other")}), name) for name in ("one", "two")]
    known = registry_of(*both, warns="offered by one 1.5 (point) and by two 1.5 (point)")
    with pytest.raises(InputError, match=r"offered by one 1\.5"):
        known.find_pass("raise")


def test_a_replacement_of_nothing_is_probably_misspelt() -> None:
    plugin = mine(offering(slmopt_passes={"quantise": replaces(f"{HERE}:Other")}))
    known = registry_of(plugin, warns="replaces the pass 'quantise', which nobody offers; did you mean 'quantize'")
    assert known.passes["quantise"].replaced == ()


def test_one_plugin_that_offers_a_name_twice() -> None:
    again = slmopt_plugin(lambda: GOOD, specname="slmopt_passes")
    plugin = mine(SimpleNamespace(slmopt_passes=slmopt_plugin(lambda: GOOD), more=again))
    known = registry_of(plugin, warns="pass 'good' is offered by mine 1.5 (point) and by mine 1.5 (point)")
    with pytest.raises(InputError, match="'good' is offered by mine"):
        known.find_pass("good")


# --- hooks that are not hooks ---------------------------------------------------------------------------------------
def misspelt() -> dict[str, str]:
    return GOOD


def with_arguments(module: Any, wishes: Any) -> dict[str, str]:
    return GOOD


def raising() -> dict[str, str]:
    raise RuntimeError("two\nlines")


def leaving() -> dict[str, str]:
    sys.exit("I leave")


def wrapping() -> Any:
    yield


def helper() -> None:
    raise AssertionError("it is no hook")


def unmarked() -> dict[str, str]:
    return GOOD


@pytest.mark.parametrize(
    ("functions", "warning"),
    [
        ({"slmopt_pases": slmopt_plugin(misspelt)},
         "plugin mine 1.5 (entry point point = mine.plugin): hook slmopt_pases: there is no such hook; did you mean "
         "'slmopt_passes'?"),
        ({"slmopt_passes": slmopt_plugin(with_arguments)},
         "hook slmopt_passes: wrong signature slmopt_passes(module: 'Any', wishes: 'Any') -> 'dict[str, str]': "
         "expected slmopt_passes()"),
        ({"slmopt_after_pass": slmopt_plugin(with_arguments)},
         "expected slmopt_after_pass(item, module, row), or fewer of these"),
        ({"slmopt_passes": slmopt_plugin(raising)}, "hook slmopt_passes: raised RuntimeError: two lines"),
        ({"slmopt_passes": slmopt_plugin(leaving)}, "hook slmopt_passes: raised SystemExit: I leave"),
        ({"slmopt_passes": pluggy.HookimplMarker("slmopt")(wrapper=True)(wrapping)},
         "hook slmopt_passes: a wrapper of other plugins' hooks is not supported"),
        ({"slmopt_passes": unmarked}, "the function slmopt_passes is not marked, so it is no hook: forgot"),
        ({"slmopt_pases": unmarked}, "is no hook; did you mean 'slmopt_passes'?: forgot @slmopt_plugin?"),
        ({"passes": unmarked}, "offers nothing: none of its functions is marked @slmopt_plugin"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_a_hook(functions: dict[str, Any], warning: str) -> None:
    for extra in ({}, {"slmopt_metrics": slmopt_plugin(lambda: {"kept": f"{HERE}:Other"})}):
        if extra and "offers nothing" in warning:
            continue
        known = registry_of(mine(SimpleNamespace(**functions, **extra)), warns=warning)
        assert ("kept" in known.metrics) == bool(extra)  # the plugin's other hooks count


@pytest.mark.parametrize(
    ("found", "warning"),
    [
        (None, "hook slmopt_passes: expected a mapping of names to places, got NoneType"),
        (["good"], "expected a mapping of names to places, got list"),
        ({3: "a:B"}, "a name must be text, got 3"),
        ({"Bad Name": "a:B"}, "pass 'Bad Name': expected a name of the form small letters, digits, - and _"),
        ({"bad": "package.module"}, "pass 'bad': expected \"module:attribute\", got 'package.module'"),
        ({"bad": "a b:C"}, "pass 'bad': expected \"module:attribute\", got 'a b:C'"),
        ({"bad": Path("a.py")}, "pass 'bad': expected \"module:attribute\", got PosixPath('a.py')"),
        ({"bad": Other}, "pass 'bad': expected \"module:attribute\", got <class"),
        ({"bad": None}, "pass 'bad': expected \"module:attribute\", got None"),
    ],
)
def test_a_result_that_is_no_offer(found: Any, warning: str) -> None:
    result = {**found, **GOOD} if isinstance(found, dict) else found
    known = registry_of(mine(offering(slmopt_passes=result)), warns=warning)
    assert "bad" not in known.passes and ("good" in known.passes) == isinstance(found, dict)


@pytest.mark.parametrize(
    ("hook", "found", "warning"),
    [
        ("slmopt_recipes", {"r": "r.toml"}, "recipe 'r': expected a file (pathlib.Path), got 'r.toml'"),
        ("slmopt_isas", {"r": Path("/no/where.toml")}, "instruction set 'r': there is no file /no/where.toml"),
        ("slmopt_rules", {"fuse": "a:B"}, "ruleset 'fuse': expected a name of the form PASS/RULESET"),
        ("slmopt_rules", {"fues/more": "a:B"}, "ruleset 'fues/more' is for the pass 'fues', which nobody offers; did"),
        ("slmopt_lowerings", {"relu": "a:B"}, "lowering 'relu': expected a name of the form CODEGEN:OP or CODEGEN:OP@"),
    ],
)
def test_names_and_places_have_the_form_of_their_hook(hook: str, found: Any, warning: str) -> None:
    registry_of(mine(offering(**{hook: found})), warns=warning)


def test_an_object_that_cannot_be_looked_into() -> None:
    class Hostile:
        def __dir__(self) -> list[str]:
            raise RuntimeError("go away")

    registry_of(mine(Hostile()), warns="is not usable: RuntimeError: go away")


def test_functions_imported_into_a_plugin_are_not_its_own() -> None:
    module = types.ModuleType("some_plugin")
    vars(module).update(slmopt_passes=slmopt_plugin(lambda: GOOD), slmopt_helper=helper)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "good" in Registry([mine(module)]).passes


# --- what is offered and does not work --------------------------------------------------------------------------------
def test_a_frontend_that_raises_is_passed_over() -> None:
    plugin = mine(offering(slmopt_frontends={"fragile": f"{HERE}:Fragile", "absent": f"{HERE}:Absent"}))
    known = Registry([("slmopt", builtin), plugin])
    with pytest.warns(PluginWarning) as caught:
        assert type(known.find_frontend("some/directory")).__name__ == "HuggingFaceDirectory"
    messages = [str(item.message) for item in caught]
    assert "mine 1.5" in messages[0] and "frontend 'fragile' raised RuntimeError: ouch" in messages[0]
    assert "'absent', offered by mine 1.5 (point), cannot be imported" in messages[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        known.find_frontend("some/directory")


def test_a_pass_that_cannot_be_imported_is_missing_from_lists_alone() -> None:
    known = Registry([("slmopt", builtin), mine(offering(slmopt_passes={"absent": "no_such_package:Pass"}))])
    with pytest.warns(PluginWarning, match="pass 'absent', offered by mine 1.5"):
        working = known.working_passes()
    assert "absent" not in working and "quantize" in working
    with pytest.raises(InputError, match="ModuleNotFoundError: No module named 'no_such_package'"):
        known.find_pass("absent")


def test_a_pass_that_is_no_dataclass_is_missing_from_lists_alone() -> None:
    known = Registry([("slmopt", builtin), mine(offering(slmopt_passes={"plain": f"{HERE}:Plain"}))])
    with pytest.warns(PluginWarning, match=r"pass plain is no dataclass: .* Plain .*; mine 1\.5 \(point\) offers it"):
        assert "plain" not in known.working_passes()


def test_a_built_in_that_cannot_be_imported_is_an_error() -> None:
    known = Registry([("slmopt", offering(slmopt_passes={"absent": "no_such_package:Pass"}))])
    with pytest.raises(InputError, match="pass 'absent', offered by slmopt, cannot be imported"):
        known.working_passes()


def test_targets_are_listed_without_the_one_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"silent": f"{HERE}:Silent", "fragile": f"{HERE}:GOOD"}
    known = Registry([("slmopt", builtin), mine(offering(slmopt_backends=places))])
    monkeypatch.setattr(discovery, "registry", lambda: known)
    assert main(["targets"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("cpu  ") and "silent" not in captured.out
    first, second = captured.err.splitlines()
    assert "target 'fragile', offered by mine 1.5 (point): " in first and "cannot be made: TypeError" in first
    assert second.endswith("target 'silent' gives no status: RuntimeError: not now")


def test_everything_is_imported_to_check_it() -> None:
    plugin = mine(offering(
        slmopt_passes={"absent": f"{HERE}:Absent"}, slmopt_ops={"no_op": f"{HERE}:GOOD"},
        slmopt_rules={"fuse/none": f"{HERE}:GOOD"}, slmopt_metrics={"fragile": f"{HERE}:Fragile"},
        slmopt_lowerings={"tvm:no_op": f"{HERE}:absent"},
    ))  # fmt: skip
    known = Registry([("slmopt", builtin), plugin])
    with pytest.warns(PluginWarning) as caught:
        known.check_offers()
    messages = sorted(str(item.message).partition("plugin): ")[2] for item in caught)
    assert [message.split(",")[0].split(":")[0] for message in messages] == [
        "hook slmopt_rules", "lowering 'tvm", "metric 'fragile'", "op 'no_op'", "pass 'absent'",
    ]  # fmt: skip


# --- what is installed ------------------------------------------------------------------------------------------------
class Distribution:
    """Of an entry point: a name and a version."""

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version


def point(name: str, value: str, distribution: str = "some-package") -> importlib.metadata.EntryPoint:
    """An entry point of a distribution."""
    found = importlib.metadata.EntryPoint(name, value, "slmopt")
    vars(found).update(dist=Distribution(distribution, "2.1"))
    return found


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes these entry points the installed ones."""

    def install(*points: importlib.metadata.EntryPoint) -> None:
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: list(points))

    return install


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("no_such_package.plugin", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("not a module!", "cannot be loaded: "),
        (f"{HERE}:absent", "AttributeError: "),
    ],
)
def test_a_plugin_that_does_not_load_is_named(install: Any, value: str, cause: str) -> None:
    install(point("broken", value), point("fine", f"{HERE}:FINE", "other-package"))
    plugins, problems = find_plugins("")
    assert problems == []
    with pytest.warns(PluginWarning) as caught:
        known = Registry(plugins)
    (message,) = (str(item.message) for item in caught)
    assert message.startswith(f"plugin some-package 2.1 (entry point broken = {value}): cannot be loaded: ")
    assert cause in message
    assert "good" in known.passes and known.passes["good"].source == "other-package 2.1 (fine)"


FINE = offering(slmopt_passes=GOOD)


def test_two_entry_points_to_one_object(install: Any) -> None:
    install(point("one", f"{HERE}:FINE"), point("two", f"{HERE}:FINE"))
    first, second = find_plugins("")[0][1:]
    assert first.content is FINE and second.content is None
    assert second.problem == ("is the same object as some-package 2.1 (entry point one = "
                              f"{HERE}:FINE): one entry point is enough")  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "off"),
    [
        ("", []), ("0", []), ("false", []), ("1", ["one", "two"]), ("true", ["one", "two"]), ("All", ["one", "two"]),
        ("one", ["one"]), ("some_package", ["one"]), (" Other.Package , one", ["one", "two"]),
    ],
)  # fmt: skip
def test_third_parties_are_switched_off_by_name(
    install: Any, monkeypatch: pytest.MonkeyPatch, setting: str, off: list[str]
) -> None:
    install(point("one", "no.such:thing"), point("two", f"{HERE}:FINE", "other-package"))
    monkeypatch.setenv("SLMOPT_DISABLE_PLUGINS", setting)
    plugins, problems = find_plugins()
    assert [plugin.name for plugin in plugins if plugin.off] == off and problems == []
    assert plugins[0].content is builtin
    assert all(plugin.problem == "" and plugin.content is None for plugin in plugins if plugin.off)  # nothing loaded


def test_a_name_to_switch_off_that_is_not_installed(install: Any) -> None:
    install(point("one", f"{HERE}:FINE"))
    plugins, problems = find_plugins("oen")
    assert problems == ["SLMOPT_DISABLE_PLUGINS names 'oen', and no such plugin is installed; did you mean 'one'?"]
    with pytest.warns(PluginWarning, match="names 'oen'"):
        assert "good" in Registry(plugins, problems).passes


def test_a_package_with_damaged_metadata_hides_no_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, points in (("damaged", "[slmopt]\nno equals sign\n"), ("whole", f"[slmopt]\nfine = {HERE}:FINE\n")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins, problems = find_plugins("")
    assert "whole (fine)" in [plugin.owner for plugin in plugins]
    assert len(problems) == 1 and "damaged-1.0.dist-info" in problems[0]
