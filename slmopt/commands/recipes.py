"""List every recipe with its passes and budget; with a name or a TOML file, that recipe alone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from slmopt.commands.console import add_json, print_json

if TYPE_CHECKING:
    from slmopt.recipe import Recipe

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a preset or a TOML file")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from slmopt.plugins.discovery import registry

    known = registry()
    name = arguments.name
    recipes = list(known.working_recipes().values()) if name is None else [known.find_recipe(name)]
    found = [_describe(recipe) for recipe in recipes]
    if arguments.json:
        print_json(found)
        return 0
    for item in found:
        budget = "" if item["perplexity"] is None else f"; perplexity at most {item['perplexity']:+.4g} %"
        print(f"{item['name']}  {item['summary']}{budget}\n    {', '.join(item['passes'])}")
    return 0


def _describe(recipe: Recipe) -> dict[str, Any]:
    from slmopt.options import describe_pass
    from slmopt.plugins.discovery import registry

    budget = recipe.budget.perplexity
    return {
        "name": recipe.name, "summary": recipe.summary, "perplexity": None if budget is None else 100 * budget,
        "passes": [describe_pass(item) for item in recipe.build(registry().find_pass)],
    }  # fmt: skip
