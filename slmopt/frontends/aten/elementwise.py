"""ATen ops that work on each element alone. Promotion is resolved here: operands are cast to torch's result type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from slmopt.frontends.aten.builder import Argument, Builder
from slmopt.ir.graph import Value, Weight
from slmopt.ir.torch_types import element_of
from slmopt.ir.types import DType

__all__ = ["RULES"]

Tensor = Value | Weight


def _is_number(argument: Argument, number: float) -> bool:
    return isinstance(argument, int | float) and not isinstance(argument, bool) and argument == number


def _keeps(build: Builder, argument: Argument) -> bool:
    """Whether the node's result has the argument's own type, so that a neutral operation may be dropped."""
    return isinstance(argument, Value | Weight) and argument.type == build.result_type()


def _scaled(build: Builder, argument: Argument, alpha: Argument) -> Argument:
    if alpha == 1:
        return argument
    return build.add("mul", (build.operand(argument, build.element), build.operand(alpha, build.element)))


def _arithmetic(name: str, neutral: float | None = None) -> Callable[..., Tensor]:
    def rule(build: Builder, a: Argument, b: Argument, alpha: Argument = 1) -> Tensor:
        if neutral is not None and _is_number(b, neutral) and _keeps(build, a):
            return build.operand(a)
        element = build.element
        return build.add(name, (build.operand(a, element), build.operand(_scaled(build, b, alpha), element)))

    return rule


def _reversed_sub(build: Builder, a: Argument, b: Argument, alpha: Argument = 1) -> Tensor:
    return _arithmetic("sub")(build, b, _scaled(build, a, alpha))


def _mul(build: Builder, a: Argument, b: Argument) -> Tensor:
    if _is_number(a, 1) and _keeps(build, b):
        return build.operand(b)
    return _arithmetic("mul", 1)(build, a, b)


def _div(build: Builder, a: Argument, b: Argument, rounding_mode: str | None = None) -> Tensor:
    element = build.element
    if rounding_mode is None:
        return _arithmetic("div", 1)(build, a, b)
    if element.is_float and rounding_mode == "floor":
        return _floored_quotient(build, build.operand(a, element), build.operand(b, element))
    if not element.is_float and rounding_mode == "floor":
        return build.add("div", (build.operand(a, element), build.operand(b, element)))
    raise build.unsupported(f"rounding_mode={rounding_mode!r} of {element}")


def _floored_quotient(build: Builder, a: Tensor, b: Tensor) -> Tensor:
    """(a - a mod b) / b to the nearest whole number, as torch: a / b may round up."""
    whole = build.add("div", (build.add("sub", (a, build.add("remainder", (a, b)))), b))
    return build.add("floor", (build.add("add", (whole, build.constant(0.5, build.element))),))


def _floor_divide(build: Builder, a: Argument, b: Argument) -> Tensor:
    return _div(build, a, b, "floor")


def _logical(name: str) -> Callable[..., Tensor]:
    def rule(build: Builder, a: Argument, b: Argument) -> Tensor:
        if build.element != DType.bool:
            raise build.unsupported(f"bit arithmetic on {build.element}")
        return build.add(name, (build.operand(a, DType.bool), build.operand(b, DType.bool)))

    return rule


def _not(build: Builder, x: Argument) -> Tensor:
    if build.element != DType.bool:
        raise build.unsupported(f"bit arithmetic on {build.element}")
    return build.add("logical_not", (build.operand(x, DType.bool),))


def _common_element(arguments: Sequence[Any]) -> DType:
    """The type torch compares in: numbers do not widen tensors of their own kind."""
    values = [argument.meta["val"] if isinstance(argument, Node) else argument for argument in arguments]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    numbers = [_as_number(value) for value in values if not isinstance(value, torch.Tensor)]
    return element_of(torch.result_type(tensors[0], [*tensors[1:], *numbers][0]))


def _as_number(value: Any) -> bool | int | float:
    return value if isinstance(value, bool | int | float) else 1  # a symbolic size is an integer


def _comparison(name: str) -> Callable[..., Tensor]:
    def rule(build: Builder, a: Argument, b: Argument) -> Tensor:
        element = _common_element(build.arguments[:2])
        return build.add(name, (build.operand(a, element), build.operand(b, element)))

    return rule


def _unary(name: str) -> Callable[..., Tensor]:
    def rule(build: Builder, x: Argument) -> Tensor:
        return build.add(name, (build.operand(x, build.element),))

    return rule


def _square(build: Builder, x: Argument) -> Tensor:
    value = build.operand(x, build.element)
    return build.add("mul", (value, value))


def _gelu(build: Builder, x: Argument, approximate: str = "none") -> Tensor:
    return build.add("gelu", (build.operand(x),), {"approximate": approximate == "tanh"})


def _softplus(build: Builder, x: Argument, beta: Argument = 1, threshold: Argument = 20) -> Tensor:
    if beta != 1:
        raise build.unsupported(f"beta={beta}")
    return build.add("softplus", (build.operand(x),))


def _log_sigmoid(build: Builder, x: Argument) -> Tensor:
    return build.add("neg", (build.add("softplus", (build.add("neg", (build.operand(x),)),)),))


def _where(build: Builder, condition: Argument, a: Argument, b: Argument) -> Tensor:
    operands = (build.operand(condition, DType.bool), build.operand(a, build.element), build.operand(b, build.element))
    return build.add("where", operands)


def _masked_fill(build: Builder, x: Argument, mask: Argument, value: Argument) -> Tensor:
    return _where(build, mask, value, x)


def _clamp(build: Builder, x: Argument, min: Argument = None, max: Argument = None) -> Tensor:
    value = build.operand(x, build.element)
    if min is not None:
        value = build.add("maximum", (value, build.operand(min, build.element)))
    if max is not None:
        value = build.add("minimum", (value, build.operand(max, build.element)))
    return value


def _clamp_max(build: Builder, x: Argument, max: Argument) -> Tensor:
    return _clamp(build, x, None, max)


def _leaky_relu(build: Builder, x: Argument, negative_slope: Argument = 0.01) -> Tensor:
    value = build.operand(x)
    zero = build.constant(0, build.element)
    scaled = build.add("mul", (value, build.constant(negative_slope, build.element)))
    return build.add("where", (build.add("ge", (value, zero)), value, scaled))


def _cast(build: Builder, x: Argument, *_: Argument, **__: Argument) -> Tensor:
    return build.operand(x, build.element)


RULES: dict[str, Callable[..., Any]] = {
    "add": _arithmetic("add", 0), "sub": _arithmetic("sub", 0), "subtract": _arithmetic("sub", 0),
    "rsub": _reversed_sub, "mul": _mul, "multiply": _mul, "div": _div, "divide": _div, "true_divide": _div,
    "floor_divide": _floor_divide, "pow": _arithmetic("pow", 1), "remainder": _arithmetic("remainder"),
    "maximum": _arithmetic("maximum"), "minimum": _arithmetic("minimum"),
    "max.other": _arithmetic("maximum"), "min.other": _arithmetic("minimum"),
    "__and__": _logical("logical_and"), "bitwise_and": _logical("logical_and"), "logical_and": _logical("logical_and"),
    "__or__": _logical("logical_or"), "bitwise_or": _logical("logical_or"), "logical_or": _logical("logical_or"),
    "bitwise_not": _not, "logical_not": _not,
    **{name: _comparison(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{name: _unary(name) for name in (
        "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "floor", "reciprocal", "erf",
        "neg", "abs", "relu", "silu",
    )},
    "square": _square, "gelu": _gelu, "softplus": _softplus, "log_sigmoid": _log_sigmoid,
    "log_sigmoid_forward": _log_sigmoid, "leaky_relu": _leaky_relu,
    "where": _where, "masked_fill": _masked_fill, "clamp": _clamp, "clamp_min": _clamp, "clamp_max": _clamp_max,
    "_to_copy": _cast, "to": _cast, "type_as": _cast,
}  # fmt: skip
