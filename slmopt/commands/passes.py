"""List every pass with its options; with a name, the whole of what it says of itself."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import textwrap
from typing import TYPE_CHECKING, Any

from slmopt.commands.console import add_json, print_json

if TYPE_CHECKING:
    from slmopt.pipeline import Pass

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="show this pass alone")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.plugins.discovery import registry

    known = registry()
    name = arguments.name
    classes = known.working_passes() if name is None else {name: known.find_pass(name)}
    found = [{**_describe(cls), "owner": known.passes[key].owner} for key, cls in classes.items()]
    if arguments.json:
        print_json(found)
    elif arguments.name is None:
        for item in found:
            options = ",".join(f"{option['name']}={option['default']}" for option in item["options"])
            print(f"{item['name']}{{{options}}}" if options else item["name"])
            print(f"    {item['summary']}")
    else:
        _print_one(found[0])
    return 0


def _describe(cls: type[Pass]) -> dict[str, Any]:
    from slmopt.options import list_options
    from slmopt.pipeline import Exact

    text = inspect.getdoc(cls) or ""
    contract = f"exact to {cls.contract.tolerance:g}" if isinstance(cls.contract, Exact) else "lossy"
    rules = [{"kind": rule.kind, "text": rule.text} for rule in getattr(cls, "rules", ())]
    return {
        "name": cls.name, "summary": text.partition("\n")[0], "text": text, "contract": contract,
        "requires": sorted(cls.requires), "ensures": sorted(cls.ensures), "calibrated": cls.calibrated,
        "options": [dataclasses.asdict(option) for option in list_options(cls)], "rules": rules,
    }  # fmt: skip


def _print_one(item: dict[str, Any]) -> None:
    print(f"{item['name']} ({item['contract']}, from {item['owner']})\n\n{_prose(item)}\n")
    for option in item["options"]:
        limits = f"; {option['limits']}" if option["limits"] else ""
        print(f"  {option['name']}={option['default']}  ({option['type']}{limits})")
        if option["help"]:
            print(textwrap.fill(option["help"], 100, initial_indent="      ", subsequent_indent="      "))
    for word in ("requires", "ensures"):
        if item[word]:
            print(f"  {word}: {', '.join(item[word])}")
    if item["calibrated"]:
        print("  needs calibration text")
    if item["rules"]:
        print("  rules:")
        width = max(len(rule["kind"]) for rule in item["rules"])
        for rule in item["rules"]:
            print(f"    {rule['kind']:{width}}  {rule['text']}")


def _prose(item: dict[str, Any]) -> str:
    """The docstring without the lines that explain options: those are printed with the options."""
    names = "|".join(re.escape(option["name"]) for option in item["options"])
    text = re.sub(rf"(?m)^({names}):[ \t]+.+(?:\n[ \t]+\S.*)*\n?", "", item["text"]) if names else item["text"]
    return text.rstrip()
