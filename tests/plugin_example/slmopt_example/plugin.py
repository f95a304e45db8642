"""What this plugin offers: names, and where to find what they name. Nothing here is imported before it is used."""

from __future__ import annotations

from pathlib import Path

from slmopt.plugins.hooks import slmopt_plugin


@slmopt_plugin
def slmopt_passes() -> dict[str, str]:
    return {"zero-small": "slmopt_example.zero_small:ZeroSmall"}


@slmopt_plugin
def slmopt_ops() -> dict[str, str]:
    return {"relu_squared": "slmopt_example.relu_squared:SPECS"}


@slmopt_plugin
def slmopt_recipes() -> dict[str, Path]:
    return {"sparse": Path(__file__).parent / "sparse.toml"}
