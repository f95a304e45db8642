"""List plugins: the package, version and module of each, what it offers by name, and what is wrong with it.

SLMOPT_DISABLE_PLUGINS=1 or --no-plugins switches off all plugins of third parties; SLMOPT_DISABLE_PLUGINS=NAME,...
those of these entry points or packages. --check also imports everything that plugins offer. A plugin with a problem is
a failed check (exit code 1).
"""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING, Any

from slmopt.commands.console import add_json, print_json

if TYPE_CHECKING:
    from slmopt.plugins.discovery import Registry
    from slmopt.plugins.installed import Plugin

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="import everything that plugins offer")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.errors import PluginWarning
    from slmopt.plugins.discovery import registry

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # they are part of the listing
        known = registry()
        known.add_ops()
        known.check_rules()
        if arguments.check:
            known.check_offers()
    found = [_describe(known, plugin) for plugin in known.plugins]
    if arguments.json:
        print_json({"plugins": found, "problems": known.other_problems})
    else:
        for item in found:
            _print(item)
        for problem in known.other_problems:
            print(f"problem: {problem}")
    return 1 if known.problems or known.other_problems else 0


def _describe(known: Registry, plugin: Plugin) -> dict[str, Any]:
    from slmopt.plugins.kinds import KINDS

    offers: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        mine = [offer for offer in known.claims if offer.owner == plugin.owner and offer.kind == kind.word]
        if mine:
            offers[kind.field] = [
                {"name": offer.name, "place": str(offer.place), "replaces": list(offer.replaced)} for offer in mine
            ]
    return {
        "distribution": plugin.distribution, "version": plugin.version, "entry_point": plugin.name,
        "module": plugin.place, "off": plugin.off, "offers": offers,
        "observes": [watcher.hook for watcher in known.watchers if watcher.plugin is plugin],
        "problems": [
            f"{problem.hook}: {problem.cause}" if problem.hook else problem.cause
            for problem in known.problems if problem.plugin is plugin
        ],
    }  # fmt: skip


def _print(item: dict[str, Any]) -> None:
    head = f"{item['distribution']} {item['version']}".rstrip()
    point = f"entry point {item['entry_point']} = {item['module']}" if item["entry_point"] else "built in"
    print(f"{head} ({point}){': switched off' if item['off'] else ''}")
    for field, offers in item["offers"].items():
        print(f"    {field}: {', '.join(_name(offer) for offer in offers)}")
    if item["observes"]:
        print(f"    observes: {', '.join(item['observes'])}")
    for problem in item["problems"]:
        print(f"    problem: {problem}")


def _name(offer: dict[str, Any]) -> str:
    return f"{offer['name']} (replaces {', '.join(offer['replaces'])}'s)" if offer["replaces"] else str(offer["name"])
