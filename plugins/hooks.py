"""What a plugin can offer. A plugin is a module or object with some of these functions, marked by `slmopt_plugin`.

    from slmopt.plugins.hooks import slmopt_plugin

    @slmopt_plugin
    def slmopt_passes() -> dict[str, str]:
        return {"my-pass": "my_package.my_pass:MyPass"}

and in the distribution's pyproject.toml:

    [project.entry-points.slmopt]
    my-plugin = "my_package.plugin"

Names are given as "module:attribute" and imported when they are used: listing them imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pluggy

__all__ = ["GROUP", "HookSpecifications", "slmopt_plugin"]

GROUP = "slmopt"  # the entry-point group and the project name of the hooks

_specify = pluggy.HookspecMarker(GROUP)
slmopt_plugin = pluggy.HookimplMarker(GROUP)


class HookSpecifications:
    """The hooks. Each returns names and where to find what they name."""

    @_specify
    def slmopt_passes(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Passes: name to "module:Class" of a `slmopt.pipeline.Pass`."""

    @_specify
    def slmopt_backends(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Backends: name to "module:Class" of a `slmopt.backend.Backend`."""

    @_specify
    def slmopt_recipes(self) -> Mapping[str, Path]:  # type: ignore[empty-body]
        """Recipes: name to TOML file."""

    @_specify
    def slmopt_ops(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Ops: name to "module:attribute" of a sequence of `slmopt.ir.spec.OpSpec` that holds the op."""

    @_specify
    def slmopt_frontends(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Frontends: name to "module:Class" of a `slmopt.frontend.Frontend`."""
