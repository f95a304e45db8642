"""The kinds of things that hooks offer: what their names and places look like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmopt.offers import Replacement

__all__ = ["KINDS", "Kind", "read_offers"]

_PLACE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Kind:
    """What one hook offers: `word` is one of them, `field` all of them in `slmopt.offers.Offers`.

    `name` and `name_form`: what their names must match, as an expression and in words. `files`: they are files.
    """

    hook: str
    word: str
    name: str = r"[a-z][a-z0-9_-]*"
    name_form: str = "small letters, digits, - and _"
    files: bool = False

    @property
    def field(self) -> str:
        return self.hook.removeprefix("slmopt_")

    def problem(self, name: Any, place: Any) -> str | None:
        """What is wrong with one entry of the hook's result, if anything."""
        if not isinstance(name, str):
            return f"a name must be text, got {name!r}"
        if not re.fullmatch(self.name, name):
            return f"{self.word} {name!r}: expected a name of the form {self.name_form}"
        if self.files:
            if not isinstance(place, Path):
                return f"{self.word} {name!r}: expected a file (pathlib.Path), got {place!r}"
            return None if place.is_file() else f"{self.word} {name!r}: there is no file {place}"
        if not isinstance(place, str) or not _PLACE.fullmatch(place):
            return f'{self.word} {name!r}: expected "module:attribute", got {place!r}'
        return None


KINDS = (
    Kind("slmopt_passes", "pass"),
    Kind("slmopt_ops", "op", r"[a-z_][a-z0-9_]*", "small letters, digits and _"),
    Kind("slmopt_rules", "ruleset", r"[a-z][a-z0-9_-]*/[a-z0-9][a-z0-9_.-]*", "PASS/RULESET"),
    Kind("slmopt_backends", "target", r"[a-z][a-z0-9_-]*(:via=[a-z0-9][a-z0-9_.-]*)?",
         "small letters, digits, - and _, with :via=NAME where others compile for the same machines"),
    Kind("slmopt_runtimes", "runtime"),
    Kind("slmopt_isas", "instruction set", r"[a-z0-9][a-z0-9_.-]*", files=True),
    Kind("slmopt_lowerings", "lowering", r"[a-z][a-z0-9_-]*:[a-z_][a-z0-9_]*(@[a-z0-9][a-z0-9_.-]*)?",
         "CODEGEN:OP or CODEGEN:OP@ISA"),
    Kind("slmopt_frontends", "frontend"),
    Kind("slmopt_recipes", "recipe", r"[a-z0-9][a-z0-9_.-]*", files=True),
    Kind("slmopt_metrics", "metric"),
)  # fmt: skip


def read_offers(kind: Kind, found: Any) -> tuple[dict[str, tuple[str | Path, bool]], list[str]]:
    """The good entries of a hook's result, name to place and whether it replaces, and what is wrong with the others."""
    if not isinstance(found, Mapping):
        return {}, [f"expected a mapping of names to places, got {type(found).__name__}"]
    good: dict[str, tuple[str | Path, bool]] = {}
    problems = []
    for name, given in found.items():
        place = given.place if isinstance(given, Replacement) else given
        if (problem := kind.problem(name, place)) is not None:
            problems.append(problem)
        else:
            good[name] = (place, isinstance(given, Replacement))
    return good, problems
