"""What plugins offer: names, who offers them, and where what they name is. Nothing is imported before it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmopt.errors import InputError

__all__ = ["Offer", "Offers", "Replacement", "replaces"]


@dataclass(frozen=True)
class Replacement:
    """A place whose owner knows that it takes over a name that somebody else offers."""

    place: str | Path


def replaces(place: str | Path) -> Replacement:
    """Offer `place` in the stead of what another owner offers under the same name.

    Without it, a name with two owners is an error where it is used. Two replacements of one name are an error too.
    """
    return Replacement(place)


@dataclass(frozen=True)
class Offer:
    """One name, who offers it, and where it is: "module:attribute", or a file.

    `replaced` are the owners whose offer of the same name this one knowingly takes over. `rivals` are all offers of a
    name that several owners claim: such an offer cannot be used, and using it says who they are.
    """

    name: str
    place: str | Path
    owner: str
    version: str = ""
    kind: str = "name"
    replaced: tuple[str, ...] = ()
    rivals: tuple[Offer, ...] = ()

    @property
    def source(self) -> str:
        """The owner with its version, as messages name it: `my-package 1.0 (entry-point)`."""
        package, bracket, point = self.owner.partition(" (")
        return f"{package} {self.version}".rstrip() + bracket + point

    def load(self) -> Any:
        """Import what the offer names; InputError names the owner where that fails, and all owners of a shared name."""
        self.require_one_owner()
        module, colon, attribute = str(self.place).partition(":")
        if isinstance(self.place, Path) or not colon:
            raise InputError(f"{self.source} offers {self.kind} {self.name!r} at {self.place}: "
                             "expected module:attribute")  # fmt: skip
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever a plugin's module does when it is imported
            raise InputError(f"{self.kind} {self.name!r}, offered by {self.source}, cannot be imported from "
                             f"{self.place!r}: {type(error).__name__}: {error}") from error  # fmt: skip

    def file(self) -> Path:
        """The file that the offer names; InputError where it names none, or is not there."""
        self.require_one_owner()
        if not isinstance(self.place, Path) or not self.place.is_file():
            raise InputError(f"{self.source} offers {self.kind} {self.name!r} at {self.place}: expected a file (Path)")
        return self.place

    @property
    def shared(self) -> str:
        """Who the rivals are, in words."""
        return f"{self.kind} {self.name!r} is offered by " + " and by ".join(rival.source for rival in self.rivals)

    def require_one_owner(self) -> None:
        """InputError naming all owners, where several offer this name and none of them alone replaces it."""
        if self.rivals:
            raise InputError(f"{self.shared}: uninstall all but one, switch one off (SLMOPT_DISABLE_PLUGINS), "
                             "or let one say replaces(...)")  # fmt: skip


@dataclass(frozen=True)
class Offers:
    """Everything that is offered, by kind and name; what a backend is made with."""

    passes: Mapping[str, Offer] = field(default_factory=dict)
    ops: Mapping[str, Offer] = field(default_factory=dict)
    rules: Mapping[str, Offer] = field(default_factory=dict)
    backends: Mapping[str, Offer] = field(default_factory=dict)
    runtimes: Mapping[str, Offer] = field(default_factory=dict)
    isas: Mapping[str, Offer] = field(default_factory=dict)
    lowerings: Mapping[str, Offer] = field(default_factory=dict)
    frontends: Mapping[str, Offer] = field(default_factory=dict)
    recipes: Mapping[str, Offer] = field(default_factory=dict)
    metrics: Mapping[str, Offer] = field(default_factory=dict)
