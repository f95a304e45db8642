"""Rules that find relu(x)^2 in models: as PyTorch writes the activation `relu2`, it is a product."""

from __future__ import annotations

from slmopt import Rule, any_, op

__all__ = ["RULES"]

_RELU = op("relu", any_("x"))

# relu(x) * relu(x) -> relu_squared(x): the same x on both sides
RULES = (Rule("relu_squared", op("mul", _RELU, _RELU), lambda at, m: at.add("relu_squared", m["x"])),)
