"""List every target: what this machine can do with it, and which packages to install for more."""

from __future__ import annotations

import argparse
from typing import Any

from slmopt.commands.console import add_json, print_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.plugins.discovery import registry

    known = registry()
    found: list[dict[str, Any]] = []
    for name, backend in known.working_backends().items():
        offer = known.backends[name]
        try:
            status = dict(backend.status())
        except Exception as error:  # one that fails hides no other
            known.report_offer(offer, f"target {name!r} gives no status: {type(error).__name__}: {error}")
            continue
        found.append({"name": name, "summary": backend.summary, "owner": offer.owner, "status": status})
    if arguments.json:
        print_json(found)
        return 0
    for item in found:
        print(f"{item['name']}  {item['summary']}")
        for key, value in item["status"].items():
            print(f"    {key}: {_text(value)}")
    return 0


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)
