"""Discovery: what the built-ins and installed plugins offer, by name, without importing any of it."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from slmopt.declaration import check_declaration, option_types
from slmopt.errors import InputError, PluginWarning, SlmError, nearest
from slmopt.offers import Offer
from slmopt.plugins.collection import collect
from slmopt.plugins.installed import BUILTIN, DISABLE, Plugin, Problem, describe, find_plugins

if TYPE_CHECKING:
    from slmopt.backend import Backend
    from slmopt.frontend import Frontend
    from slmopt.metrics import Document, Metric, Subject
    from slmopt.pipeline import Observer, Pass
    from slmopt.recipe import Recipe
    from slmopt.rewrite import Rule
    from slmopt.runtime.program import Program

__all__ = ["Offer", "Registry", "registry"]


_Found = TypeVar("_Found")


class Registry:
    """What a set of plugins offers, each plugin given as such or as its owner's name and its module or object.

    What is wrong with a plugin is a PluginWarning, here or where it first shows, and is kept in `problems`; everything
    else goes on working. A name with several owners is an InputError where it is used.
    """

    def __init__(self, plugins: Iterable[Plugin | tuple[str, Any]], problems: Iterable[str] = ()) -> None:
        self.plugins = [item if isinstance(item, Plugin) else Plugin(*item) for item in plugins]
        self.problems: list[Problem] = []
        self._said: set[str] = set()
        self._observer: Observer | None = None  # one for all pipelines: it remembers whom it no longer calls
        self._owners = {plugin.owner: plugin for plugin in self.plugins}
        found = collect(self.plugins)
        self.offers, self.claims, self.watchers = found.offers, found.claims, found.watchers
        self.passes, self.backends, self.recipes = self.offers.passes, self.offers.backends, self.offers.recipes
        self.ops, self.frontends, self.metrics = self.offers.ops, self.offers.frontends, self.offers.metrics
        self.other_problems = list(problems)
        for text in self.other_problems:
            warnings.warn(text, PluginWarning, stacklevel=2)
        for problem in found.problems:
            self.report(problem)

    def report(self, problem: Problem) -> None:
        """Warn of something wrong with a plugin, once."""
        if str(problem) not in self._said:
            self._said.add(str(problem))
            self.problems.append(problem)
            warnings.warn(str(problem), PluginWarning, stacklevel=3)

    def report_offer(self, offer: Offer, cause: str | Exception, hook: str = "") -> None:
        """Warn of an offer that cannot be used, and go on without it. Of a clash was warned when it was found."""
        if not offer.rivals:
            self.report(Problem(self._owners[offer.owner], str(cause), hook))

    def find_pass(self, name: str) -> type[Pass]:
        """The class of the pass `name`; InputError suggests the nearest name."""
        from slmopt.pipeline import Pass

        offer = _find(name, self.passes, "pass", "slmopt passes")
        found = offer.load()
        if not (isinstance(found, type) and issubclass(found, Pass)) or getattr(found, "name", None) != name:
            raise InputError(f"pass {name!r}, offered by {offer.source}: {offer.place} is no Pass with name = {name!r}")
        try:
            check_declaration(found, published=True)
            option_types(found)  # that they can be read
        except InputError as error:
            raise InputError(f"{error}; {offer.source} offers it") from error
        return found

    def find_backend(self, name: str) -> Backend:
        """The backend `name`; InputError suggests the nearest name."""
        offer = _find(name, self.backends, "target", "slmopt targets")
        backend: Backend = _make(offer, *((self.offers,) if _takes_argument(offer.load()) else ()))
        return backend

    def default_target(self) -> str:
        """The first target on offer that this machine runs; InputError where it runs none."""
        for name, backend in self.working_backends().items():
            if backend.status().get("run"):
                return name
        raise InputError(f"this machine runs none of the targets {', '.join(self.backends)}: name one to compile for "
                         "another machine; `slmopt targets` tells what each needs")  # fmt: skip

    def open_program(self, runtime: str, path: Path, manifest: Mapping[str, Any]) -> Program:
        """The artifact at `path`, opened by a runtime; InputError where no plugin offers it, or its plugin fails."""
        offer = _find(runtime, self.offers.runtimes, "runtime", "slmopt plugins")
        opener = offer.load()
        try:
            program: Program = opener(path, manifest)
        except SlmError:
            raise
        except Exception as error:
            raise InputError(f"runtime {runtime!r}, offered by {offer.source}, cannot open {path}: "
                             f"{describe(error)}") from error  # fmt: skip
        return program

    def find_metric(self, name: str) -> Metric:
        """The metric `name`; InputError suggests the nearest name."""
        offer = _find(name, self.metrics, "metric", "slmopt plugins")
        found: Metric = _make(offer)
        if getattr(found, "name", None) != name or not callable(getattr(found, "measure", None)):
            raise InputError(f"metric {name!r}, offered by {offer.source}: {offer.place} makes no Metric with "
                             f"name = {name!r}")  # fmt: skip
        return found

    def measure(self, metric: Metric, subject: Subject, documents: Sequence[Document]) -> float:
        """What a metric of this registry measures; InputError names its owner where it fails or gives no number."""
        offer = self.metrics[metric.name]
        try:
            return float(metric.measure(subject, documents))
        except SlmError:
            raise
        except Exception as error:
            raise InputError(f"metric {metric.name!r}, offered by {offer.source}, failed: {describe(error)}") from error

    def find_recipe(self, name: str | Path) -> Recipe:
        """The recipe in a file, or the preset of that name."""
        from slmopt.recipe import read_recipe

        if isinstance(name, Path) or "/" in name or name.endswith(".toml"):
            return read_recipe(name)
        return read_recipe(_find(name, self.recipes, "recipe", "slmopt recipes").file(), name)

    def find_frontend(self, source: Any) -> Frontend:
        """The first frontend that accepts `source`, plugins before the built-in; InputError where none does."""
        failed: Exception | None = None
        for offer in sorted(self.frontends.values(), key=lambda offer: offer.owner == BUILTIN):
            try:
                frontend: Frontend = _make(offer)
                accepted = frontend.accepts(source)
            except Exception as error:
                if offer.owner == BUILTIN and not offer.rivals:
                    raise
                failed = error
                known = isinstance(error, InputError)
                cause = error if known else f"frontend {offer.name!r} raised {describe(error)}"
                self.report_offer(offer, cause, "slmopt_frontends")
            else:
                if accepted:
                    return frontend
        raise InputError(
            f"{source!r} is nothing that can be loaded: expected a model directory, IR text (.slm) or a "
            f"torch.nn.Module; known frontends: {', '.join(self.frontends)}"
        ) from failed

    def working_passes(self) -> dict[str, type[Pass]]:
        """Every pass that can be imported, by name; of third parties, the others are warnings."""
        return self._working(self.passes, self.find_pass)

    def working_backends(self) -> dict[str, Backend]:
        """Every backend that can be imported, by name; of third parties, the others are warnings."""
        return self._working(self.backends, self.find_backend)

    def working_recipes(self) -> dict[str, Recipe]:
        """Every recipe that can be read and whose passes exist; of third parties, the others are warnings."""

        def read(name: str) -> Recipe:
            recipe = self.find_recipe(name)
            recipe.build(self.find_pass)
            return recipe

        return self._working(self.recipes, read)

    def _working(self, offers: Mapping[str, Offer], find: Callable[[str], _Found]) -> dict[str, _Found]:
        found = {}
        for name, offer in offers.items():
            try:
                found[name] = find(name)
            except InputError as error:
                if offer.owner == BUILTIN and not offer.rivals:
                    raise
                self.report_offer(offer, error)
        return found

    def rules_for(self, name: str) -> tuple[Rule, ...]:
        """The rules that plugins add to the pass `name`, by the order of their rulesets' names."""
        found: list[Rule] = []
        for offer in sorted(self.offers.rules.values(), key=lambda offer: offer.name):
            if offer.name.partition("/")[0] == name:
                found += self._ruleset(offer)
        return tuple(found)

    def check_rules(self) -> None:
        """Warn of rulesets for passes that take none; imports the passes that rulesets are for."""
        for offer in self.offers.rules.values():
            name = offer.name.partition("/")[0]
            if name not in self.passes:
                continue  # warned of already
            try:
                item = self.find_pass(name)
            except InputError as error:
                self.report_offer(offer, error, "slmopt_rules")
                continue
            if not getattr(item, "takes_rules", False):
                other = self.passes[name].source
                cause = f"ruleset {offer.name!r} is for the pass {name!r} of {other}, which takes no rules"
                self.report_offer(offer, cause, "slmopt_rules")

    def _ruleset(self, offer: Offer) -> Sequence[Rule]:
        from slmopt.rewrite import Rule

        try:
            rules = offer.load()
        except InputError as error:
            self.report_offer(offer, error, "slmopt_rules")
            return ()
        if not isinstance(rules, Sequence) or not all(isinstance(item, Rule) for item in rules):
            cause = f"ruleset {offer.name!r}: {offer.place} is no sequence of slmopt.rewrite.Rule"
            self.report_offer(offer, cause, "slmopt_rules")
            return ()
        return rules

    def check_offers(self) -> None:
        """Import every offer of third parties, and warn of those that cannot be or are not what they say."""
        for offer in self.claims:
            try:
                if offer.owner != BUILTIN:
                    self._check_offer(offer)
            except SlmError as error:
                self.report_offer(offer, error)

    def _check_offer(self, offer: Offer) -> None:
        finders: dict[str, Callable[[str], object]] = {
            "pass": self.find_pass, "target": self.find_backend, "metric": self.find_metric, "recipe": self.find_recipe,
        }  # fmt: skip
        if offer.kind in finders:
            finders[offer.kind](offer.name)
        elif offer.kind == "op":
            _spec_loader(offer)()
        elif offer.kind == "ruleset":
            self._ruleset(offer)
        elif not isinstance(offer.place, Path):
            offer.load()

    def observers(self) -> tuple[Observer, ...]:
        """What pipelines tell of their passes, for plugins that watch them; none where none does."""
        if self._observer is None and self.watchers:
            from slmopt.plugins.watching import PluginObserver

            self._observer = PluginObserver(self.watchers, self.report)
        return () if self._observer is None else (self._observer,)

    def add_ops(self) -> None:
        """Make the ops of plugins known to the IR; each is imported when it is first used."""
        from slmopt.ir.ops import registry as ops

        for offer in self.ops.values():
            other = ops.owner(offer.name)
            if other is None:
                ops.promise(offer.name, offer.source, _spec_loader(offer))
            elif other != offer.source:
                cause = f"op {offer.name!r} of {offer.source} is already defined by {other}, whose op stays"
                self.report_offer(offer, cause, "slmopt_ops")


def _spec_loader(offer: Offer) -> Callable[[], Any]:
    def load() -> Any:
        from slmopt.ir.spec import OpSpec

        found = offer.load()
        specs = [found] if isinstance(found, OpSpec) else found if isinstance(found, Sequence) else []
        for spec in specs:
            if isinstance(spec, OpSpec) and spec.name == offer.name:
                return spec
        raise InputError(f"op {offer.name!r}, offered by {offer.source}: {offer.place} holds no OpSpec of that name")

    return load


def _make(offer: Offer, *arguments: Any) -> Any:
    """An object of the class that is offered; InputError names the owner where it cannot be made."""
    cls = offer.load()
    try:
        return cls(*arguments)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{offer.kind} {offer.name!r}, offered by {offer.source}: {offer.place} cannot be made: "
                         f"{describe(error)}") from error  # fmt: skip


def _takes_argument(cls: Any) -> bool:
    try:
        return bool(inspect.signature(cls).parameters)
    except (TypeError, ValueError):  # no class, or one without a signature: making it says what is wrong
        return True


def _find(name: str, offers: Mapping[str, Offer], kind: str, listing: str) -> Offer:
    if name not in offers:
        known = f"known: {', '.join(offers) or 'none'}" if len(offers) < 8 else f"`{listing}` lists them"
        raise InputError(f"unknown {kind} {name!r}{nearest(name, offers)}; {known}")
    return offers[name]


def registry() -> Registry:
    """The registry of everything installed, but for what SLMOPT_DISABLE_PLUGINS switches off."""
    return _registry(os.environ.get(DISABLE, ""))


@cache
def _registry(disabled: str) -> Registry:
    return Registry(*find_plugins(disabled))
