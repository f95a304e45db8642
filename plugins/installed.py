"""Which plugins are installed: the built-ins and the entry points of group "slmopt", loaded, broken or switched off."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from slmopt import __version__
from slmopt.errors import nearest
from slmopt.plugins.hooks import GROUP

__all__ = ["BUILTIN", "DISABLE", "Plugin", "Problem", "describe", "find_plugins"]

BUILTIN = "slmopt"  # the owner of what comes with slmopt
DISABLE = "SLMOPT_DISABLE_PLUGINS"  # "1" or "all": every third party; else entry points or distributions, by commas


@dataclass(frozen=True)
class Plugin:
    """One plugin: the entry point `name` of a distribution, at `place`, and what is there.

    problem: why there is no content, where it could not be loaded. off: it is switched off and was not loaded.
    """

    owner: str
    content: Any = None
    distribution: str = ""
    version: str = ""
    name: str = ""
    place: str = ""
    problem: str = ""
    off: bool = False

    @property
    def described(self) -> str:
        """The plugin as warnings name it."""
        if not self.name:
            return self.owner
        return f"{self.distribution} {self.version}".rstrip() + f" (entry point {self.name} = {self.place})"


@dataclass(frozen=True)
class Problem:
    """Something wrong with a plugin, and the hook it lies in, if any."""

    plugin: Plugin
    cause: str
    hook: str = ""

    def __str__(self) -> str:
        hook = f"hook {self.hook}: " if self.hook else ""
        return f"plugin {self.plugin.described}: {hook}{self.cause}"


def find_plugins(disabled: str | None = None) -> tuple[list[Plugin], list[str]]:
    """The built-ins first, then every installed plugin by name; and what is wrong beyond any one of them.

    `disabled` is as the environment variable SLMOPT_DISABLE_PLUGINS has it, which is read where it is None.
    """
    from slmopt.plugins import builtin

    off = _names(os.environ.get(DISABLE, "") if disabled is None else disabled)
    plugins = [Plugin(BUILTIN, builtin, "slmopt", __version__, "", builtin.__name__)]
    points, problems = _entry_points()
    known: set[str] = set()
    seen: dict[int, str] = {}
    for point in points:
        distribution, version = _distribution(point)
        names = {_normal(point.name), _normal(distribution)}
        known |= names
        plugin = Plugin(f"{distribution} ({point.name})", None, distribution, version, point.name, point.value)
        plugins.append(_load(plugin, point, seen, "all" in off or bool(names & off)))
    for name in sorted(off - known - {"all"}):
        problems.append(f"{DISABLE} names {name!r}, and no such plugin is installed{nearest(name, known)}")
    return plugins, problems


def _entry_points() -> tuple[list[importlib.metadata.EntryPoint], list[str]]:
    """Sorted by name. One distribution whose metadata cannot be read hides no other."""
    problems: list[str] = []
    try:
        points = list(importlib.metadata.entry_points(group=GROUP))
    except Exception:
        points = list(_one_by_one(problems))
    return sorted(points, key=lambda point: (point.name, point.value)), problems


def _one_by_one(problems: list[str]) -> Iterator[importlib.metadata.EntryPoint]:
    names: set[str] = set()
    for distribution in importlib.metadata.distributions():
        try:
            name = _normal(distribution.name)
            points = [point for point in distribution.entry_points if point.group == GROUP]
        except Exception as error:
            path = getattr(distribution, "_path", "")
            problems.append(f"the metadata of an installed package cannot be read ({path}): {describe(error)}")
            continue
        if name not in names:
            names.add(name)
            yield from points


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    try:
        if point.dist is not None:
            return str(point.dist.name or "unknown"), str(point.dist.version or "")
    except Exception:  # damaged metadata: the plugin may work all the same
        pass
    return "unknown", ""


def _load(plugin: Plugin, point: importlib.metadata.EntryPoint, seen: dict[int, str], off: bool) -> Plugin:
    if off:
        return replace(plugin, off=True)
    try:
        content = point.load()
    except (Exception, SystemExit) as error:
        return replace(plugin, problem=f"cannot be loaded: {describe(error)}; mend or uninstall it")
    other = seen.setdefault(id(content), plugin.described)
    if other != plugin.described:
        return replace(plugin, problem=f"is the same object as {other}: one entry point is enough")
    return replace(plugin, content=content)


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _names(setting: str) -> set[str]:
    """What SLMOPT_DISABLE_PLUGINS switches off: {"all"}, or normalized names."""
    word = setting.strip().lower()
    if word in ("", "0", "false", "no", "off"):
        return set()
    if word in ("1", "true", "yes", "on", "all"):
        return {"all"}
    return {_normal(part.strip()) for part in setting.split(",") if part.strip()}


def _normal(name: str) -> str:
    """A name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
