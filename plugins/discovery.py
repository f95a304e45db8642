"""Discovery: what the built-ins and installed plugins offer, by name, without importing any of it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from slmopt.errors import InputError, nearest
from slmopt.offers import Offer
from slmopt.plugins.hooks import GROUP, HookSpecifications

if TYPE_CHECKING:
    from slmopt.backend import Backend
    from slmopt.frontend import Frontend
    from slmopt.pipeline import Pass
    from slmopt.recipe import Recipe

__all__ = ["Offer", "Registry", "installed", "registry"]

_BUILTIN = "slmopt"


class Registry:
    """What a set of plugins offers. InputError where two offer one name, naming both."""

    def __init__(self, plugins: Iterable[tuple[str, Any]]) -> None:
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(HookSpecifications)
        for owner, plugin in plugins:
            try:
                manager.register(plugin, name=owner)
            except (ValueError, pluggy.PluginValidationError) as error:
                raise InputError(f"plugin {owner} is not usable: {error}") from error
        try:
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise InputError(f"plugin {manager.get_name(error.plugin)} is not usable: {error}") from error
        self.passes = _collect(manager.hook.slmopt_passes, "pass")
        self.backends = _collect(manager.hook.slmopt_backends, "backend")
        self.recipes = _collect(manager.hook.slmopt_recipes, "recipe")
        self.ops = _collect(manager.hook.slmopt_ops, "op")
        self.frontends = _collect(manager.hook.slmopt_frontends, "frontend")

    def find_pass(self, name: str) -> type[Pass]:
        """The class of the pass `name`; InputError suggests the nearest name."""
        from slmopt.pipeline import Pass

        offer = _find(name, self.passes, "pass", "slmopt passes")
        found = offer.load()
        if not (isinstance(found, type) and issubclass(found, Pass)) or found.name != name:
            raise InputError(f"pass {name!r}, offered by {offer.owner}: {offer.place} is no Pass with name = {name!r}")
        return found

    def find_backend(self, name: str) -> Backend:
        """The backend `name`; InputError suggests the nearest name."""
        backend: Backend = _find(name, self.backends, "target", "slmopt targets").load()()
        return backend

    def find_recipe(self, name: str | Path) -> Recipe:
        """The recipe in a file, or the preset of that name."""
        from slmopt.recipe import read_recipe

        if isinstance(name, Path) or "/" in name or name.endswith(".toml"):
            return read_recipe(name)
        return read_recipe(_find(name, self.recipes, "recipe", "slmopt recipes").place, name)

    def find_frontend(self, source: Any) -> Frontend:
        """The first frontend that accepts `source`, plugins before the built-in; InputError where none does."""
        for offer in sorted(self.frontends.values(), key=lambda offer: offer.owner == _BUILTIN):
            frontend: Frontend = offer.load()()
            if frontend.accepts(source):
                return frontend
        raise InputError(f"{source!r} is nothing that can be loaded: expected a model directory, IR text (.slm) or a "
                         f"torch.nn.Module; known frontends: {', '.join(self.frontends)}")  # fmt: skip

    def providers(self) -> dict[str, list[str]]:
        """For each fact, the passes that ensure it; imports every pass."""
        found: dict[str, list[str]] = {}
        for name in self.passes:
            for fact in self.find_pass(name).ensures:
                found.setdefault(fact, []).append(name)
        return found

    def add_ops(self) -> None:
        """Make the ops of plugins known to the IR; does nothing where no plugin has any."""
        from slmopt.ir.ops import registry as ops

        for offer in self.ops.values():
            if offer.name not in ops:
                ops.add([spec for spec in offer.load() if spec.name == offer.name], offer.owner)


def _collect(hook: Any, kind: str) -> dict[str, Offer]:
    found: dict[str, Offer] = {}
    for implementation in hook.get_hookimpls():
        owner = str(implementation.plugin_name)
        call: Callable[[], dict[str, str | Path]] = implementation.function
        for name, place in call().items():
            if name in found:
                raise InputError(f"{kind} {name!r} is offered twice, by {found[name].owner} and by {owner}: "
                                 "uninstall one of them")  # fmt: skip
            found[name] = Offer(name, place, owner)
    return found


def _find(name: str, offers: dict[str, Offer], kind: str, listing: str) -> Offer:
    if name not in offers:
        known = f"known: {', '.join(offers) or 'none'}" if len(offers) < 8 else f"`{listing}` lists them"
        raise InputError(f"unknown {kind} {name!r}{nearest(name, offers)}; {known}")
    return offers[name]


def installed() -> list[tuple[str, Any]]:
    """The built-ins and every installed plugin (entry-point group "slmopt"), each with its owner's name."""
    from slmopt.plugins import builtin

    plugins: list[tuple[str, Any]] = [(_BUILTIN, builtin)]
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        owner = f"{point.dist.name if point.dist is not None else 'unknown'} ({point.name})"
        try:
            plugins.append((owner, point.load()))
        except Exception as error:
            raise InputError(f"plugin {owner} cannot be loaded from {point.value!r}: {error}; "
                             "mend or uninstall it") from error  # fmt: skip
    return plugins


@cache
def registry() -> Registry:
    """The registry of everything installed."""
    return Registry(installed())
