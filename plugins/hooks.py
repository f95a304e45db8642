"""What a plugin can offer. A plugin is a module or object with some of these functions, marked by `slmopt_plugin`.

    from slmopt.plugins.hooks import slmopt_plugin

    @slmopt_plugin
    def slmopt_passes() -> dict[str, str]:
        return {"my-pass": "my_package.my_pass:MyPass"}

and in the distribution's pyproject.toml:

    [project.entry-points.slmopt]
    my-plugin = "my_package.plugin"

A hook that offers returns names and where to find what they name: "module:attribute", imported when the name is used,
or a file (pathlib.Path). Listing imports nothing, so a plugin's module imports nothing heavy either. `replaces(place)`
from `slmopt.offers` takes over a name that somebody else offers; without it such a name is an error where it is used.
`slmopt plugins` shows what is installed and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pluggy

from slmopt.offers import Replacement

if TYPE_CHECKING:
    from slmopt.ir.graph import Module
    from slmopt.ledger import Ledger, Row
    from slmopt.pipeline import Pass

__all__ = ["GROUP", "Files", "HookSpecifications", "Places", "slmopt_plugin"]

GROUP = "slmopt"  # the entry-point group and the project name of the hooks

Places: TypeAlias = Mapping[str, str | Replacement]
Files: TypeAlias = Mapping[str, Path | Replacement]

_specify = pluggy.HookspecMarker(GROUP)
slmopt_plugin = pluggy.HookimplMarker(GROUP)


class HookSpecifications:
    """The hooks."""

    @_specify
    def slmopt_passes(self) -> Places:  # type: ignore[empty-body]
        """Passes: name to "module:Class" of a `slmopt.pipeline.Pass` whose `name` is that name.

        Recipes, `slmopt opt -p` and `slmopt.optimize` then know it: {"zero-small": "my_package.zero_small:ZeroSmall"}.
        """

    @_specify
    def slmopt_ops(self) -> Places:  # type: ignore[empty-body]
        """Ops: name to "module:attribute" of a `slmopt.ir.spec.OpSpec`, or of a sequence of them that holds it.

        IR text may then contain the op, and rules may make it. Ops of the core cannot be replaced. An op that backends
        compile without further rules is one of plain arithmetic; others need a lowering (`slmopt_lowerings`).
        """

    @_specify
    def slmopt_rules(self) -> Places:  # type: ignore[empty-body]
        """Rewrite rules: "PASS/RULESET" to "module:attribute" of a sequence of `slmopt.rewrite.Rule`.

        They are tried after the pass's own, in the order of the rulesets' names: {"raise-activation/relu-squared":
        "my_package.rules:RULES"}. A pass takes rules where its class says `takes_rules = True`.
        """

    @_specify
    def slmopt_backends(self) -> Places:  # type: ignore[empty-body]
        """Backends: name of the target to "module:Class" of a `slmopt.backend.Backend`.

        The class is called with one argument, the `slmopt.offers.Offers` of all plugins, so that a backend finds
        instruction sets and lowerings there.
        """

    @_specify
    def slmopt_runtimes(self) -> Places:  # type: ignore[empty-body]
        """Runtimes: what a manifest's `runtime` says to "module:attribute" of what opens such an artifact.

        It is called with the artifact's path and its manifest, and gives a `slmopt.runtime.program.Program`; an
        artifact without a `runtime` opens its own library.
        """

    @_specify
    def slmopt_isas(self) -> Files:  # type: ignore[empty-body]
        """Instruction sets: name to a TOML file, as `--target cpu:isa=NAME` takes it.

        Its fields are those of `slmopt.backends.tvm.isa.Isa`, but for the name.
        """

    @_specify
    def slmopt_lowerings(self) -> Places:  # type: ignore[empty-body]
        """Kernels: "CODEGEN:OP" or "CODEGEN:OP@ISA" to "module:function" that turns the op into kernel calls.

        The code generator "tvm" calls `function(lowering, op) -> None`; `slmopt.backends.tvm.authoring` has what such
        a function is written with, and two short forms (`@elementwise`, `@expansion`). Of two for one op, the one for
        the instruction set compiled for wins.
        """

    @_specify
    def slmopt_frontends(self) -> Places:  # type: ignore[empty-body]
        """Frontends: name to "module:Class" of a `slmopt.frontend.Frontend`, made without arguments.

        `slmopt.load` asks those of plugins before its own.
        """

    @_specify
    def slmopt_recipes(self) -> Files:  # type: ignore[empty-body]
        """Recipes: name to a TOML file as `slmopt.recipe` reads it: {"sparse": Path(__file__).parent / "sparse.toml"}.

        Declare the file as package data, or it stays behind when the package is built.
        """

    @_specify
    def slmopt_metrics(self) -> Places:  # type: ignore[empty-body]
        """Metrics: name to "module:Class" of a `slmopt.metrics.Metric`, made without arguments.

        `slmopt eval MODEL --text FILE --metric NAME` and `slmopt.measure` then know it.
        """

    @_specify
    def slmopt_before_pass(self, item: Pass, module: Module) -> None:
        """Called before each pass, with the pass and a copy of the module it is about to edit.

        An observer declares the arguments it wants; the module is copied only for those that want it. What an observer
        raises is a warning, and it is not called again.
        """

    @_specify
    def slmopt_after_pass(self, item: Pass, module: Module, row: Row) -> None:
        """Called after each pass that was found in order, with a copy of the module and what was measured."""

    @_specify
    def slmopt_on_ledger(self, ledger: Ledger, module: Module) -> None:
        """Called when all passes of a pipeline have run, with copies of its ledger and of the finished module."""
