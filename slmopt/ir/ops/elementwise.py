"""Ops that work on each element alone, with numpy broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.errors import IRError
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, operand_type
from slmopt.ir.linking import couple_elementwise
from slmopt.ir.spec import OpSpec, Required
from slmopt.ir.types import DType, TensorType, parse_element

__all__ = ["SPECS", "broadcast_shapes"]


def broadcast_shapes(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The numpy-broadcast shape; IRError where two dimensions neither agree nor are 1."""
    rank = max(map(len, shapes))
    result: list[Dim] = []
    for axis in range(-rank, 0):
        found: Dim = 1
        for shape in shapes:
            dim: Dim = shape[axis] if -axis <= len(shape) else 1
            if dim != 1 and found != 1 and dim != found:
                raise IRError(f"shapes {' and '.join(str(list(s)) for s in shapes)} do not broadcast at axis {axis}")
            found = found if dim == 1 else dim
        result.append(found)
    return tuple(result)


def _same_elements(op: Op, types: list[TensorType]) -> None:
    if len({type.element for type in types}) > 1:
        raise IRError(f"operands must have one element type, got {', '.join(map(str, types))}; insert a cast")


def _binary(op: Op) -> TensorType:
    types = [operand_type(o) for o in op.operands]
    _same_elements(op, types)
    return TensorType(types[0].element, broadcast_shapes(*(type.shape for type in types)))


def _comparison(op: Op) -> TensorType:
    return _binary(op).with_element(DType.bool)


def _unary(op: Op) -> TensorType:
    return operand_type(op.operands[0])


def _float_unary(op: Op) -> TensorType:
    found = operand_type(op.operands[0])
    if not (isinstance(found.element, DType) and found.element.is_float):
        raise IRError(f"expected a floating-point operand, got {found}; insert a cast")
    return found


def _where(op: Op) -> TensorType:
    condition, *branches = (operand_type(o) for o in op.operands)
    if condition.element != DType.bool:
        raise IRError(f"the condition must be bool, got {condition}")
    _same_elements(op, branches)
    return TensorType(branches[0].element, broadcast_shapes(condition.shape, *(b.shape for b in branches)))


def _cast(op: Op) -> TensorType:
    element = parse_element(str(op.attributes["element"]))
    if not isinstance(element, DType):
        raise IRError(f"cast goes to a plain element type, not {element}; use quantize_rows")
    return operand_type(op.operands[0]).with_element(element)


def _cast_reference(op: Op, x: Any) -> Any:
    from slmopt.ir.torch_types import torch_dtype

    return x.to(torch_dtype(op.attributes["element"]))


def _gelu(op: Op, x: Any) -> Any:
    import torch

    return torch.nn.functional.gelu(x, approximate="tanh" if op.attributes["approximate"] else "none")


def _torch(name: str) -> Callable[..., Any]:
    def reference(op: Op, *operands: Any) -> Any:
        import torch

        return getattr(torch, name)(*operands)

    return reference


def _functional(name: str) -> Callable[..., Any]:
    def reference(op: Op, *operands: Any) -> Any:
        import torch

        return getattr(torch.nn.functional, name)(*operands)

    return reference


def _div(op: Op, left: Any, right: Any) -> Any:
    import torch

    return torch.div(left, right) if left.is_floating_point() else torch.div(left, right, rounding_mode="floor")


_BROADCAST = (
    "a and b have one element type. Their shapes broadcast as in numpy: aligned at the last axis, an axis that is "
    "missing or of size 1 is repeated to the other's size."
)
_NUMBERS = " The result has the operands' element type; integers wrap around."
_TRUTH = " The result is bool, on numbers true where not 0."
_ARITHMETIC = {
    "add": ("a + b", _NUMBERS), "sub": ("a - b", _NUMBERS), "mul": ("a * b", _NUMBERS),
    "pow": ("a to the power b", " The result has the operands' element type: NaN where a < 0 and b is no whole "
                                "number."),
    "maximum": ("the larger of a and b", " The result has the operands' element type: NaN where one of them is."),
    "minimum": ("the smaller of a and b", " The result has the operands' element type: NaN where one of them is."),
    "remainder": ("a modulo b, with the sign of b",
                  " a - floor(a / b) b, in the operands' element type; b is not 0 among integers."),
}  # fmt: skip
_LOGICAL = {"logical_and": "whether a and b both hold", "logical_or": "whether a or b holds"}
_COMPARISONS = {name: f"whether a {sign} b" for name, sign in
                {"eq": "=", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items()}  # fmt: skip
_FLOAT_UNARY = {
    "exp": "e to the x", "log": "natural logarithm", "log1p": "log(1 + x)", "expm1": "exp(x) - 1",
    "sqrt": "square root", "rsqrt": "1 / sqrt(x)",
    "sin": "sine", "cos": "cosine", "tanh": "hyperbolic tangent", "sigmoid": "1 / (1 + exp(-x))",
    "floor": "largest integer not above x", "reciprocal": "1 / x", "erf": "error function",
}  # fmt: skip

_SAME = "The result has the type of x, whose elements are {}."
_REAL = _SAME.format("f64, f32, f16 or bf16")
_SIGNED = _SAME.format("real numbers or signed integers")


def _on_x(name: str, type: str = "f32[b, s, 8]") -> str:
    return f"%x: {type} -> {name}(%x) : {type}"


def _on_two(name: str, element: str, result: str) -> str:
    return f"%a: {element}[b, s, 8], %b: {element}[8] -> {name}(%a, %b) : {result}[b, s, 8]"


SPECS: tuple[OpSpec, ...] = (
    *(OpSpec(name, ("a", "b"), _binary, _torch(name), f"{text}, elementwise", couple=couple_elementwise,
             meaning=_BROADCAST + more,
             example=_on_two(name, "f32", "f32")) for name, (text, more) in _ARITHMETIC.items()),
    *(OpSpec(name, ("a", "b"), _binary, _torch(name), f"{text}, elementwise on bool",
             couple=couple_elementwise, meaning=f"{_BROADCAST} The element type of a, b and the result is bool.",
             example=_on_two(name, "bool", "bool")) for name, text in _LOGICAL.items()),
    *(OpSpec(name, ("a", "b"), _comparison, _torch(name), f"{text}, elementwise; bool",
             couple=couple_elementwise,
             meaning=f"{_BROADCAST} The result is bool.", example=_on_two(name, "i64", "bool"))
      for name, text in _COMPARISONS.items()),
    *(OpSpec(name, ("x",), _float_unary, _torch(name), f"{text}, elementwise", couple=couple_elementwise,
             meaning=_REAL, example=_on_x(name))
      for name, text in _FLOAT_UNARY.items()),
    OpSpec("div", ("a", "b"), _binary, _div, "a / b, elementwise; rounded down for integers",
           couple=couple_elementwise,
           meaning=f"{_BROADCAST} The result has the operands' element type. Real numbers divide as IEEE 754 has it; "
                   f"of "
                   "integers the result is the largest not above the quotient, and b is not 0.",
           example=_on_two("div", "f32", "f32")),
    OpSpec("neg", ("x",), _unary, _torch("neg"), "-x, elementwise", couple=couple_elementwise,
           meaning=_SIGNED, example=_on_x("neg")),
    OpSpec("abs", ("x",), _unary, _torch("abs"), "absolute value, elementwise", couple=couple_elementwise,
           meaning=_SIGNED, example=_on_x("abs")),
    OpSpec("logical_not", ("x",), _unary, _torch("logical_not"), "not x, elementwise on bool",
           couple=couple_elementwise, meaning=_SAME.format("bool"), example=_on_x("logical_not", "bool[b, s]")),
    OpSpec("relu", ("x",), _unary, _torch("relu"), "max(x, 0), elementwise", couple=couple_elementwise,
           meaning=_SIGNED, example=_on_x("relu")),
    OpSpec("silu", ("x",), _float_unary, _functional("silu"), "x * sigmoid(x), elementwise",
           couple=couple_elementwise, meaning=f"x / (1 + exp(-x)). {_REAL}", example=_on_x("silu")),
    OpSpec("softplus", ("x",), _float_unary, _functional("softplus"), "log(1 + exp(x)), elementwise",
           couple=couple_elementwise, meaning=f"x itself where x > 20. {_REAL}", example=_on_x("softplus")),
    OpSpec("gelu", ("x",), _float_unary, _gelu, "x * Phi(x), elementwise (Hendrycks and Gimpel 2016)",
           {"approximate": False},
           couple=couple_elementwise,
           meaning=f"`approximate` false: x (1 + erf(x / sqrt(2))) / 2; true: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 "
                   f"x^3))) / 2. {_REAL}", example=_on_x("gelu")),
    OpSpec("where", ("condition", "a", "b"), _where, _torch("where"), "a where the condition holds, else b",
           couple=couple_elementwise,
           meaning="The condition is bool; a and b have one element type, which is the result's. The three shapes "
                   "broadcast as in numpy.",
           example="%c: bool[s, 1], %a: f32[b, s, 8], %b: f32[] -> where(%c, %a, %b) : f32[b, s, 8]"),
    OpSpec("cast", ("x",), _cast, _cast_reference, "x converted to `element`", {"element": Required(str)},
           couple=couple_elementwise,
           meaning="`element` is a plain element type. Real numbers are rounded to the nearest, ties to even; integers "
                   "get what is before the point; bool is whether x is not 0, and as a number 0 or 1.",
           example='%x: i64[b, s] -> cast(%x) {element = "f32"} : f32[b, s]'),
)  # fmt: skip
