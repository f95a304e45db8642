"""Calling the hooks of plugins: what they offer by name, who watches pipelines, and what is wrong with them.

A hook that is misspelt, has the wrong signature, raises or returns nonsense costs its plugin this hook and nobody else
anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pluggy

from slmopt.errors import nearest
from slmopt.offers import Offer, Offers
from slmopt.plugins.hooks import GROUP, HookSpecifications
from slmopt.plugins.installed import Plugin, Problem, describe
from slmopt.plugins.kinds import KINDS, Kind, read_offers

__all__ = ["Collection", "Watcher", "collect"]

_HOOKS = tuple(name for name in vars(HookSpecifications) if name.startswith("slmopt_"))
_OBSERVING = tuple(name for name in _HOOKS if name not in {kind.hook for kind in KINDS})


@dataclass(frozen=True)
class Watcher:
    """One function of a plugin that observes: for which hook, and which of the hook's arguments it wants."""

    plugin: Plugin
    hook: str
    call: Callable[..., object]
    wants: tuple[str, ...]


@dataclass
class Collection:
    """What a set of plugins gives. `claims`: every offer, those included that cannot be used for they have rivals."""

    offers: Offers = field(default_factory=Offers)
    claims: list[Offer] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class _Manager(pluggy.PluginManager):
    """Registers of each plugin the functions in `taken` only."""

    taken: tuple[str, ...] = ()

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name in self.taken else None


def _manager() -> _Manager:
    manager = _Manager(GROUP)
    manager.add_hookspecs(HookSpecifications)
    return manager


def collect(plugins: Iterable[Plugin]) -> Collection:
    """Register the plugins, call every hook that offers, and settle who owns each name."""
    found, manager = Collection(), _manager()
    owners: dict[str, Plugin] = {}
    for plugin in plugins:
        if plugin.problem:
            found.problems.append(Problem(plugin, plugin.problem))
        elif not plugin.off:
            owners[plugin.owner] = plugin
            try:
                manager.taken = tuple(_usable(plugin, found.problems))
                manager.register(plugin.content, plugin.owner)
            except Exception as error:  # whatever looking into an object of somebody else's does
                found.problems.append(Problem(plugin, f"is not usable: {describe(error)}"))
    by_kind = {kind.field: _settle(kind, _claims(kind, manager, owners, found), owners, found) for kind in KINDS}
    found.offers = Offers(**by_kind)
    for hook in _OBSERVING:
        for one in getattr(manager.hook, hook).get_hookimpls():
            specified = inspect.signature(getattr(HookSpecifications, hook)).parameters
            wants = tuple(name for name in (*one.argnames, *one.kwargnames) if name in specified)
            found.watchers.append(Watcher(owners[one.plugin_name], hook, one.function, wants))
    _check_rulesets(found, owners)
    return found


def _usable(plugin: Plugin, problems: list[Problem]) -> Iterator[str]:
    """The names of a plugin's marked functions that are hooks with the right arguments; the others become problems."""
    reader, marked = pluggy.PluginManager(GROUP), False
    for name in dir(plugin.content):
        options = reader.parse_hookimpl_opts(plugin.content, name)
        if options is None:
            if _looks_forgotten(plugin.content, name):
                cause = f"the function {name} is not marked, so it is no hook{_hint(name)}: forgot @slmopt_plugin?"
                problems.append(Problem(plugin, cause, name))
                marked = True
            continue
        marked = True
        hook = options.get("specname") or name
        cause = _misfit(plugin.content, name, hook)
        if cause:
            problems.append(Problem(plugin, cause, hook))
        else:
            yield name
    if not marked:
        problems.append(Problem(plugin, "offers nothing: none of its functions is marked @slmopt_plugin"))


def _misfit(content: Any, name: str, hook: str) -> str:
    """What is wrong with one marked function, if anything; pluggy compares the arguments."""
    if hook not in _HOOKS:
        return f"there is no such hook{_hint(hook)}"
    trial = _manager()
    trial.taken = (name,)
    try:
        trial.register(content, "plugin")
    except pluggy.PluginValidationError:
        specified = list(inspect.signature(getattr(HookSpecifications, hook)).parameters)[1:]
        right = f"{hook}({', '.join(specified)})" + (", or fewer of these" if specified else "")
        return f"wrong signature {_signature(content, name)}: expected {right}"
    (one,) = getattr(trial.hook, hook).get_hookimpls()
    return "a wrapper of other plugins' hooks is not supported" if one.wrapper or one.hookwrapper else ""


def _signature(content: Any, name: str) -> str:
    return f"{name}{inspect.signature(getattr(content, name))}"


def _hint(name: str) -> str:
    return "" if name in _HOOKS else nearest(name, _HOOKS)


def _looks_forgotten(content: Any, name: str) -> bool:
    """Whether an unmarked attribute is a function that was meant to be a hook."""
    if not name.startswith("slmopt_"):
        return False
    value = inspect.getattr_static(content, name)
    if isinstance(content, ModuleType) and getattr(value, "__module__", None) != content.__name__:
        return False
    return inspect.isroutine(value)


def _claims(kind: Kind, manager: _Manager, owners: dict[str, Plugin], found: Collection) -> list[tuple[Offer, bool]]:
    """Every good entry of one hook, with whether it says that it replaces another."""
    claims = []
    for one in getattr(manager.hook, kind.hook).get_hookimpls():
        plugin = owners[one.plugin_name]
        try:
            result = one.function()
            entries, problems = read_offers(kind, result)
        except (Exception, SystemExit) as error:
            found.problems.append(Problem(plugin, f"raised {describe(error)}", kind.hook))
            continue
        found.problems += [Problem(plugin, problem, kind.hook) for problem in problems]
        for name, (place, replacing) in entries.items():
            claims.append((Offer(name, place, plugin.owner, plugin.version, kind.word), replacing))
    return claims


def _settle(
    kind: Kind, claims: list[tuple[Offer, bool]], owners: dict[str, Plugin], found: Collection
) -> dict[str, Offer]:
    """One offer for each name: its only one, the one that replaces the others, or one that says who the rivals are."""
    settled: dict[str, Offer] = {}
    for name in dict.fromkeys(offer.name for offer, _ in claims):
        plain = tuple(offer for offer, replacing in claims if offer.name == name and not replacing)
        replacing = tuple(offer for offer, replacing in claims if offer.name == name and replacing)
        best, *rest = replacing or plain
        if rest:
            rivals = (best, *rest)
            settled[name] = replace(best, rivals=rivals)
            last = rivals[-1]
            cause = f"{settled[name].shared}; the name cannot be used"
            found.problems.append(Problem(owners[last.owner], cause, kind.hook))
        else:
            settled[name] = replace(best, replaced=tuple(offer.owner for offer in plain) if replacing else ())
            if replacing and not plain:
                cause = f"it replaces the {kind.word} {name!r}, which nobody offers"
                known = [offer.name for offer, _ in claims if offer.name != name]
                found.problems.append(Problem(owners[best.owner], cause + nearest(name, known), kind.hook))
        found.claims += [replace(o, replaced=settled[name].replaced) if o is best else o for o in (*plain, *replacing)]
    return settled


def _check_rulesets(found: Collection, owners: dict[str, Plugin]) -> None:
    passes = found.offers.passes
    for offer in found.offers.rules.values():
        name = offer.name.partition("/")[0]
        if name not in passes:
            cause = f"ruleset {offer.name!r} is for the pass {name!r}, which nobody offers{nearest(name, passes)}"
            found.problems.append(Problem(owners[offer.owner], cause, "slmopt_rules"))
