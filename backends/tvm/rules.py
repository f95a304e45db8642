"""How each language-model op becomes a kernel call."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.embedding import embedding
from slmopt.backends.tvm.glu import glu
from slmopt.backends.tvm.linear import linear
from slmopt.backends.tvm.lower import Argument, Lowering
from slmopt.backends.tvm.norm import layer_norm, rms_norm
from slmopt.backends.tvm.operands import known_size, optional_weight, required_weight, word
from slmopt.backends.tvm.placed_operands import check_linear, place_embedding, place_linear, place_rope
from slmopt.backends.tvm.quantize_rows import quantize_rows
from slmopt.backends.tvm.rope import rope
from slmopt.backends.tvm.round_rows import round_rows
from slmopt.backends.tvm.views import allocate_view
from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Op, Value
from slmopt.ir.types import DType

__all__ = [
    "lower_embedding",
    "lower_glu",
    "lower_linear",
    "lower_norm",
    "lower_quantize_rows",
    "lower_rope",
]


def _output(op: Op) -> str:
    return "f32" if op.attributes["output"] == "f32" else "q8"


def lower_embedding(lowering: Lowering, op: Op) -> None:
    """Rows of a packed table by ids."""
    table, arguments, count = place_embedding(lowering, op)
    kernel = embedding(lowering.isa, table.type.element, *(known_size(d, op) for d in table.type.shape))
    lowering.call(op, kernel, arguments, count)


def lower_linear(lowering: Lowering, op: Op) -> None:
    """A packed matrix by rows; threads share the blocks of outputs."""
    check_linear(op)
    x, element = op.value(0), required_weight(op, 1).type.element
    pairs = op.attributes["act"] == "bf16" and element == DType.bf16 and bool(lowering.isa.bf16_dot)
    if op.attributes["act"] == "bf16":
        x = _rounded_rows(lowering, op, DType.bf16 if pairs else DType.f32)
    placed = place_linear(lowering, op, x)
    kernel = linear(
        lowering.isa, element, placed.outputs, placed.columns, bias=placed.bias, residual=placed.residual,
        activation=word(op, "activation"), rounded=pairs,
    )  # fmt: skip
    blocks = -(-placed.outputs // lowering.weights.block(placed.weight.type))
    arguments = [*placed.arguments, "t0", "t1", "lo", "hi", *placed.rows.spacing]
    lowering.call(op, kernel, arguments, blocks, tokens=placed.rows.outer)


def _rounded_rows(lowering: Lowering, reader: Op, stored: DType) -> Value:
    """The rows that a linear reads, rounded to bfloat16 and stored as that or as float32; once for all its readers."""
    x = reader.value(0)
    if x.type.element != DType.f32:
        raise UnsupportedError(f"{reader.describe()}: no kernel rounds %{x.name} : {x.type}; expected f32")
    for user in x.users:
        known = lowering.views.get(user.result) if user.name == "cast" else None
        if known is not None and user.attributes["element"] == str(DType.bf16) and known.element == stored:
            return user.result
    op = lowering.graph.add("cast", [x], {"element": str(DType.bf16)}, before=reader, hint=f"{x.name}_bf16")
    if x in lowering.tail:
        lowering.tail.add(op.result)
    out = allocate_view(op.result.name, x.type.with_element(stored), lowering.chunk)
    lowering.views[op.result] = out
    rows = lowering.joint_rows(op, out, x, even=True)
    kernel = round_rows(lowering.isa, width=known_size(x.shape[-1], op), stored=stored)
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *rows.spacing], rows.count)
    return op.result


def lower_norm(lowering: Lowering, op: Op) -> None:
    """RMS or layer normalization over rows."""
    x, weight = op.value(0), optional_weight(op, 1)
    bias = optional_weight(op, 2) if op.name == "layer_norm" else None
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, x)
    width = known_size(x.shape[-1], op)
    options: dict[str, Any] = {"width": width, "eps": op.attributes["eps"], "output": _output(op)}
    options["weight"] = weight is not None
    kernel = (
        layer_norm(lowering.isa, **options, bias=bias is not None) if op.name == "layer_norm"
        else rms_norm(lowering.isa, **options)
    )  # fmt: skip
    arguments: list[Argument] = [*rows.views, *(lowering.weights.raw(w) for w in (weight, bias) if w is not None)]
    arguments += ["lo", "hi", *rows.layout]
    lowering.call(op, kernel, arguments, rows.count)


def lower_rope(lowering: Lowering, op: Op) -> None:
    """Rotary positions over rows (token, head)."""
    rows = place_rope(lowering, op)
    head_dim, rotary_dim = (known_size(op.value(index).shape[-1], op) for index in (0, 1))
    kernel = rope(lowering.isa, head_dim=head_dim, rotary_dim=rotary_dim, style=str(op.attributes["style"]))
    arguments: list[Argument] = [*rows.views, "lo", "hi", *rows.layout[:5], str(rows.strides[2][0])]
    lowering.call(op, kernel, arguments, rows.count)


def lower_glu(lowering: Lowering, op: Op) -> None:
    """A gated unit over rows."""
    gate, up = op.value(0), op.value(1)
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, gate, up, even=True)
    width = known_size(gate.shape[-1], op)
    kernel = glu(lowering.isa, width=width, activation=word(op, "activation"), output=_output(op))
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *rows.spacing], rows.count)


def lower_quantize_rows(lowering: Lowering, op: Op) -> None:
    """Rows to 8-bit codes with scales."""
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, op.value(0), even=True)
    kernel = quantize_rows(lowering.isa, width=known_size(op.result.shape[-1], op))
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *rows.spacing], rows.count)
