"""The op `relu_squared`."""

from __future__ import annotations

from typing import Any

from slmopt.ir.graph import Op, operand_type
from slmopt.ir.spec import OpSpec
from slmopt.ir.types import TensorType

__all__ = ["RELU_SQUARED"]


def _infer(op: Op) -> TensorType:
    return operand_type(op.operands[0])


def _reference(op: Op, x: Any) -> Any:
    return x.relu().square()


RELU_SQUARED = OpSpec("relu_squared", ("x",), _infer, _reference, "max(x, 0) squared, elementwise (So et al. 2021)")
