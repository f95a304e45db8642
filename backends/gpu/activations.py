"""Activation functions of one number, through the device's math library."""

from __future__ import annotations

from typing import Any

from slmopt.backends.gpu.device_code import call

__all__ = ["activate"]


def activate(name: str | None, x: Any) -> Any:
    """An activation function by its attribute value (None: identity)."""
    from tvm import tirx

    def number(value: float) -> Any:
        return tirx.const(value, "float32")

    if name is None:
        return x
    if name == "relu":
        return tirx.Select(x < number(0.0), number(0.0), x)  # NaN stays
    if name == "tanh":
        return call("float32", "tanhf", x)
    if name in ("silu", "sigmoid"):
        sigmoid = number(1.0) / (number(1.0) + call("float32", "expf", number(0.0) - x))
        return x * sigmoid if name == "silu" else sigmoid
    if name == "gelu":
        return number(0.5) * x * (number(1.0) + call("float32", "erff", x * number(0.7071067811865476)))
    inner = number(0.7978845608028654) * (x + number(0.044715) * x * x * x)
    return number(0.5) * x * (number(1.0) + call("float32", "tanhf", inner))
