"""What this plugin offers: names, and where to find what they name. Nothing here is imported before it is used."""

from __future__ import annotations

from pathlib import Path

from slmopt.plugins.hooks import slmopt_plugin

_HERE = Path(__file__).parent


@slmopt_plugin
def slmopt_passes() -> dict[str, str]:
    return {"zero-small": "slmopt_example.zero_small:ZeroSmall"}


@slmopt_plugin
def slmopt_ops() -> dict[str, str]:
    return {"relu_squared": "slmopt_example.relu_squared:RELU_SQUARED"}


@slmopt_plugin
def slmopt_rules() -> dict[str, str]:
    """The pass raise-activation, and `raise` with it, then finds the op in models."""
    return {"raise-activation/relu-squared": "slmopt_example.rules:RULES"}


@slmopt_plugin
def slmopt_lowerings() -> dict[str, str]:
    """The op's kernel on processors."""
    return {"tvm:relu_squared": "slmopt_example.relu_squared_kernel:lower_relu_squared"}


@slmopt_plugin
def slmopt_isas() -> dict[str, Path]:
    return {"avx2-small": _HERE / "avx2-small.toml"}


@slmopt_plugin
def slmopt_recipes() -> dict[str, Path]:
    return {"sparse": _HERE / "sparse.toml"}


@slmopt_plugin
def slmopt_metrics() -> dict[str, str]:
    return {"top-5": "slmopt_example.top_5:Top5"}
