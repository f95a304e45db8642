"""What a backend is: three questions about a module and a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from slmopt.ir.graph import Module
    from slmopt.target import Target

__all__ = ["Backend", "BuildReport"]

BuildReport = Callable[[str, int, int], None]  # what is being made, how much of it is done, of how much


class Backend(Protocol):
    """Turns modules into artifacts for its kind of machine; knows its own target options.

    Made with the `slmopt.offers.Offers` of all plugins as its only argument, or without any: instruction sets and
    lowerings are there, and each backend takes those meant for its code generator.
    """

    name: str
    summary: str

    def status(self) -> Mapping[str, Any]:
        """What this machine can do with the target, as JSON values; never an error.

        compile, run: whether it can. emulate: the command of an emulator that runs its programs, if there is one.
        install: packages to install for what it cannot, each with where it comes from. Others as they help people.
        """

    def supports(self, module: Module, target: Target) -> list[str]:
        """What of the module cannot be compiled, each by op and place; empty where everything can."""

    def pipeline(self, module: Module, target: Target) -> list[str]:
        """The passes it still wants for the module as it is, in the notation of recipes.

        InputError where the target's options are wrong.
        """

    def build(
        self, module: Module, target: Target, output: str | Path, *, name: str | None = None,
        ledger: Mapping[str, Any] | None = None, recipe: str | None = None, report: BuildReport = ...,
    ) -> Path:  # fmt: skip
        """Write the artifact directory `output`; nothing is left there where it fails."""
