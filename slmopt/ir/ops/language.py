"""Language-model ops that work on each token alone: embedding, linear, norms, rotary positions, gated units."""

from __future__ import annotations

from typing import Any

from slmopt.errors import IRError
from slmopt.ir.dims import Dim, dim_symbols, product
from slmopt.ir.graph import Op, operand_type
from slmopt.ir.linking import AxisLinker, couple_elementwise
from slmopt.ir.ops.elementwise import broadcast_shapes
from slmopt.ir.spec import OpSpec, Required
from slmopt.ir.types import DType, QuantizedType, TensorType

__all__ = ["ACTIVATIONS", "QUANTIZED_ROWS", "SPECS", "activate", "quantize_rows"]

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh")
QUANTIZED_ROWS = QuantizedType(8, 32)


def activate(name: str | None, x: Any) -> Any:
    """Apply an activation function by its attribute value (None: identity)."""
    import torch

    if name is None:
        return x
    if name == "gelu_tanh":
        return torch.nn.functional.gelu(x, approximate="tanh")
    return getattr(torch.nn.functional, name)(x) if name in ("silu", "gelu", "relu") else getattr(torch, name)(x)


def quantize_rows(x: Any) -> Any:
    """Snap float32 x [..., k] to the q8g32 grid: per 32 inputs, scale = amax / 127, code = round_half_even(x / scale).

    Straight-through for gradients. Returns the dequantized values: exactly what integer kernels multiply.
    """
    import torch

    columns = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -columns % 32)).unflatten(-1, (-1, 32))  # type: ignore[no-untyped-call]
    scale = padded.detach().abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scale > 0, padded.detach() / scale, torch.zeros_like(padded)).round().clamp(-127, 127)
    snapped = (codes * scale).flatten(-2)[..., :columns]
    return x + (snapped - x).detach() if x.requires_grad else snapped


def _round_to_bfloat16(x: Any) -> Any:
    """The nearest numbers of bfloat16, ties to even, in the type of x."""
    import torch

    return x.to(torch.bfloat16).to(x.dtype)


def _activation_name(op: Op, attribute: str = "activation") -> str | None:
    name = op.attributes[attribute]
    if name is not None and name not in ACTIVATIONS:
        raise IRError(f"{attribute} {name!r} is unknown: expected none or one of {', '.join(ACTIVATIONS)}")
    return name  # type: ignore[return-value]


def _float(type: TensorType, name: str, *, quantized: bool = False) -> TensorType:
    if not type.element.is_float or (isinstance(type.element, QuantizedType) and not quantized):
        raise IRError(f"{name} must be floating point, got {type}")
    return type


def _output(op: Op, shape: tuple[Dim, ...]) -> TensorType:
    """Float32 results, or quantized rows where `output = "q8g32"`."""
    output = op.attributes["output"]
    if output == "f32":
        return TensorType(DType.f32, shape)
    if output == str(QUANTIZED_ROWS):
        return TensorType(QUANTIZED_ROWS, shape)
    raise IRError(f'output must be "f32" or "{QUANTIZED_ROWS}", got {output!r}')


def _finish(op: Op, x: Any) -> Any:
    return quantize_rows(x) if op.attributes["output"] != "f32" else x


def _embedding(op: Op) -> TensorType:
    ids, table = operand_type(op.operands[0]), operand_type(op.operands[1])
    if ids.element not in (DType.i64, DType.i32) or table.rank != 2:
        raise IRError(f"expected integer ids and a table [rows, width], got {ids} and {table}")
    return TensorType(DType.f32, (*ids.shape, table.shape[1]))


def _embedding_reference(op: Op, ids: Any, table: Any) -> Any:
    import torch

    return torch.nn.functional.embedding(ids, table)


def _linear(op: Op) -> TensorType:
    x, weight = operand_type(op.operands[0]), operand_type(op.operands[1])
    _float(x, "x", quantized=True)
    _float(weight, "weight", quantized=True)
    if weight.rank != 2 or x.rank < 1 or x.shape[-1] != weight.shape[1]:
        raise IRError(f"expected x [..., k] and weight [n, k], got {x} and {weight}")
    shape = (*x.shape[:-1], weight.shape[0])
    bias, residual = (op.operands[i] if len(op.operands) > i else None for i in (2, 3))
    if bias is not None and operand_type(bias).shape != (weight.shape[0],):
        raise IRError(f"bias must have shape [{weight.shape[0]}], got {operand_type(bias)}")
    if residual is not None and operand_type(residual).shape != shape:
        raise IRError(f"residual must have shape {list(shape)}, got {operand_type(residual)}")
    _activation_name(op)
    if op.attributes["act"] not in (None, "q8", "bf16"):
        raise IRError(f'act must be none, "q8" or "bf16", got {op.attributes["act"]!r}')
    if op.attributes["act"] == "bf16" and isinstance(x.element, QuantizedType):
        raise IRError(f'act = "bf16" rounds real numbers, and x is {x}: expected act = none')
    return TensorType(DType.f32, shape)


def _linear_reference(op: Op, x: Any, weight: Any, bias: Any = None, residual: Any = None) -> Any:
    import torch

    if op.attributes["act"] == "q8" and not isinstance(operand_type(op.operands[0]).element, QuantizedType):
        x = quantize_rows(x)
    if op.attributes["act"] == "bf16":
        x = _round_to_bfloat16(x)
    found = activate(_activation_name(op), torch.nn.functional.linear(x, weight, bias))
    return found if residual is None else found + residual


def _linear_flops(op: Op) -> Dim:
    return product(op.results[0].shape) * operand_type(op.operands[1]).shape[1] * 2


def _norm(op: Op) -> TensorType:
    x = _float(operand_type(op.operands[0]), "x")
    if not x.rank:
        raise IRError(f"x must have an axis, got {x}")
    for operand in op.operands[1:]:
        if operand is not None and operand_type(operand).shape != (x.shape[-1],):
            raise IRError(f"weight and bias must have shape [{x.shape[-1]}], got {operand_type(operand)}")
    return _output(op, x.shape)


def _rms_norm_reference(op: Op, x: Any, weight: Any = None) -> Any:
    import torch

    found = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + op.attributes["eps"])
    return _finish(op, found if weight is None else found * weight)


def _layer_norm_reference(op: Op, x: Any, weight: Any = None, bias: Any = None) -> Any:
    import torch

    return _finish(op, torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, op.attributes["eps"]))  # type: ignore[arg-type]


def _last_mixes(op: Op, symbol: str) -> bool:
    return symbol in dim_symbols(operand_type(op.operands[0]).shape[-1])


def _rope(op: Op) -> TensorType:
    x, cos, sin = (_float(operand_type(o), "x, cos and sin") for o in op.operands)
    if not x.rank or not cos.rank:
        raise IRError(f"x, cos and sin must have an axis, got {x}, {cos} and {sin}")
    width, rotary = x.shape[-1], cos.shape[-1]
    if cos != sin or not isinstance(width, int) or not isinstance(rotary, int) or rotary % 2 or rotary > width:
        raise IRError(f"cos and sin must be alike, with an even last axis not above {width}, got {cos} and {sin}")
    if broadcast_shapes(x.shape[:-1], cos.shape[:-1]) != x.shape[:-1]:
        raise IRError(f"cos {cos} does not broadcast to x {x}")
    if op.attributes["style"] not in ("half", "interleaved"):
        raise IRError(f'style must be "half" or "interleaved", got {op.attributes["style"]!r}')
    return x


def _rope_reference(op: Op, x: Any, cos: Any, sin: Any) -> Any:
    import torch

    rotary = cos.shape[-1]
    turned, rest = x[..., :rotary], x[..., rotary:]
    if op.attributes["style"] == "half":
        first, second = turned.chunk(2, -1)
        swapped = torch.cat((-second, first), -1)
    else:
        swapped = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
    return torch.cat((turned * cos + swapped * sin, rest), -1)


def _glu(op: Op) -> TensorType:
    gate, up = (_float(operand_type(o), "gate and up") for o in op.operands)
    if gate.shape != up.shape:
        raise IRError(f"gate and up must have one shape, got {gate} and {up}")
    _activation_name(op)
    return _output(op, gate.shape)


def _glu_reference(op: Op, gate: Any, up: Any) -> Any:
    return _finish(op, activate(_activation_name(op), gate) * up)


def _quantize_rows(op: Op) -> TensorType:
    return TensorType(QUANTIZED_ROWS, _float(operand_type(op.operands[0]), "x").shape)


_OUTPUT = {"output": "f32"}
def _couple_linear(axes: AxisLinker, op: Op) -> None:
    x, weight, bias, residual = (axes.operand(index) for index in range(4))
    axes.link(x, -1, weight, 1)
    axes.link(weight, 0, axes.result, -1)
    for index in range(len(axes.shape(x)) - 1):
        axes.link(x, index, axes.result, index)
    axes.link(bias, 0, axes.result, -1)
    if residual is not None:
        axes.link_same(residual, axes.result)


def _couple_embedding(axes: AxisLinker, op: Op) -> None:
    ids, table = op.operands
    axes.block(table, 0, "picks rows of it by number")
    axes.link(table, 1, axes.result, -1)
    for index in range(len(axes.shape(ids))):
        axes.link(ids, index, axes.result, index)


def _couple_norm(axes: AxisLinker, op: Op) -> None:
    axes.link_same(axes.operand(0), axes.result)
    for index in (1, 2):
        axes.link(axes.operand(index), 0, axes.result, -1)


def _couple_rope(axes: AxisLinker, op: Op) -> None:
    x, *tables = op.operands
    last = len(axes.shape(x)) - 1
    axes.link_same(x, axes.result, but=(last,))
    for operand in (*op.operands, axes.result):
        axes.block(operand, -1, "turns its positions in pairs")
    for table in tables:
        rank = len(axes.shape(table))
        for back in range(2, rank + 1):
            if axes.shape(table)[-back] == axes.shape(x)[-back]:
                axes.link(table, -back, x, -back)


SPECS: tuple[OpSpec, ...] = (
    OpSpec("embedding", ("ids", "table"), _embedding, _embedding_reference, "rows of `table` [rows, width] by ids",
           mixes=lambda op, symbol: symbol in dim_symbols(operand_type(op.operands[1]).shape[0]),
           couple=_couple_embedding,
           meaning="result[..., j] = table[ids[...], j] in f32. The ids are i64 or i32, from 0 to rows - 1; the table "
                   "may "
                   "be of any element type, quantized ones included.",
           example="%ids: i64[b, s] -> embedding(%ids, weight @embed : q8c[512, 64]) : f32[b, s, 64]"),
    OpSpec("linear", ("x", "weight", "bias?", "residual?"), _linear, _linear_reference,
           "activation(x W^T + bias) + residual; act = \"q8\": x is first snapped to the q8g32 grid, \"bf16\": rounded",
           {"activation": None, "act": None}, flops=_linear_flops, mixes=_last_mixes,
           couple=_couple_linear,
           meaning="result[..., i] = f(sum over j of x[..., j] weight[i, j] + bias[i]) + residual[..., i], with x "
                   "[..., k], "
                   "weight [n, k], bias [n], residual [..., n]; the result is f32. x and weight are real or "
                   "quantized; the "
                   "sum is that of the products of the numbers they stand for, to float32 precision. `activation` is "
                   "f: "
                   "none, " + ", ".join(f'"{name}"' for name in ACTIVATIONS) + " (gelu by erf, gelu_tanh by tanh: see "
                   '`gelu`). `act` = "q8" snaps x to the q8g32 grid first, as quantize_rows does, and leaves x as it '
                   'is '
                   "where it is of that type already: so products are of integers, and exact within a group of 32. "
                   '`act` = "bf16" rounds a real x to bfloat16 first, to the nearest number, ties to even; what is '
                   "subnormal (below 2^-126) of x, weight and sums may then count as 0.",
           example='%x: f32[b, s, 64], %r: f32[b, s, 32] -> linear(%x, weight @w : q4g32[32, 64], _, %r) '
                   '{activation = "silu", act = "q8"} : f32[b, s, 32]'),
    OpSpec("quantize_rows", ("x",), _quantize_rows, lambda op, x: quantize_rows(x),
           "8-bit codes with one float32 scale per 32 elements of the last axis: scale = amax / 127",
           mixes=_last_mixes,
           meaning="For each 32 neighbours along the last axis, of which the last group may have fewer: scale = "
                   "max |x| / 127 in float32, code = x / scale rounded to the nearest integer, ties to even, in -127 "
                   "to "
                   "127, and 0 where the scale is 0. The result, of type q8g32, stands for code * scale.",
           example="%x: f32[b, s, 64] -> quantize_rows(%x) : q8g32[b, s, 64]"),
    OpSpec("rms_norm", ("x", "weight?"), _norm, _rms_norm_reference,
           "x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019)",
           {"eps": Required(float), **_OUTPUT}, mixes=_last_mixes,
           couple=_couple_norm,
           meaning="mean is that of the last axis, of size k; `eps` is added to it; weight has shape [k], absent it "
                   "is 1. "
                   'The result is f32, or with `output` = "q8g32" snapped and stored as quantize_rows has it.',
           example="%x: f32[b, s, 64] -> rms_norm(%x, weight @norm : f32[64]) {eps = 1e-05} : f32[b, s, 64]"),
    OpSpec("layer_norm", ("x", "weight?", "bias?"), _norm, _layer_norm_reference,
           "(x - mean) / sqrt(var + eps) * weight + bias over the last axis (Ba et al. 2016)",
           {"eps": Required(float), **_OUTPUT}, mixes=_last_mixes,
           couple=_couple_norm,
           meaning="mean and var = mean((x - mean)^2) are those of the last axis, of size k; `eps` is added to var; "
                   "weight "
                   "and bias have shape [k], absent they are 1 and 0. The result is f32, or with `output` = \"q8g32\" "
                   "snapped and stored as quantize_rows has it.",
           example="%x: f32[b, s, 64] -> layer_norm(%x, weight @norm : f32[64], weight @bias : f32[64]) {eps = 1e-05} "
                   ": "
                   "f32[b, s, 64]"),
    OpSpec("rope", ("x", "cos", "sin"), _rope, _rope_reference,
           "rotary position embedding of the first cos.shape[-1] elements: x cos + rotate(x) sin (Su et al. 2021)",
           {"style": "half"},
           couple=_couple_rope,
           meaning="cos and sin have one type; their last axis r is even and at most that of x, their other axes "
                   "broadcast "
                   'to those of x. `style` = "half", for i < r/2: result[i] = x[i] cos[i] - x[i + r/2] sin[i], '
                   "result[i + r/2] = x[i + r/2] cos[i + r/2] + x[i] sin[i + r/2]. \"interleaved\": result[2i] = x[2i] "
                   "cos[2i] - x[2i + 1] sin[2i], result[2i + 1] = x[2i + 1] cos[2i + 1] + x[2i] sin[2i + 1]. From r "
                   "on, "
                   "result[i] = x[i]. The result has the type of x.",
           example='%x: f32[b, 8, s, 16], %cos: f32[1, 1, s, 16], %sin: f32[1, 1, s, 16] -> rope(%x, %cos, %sin) '
                   '{style = "half"} : f32[b, 8, s, 16]'),
    OpSpec("glu", ("gate", "up"), _glu, _glu_reference, "activation(gate) * up (Shazeer 2020)",
           {"activation": "silu", **_OUTPUT},
           couple=couple_elementwise,
           meaning="gate and up have one shape. `activation` as in linear. The result is f32, or with `output` = "
                   '"q8g32" snapped and stored as quantize_rows has it.',
           example='%gate: f32[b, s, 172], %up: f32[b, s, 172] -> glu(%gate, %up) {activation = "silu"} : f32[b, s, '
                   '172]'),
)  # fmt: skip
