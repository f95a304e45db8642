"""Recipes: named lists of passes with options and a budget, in TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmopt.errors import InputError, nearest
from slmopt.options import PassText, build_pass, parse_pass
from slmopt.pipeline import Budget, Pass

__all__ = ["Recipe", "parse_recipe", "read_recipe"]

_KEYS = ("summary", "passes", "budget", "options")


@dataclass(frozen=True)
class Recipe:
    """Passes as text, in order; `options` gives defaults to every pass of a name; `budget` limits lossy passes.

        summary = "4-bit weights in groups of 32"
        passes = ["raise", "canonicalize", "quantize{bits=4}", "fuse", "incrementalize"]
        [budget]
        perplexity = "+3%"
        [options.quantize]
        group = 32
    """

    name: str
    passes: tuple[PassText, ...]
    budget: Budget = field(default_factory=Budget)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    summary: str = ""

    def build(self, lookup: Callable[[str], type[Pass]]) -> list[Pass]:
        """The passes; InputError names the recipe and what is wrong in it."""
        for name in self.options:
            if name not in {item.name for item in self.passes}:
                raise InputError(f"recipe {self.name}: [options.{name}] is for no pass of the recipe"
                                 f"{nearest(name, [item.name for item in self.passes])}")  # fmt: skip
        try:
            return [build_pass(item, lookup, self.options.get(item.name)) for item in self.passes]
        except InputError as error:
            raise InputError(f"recipe {self.name}: {error}") from error


def read_recipe(path: str | Path, name: str | None = None) -> Recipe:
    """Read a recipe file; InputError where it cannot be read or is wrong."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read: {error}") from error
    return parse_recipe(text, name or file.stem)


def parse_recipe(text: str, name: str) -> Recipe:
    """Parse a recipe's TOML; InputError says what is wrong and where."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name} is not TOML: {error}") from error
    for key in data:
        if key not in _KEYS:
            raise InputError(f"recipe {name}: unknown key {key!r}{nearest(key, _KEYS)}; it takes {', '.join(_KEYS)}")
    passes = data.get("passes")
    if not isinstance(passes, list) or not all(isinstance(item, str) for item in passes):
        raise InputError(f'recipe {name}: passes must be a list of texts such as ["raise", "quantize{{bits=4}}"]')
    options = data.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(table, dict) for table in options.values()):
        raise InputError(f"recipe {name}: options must be tables such as [options.quantize]")
    if not isinstance(data.get("summary", ""), str):
        raise InputError(f"recipe {name}: summary must be text")
    try:
        items = tuple(parse_pass(item) for item in passes)
    except InputError as error:
        raise InputError(f"recipe {name}: {error}") from error
    return Recipe(name, items, _budget(data.get("budget", {}), name), options, data.get("summary", ""))


def _budget(data: Any, name: str) -> Budget:
    if not isinstance(data, dict):
        raise InputError(f'recipe {name}: budget must be a table such as [budget] with perplexity = "+3%"')
    for key in data:
        if key != "perplexity":
            raise InputError(f"recipe {name}: unknown budget {key!r}; it takes perplexity")
    text = data.get("perplexity")
    if text is None:
        return Budget()
    match = re.fullmatch(r"\+?(\d+(?:\.\d+)?)\s*%", text) if isinstance(text, str) else None
    if match is None:
        raise InputError(f'recipe {name}: perplexity must be a percentage such as "+3%", got {text!r}')
    return Budget(float(match[1]) / 100)
