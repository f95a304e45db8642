"""How processors compute `relu_squared`."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.authoring import Vectors, elementwise
from slmopt.ir.graph import Op

__all__ = ["lower_relu_squared"]


@elementwise
def lower_relu_squared(vectors: Vectors, op: Op, x: Any) -> Any:
    """A vector of results from one of operands."""
    positive = vectors.let(vectors.maximum(x, 0.0))
    return positive * positive
