"""How each language-model op becomes a kernel call."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.embedding import embedding
from slmopt.backends.tvm.glu import glu
from slmopt.backends.tvm.linear import linear
from slmopt.backends.tvm.lower import Argument, Lowering
from slmopt.backends.tvm.norm import layer_norm, rms_norm
from slmopt.backends.tvm.operands import known_size, optional_weight, required_weight
from slmopt.backends.tvm.quantize_rows import quantize_rows
from slmopt.backends.tvm.rope import rope
from slmopt.backends.tvm.round_rows import round_rows
from slmopt.backends.tvm.rows import joint_rows
from slmopt.backends.tvm.views import View, allocate_view
from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Op, Value
from slmopt.ir.types import DType, QuantizedType

__all__ = [
    "lower_embedding",
    "lower_glu",
    "lower_linear",
    "lower_norm",
    "lower_quantize_rows",
    "lower_rope",
]


def _text(op: Op, name: str) -> str | None:
    """An attribute that is a word or absent."""
    value = op.attributes[name]
    return None if value is None else str(value)


def _is_quantized(value: Value) -> bool:
    return not isinstance(value.type.element, DType)


def _output(op: Op) -> str:
    return "f32" if op.attributes["output"] == "f32" else "q8"


def lower_embedding(lowering: Lowering, op: Op) -> None:
    """Rows of a packed table by ids."""
    table, ids, vocab = required_weight(op, 1), op.value(0), lowering.module.metadata.get("vocab") or 0
    if ids is lowering.graph.inputs[0] and known_size(table.type.shape[0], op) < vocab:
        raise UnsupportedError(f"{op.describe()}: {table.type} has no row for some of the {vocab} tokens")
    source: View = lowering.place(ids)
    if source.buffer.space != "ids":
        source = lowering.place(lowering.copy(ids, "i32"))
    out = lowering.allocate(op.result)
    found = joint_rows(op.result.shape[:-1], [out, source])
    if found is None or found.inner != 1 or found.strides[0][0] == 0 or found.strides[1][0] not in (0, 1):
        raise UnsupportedError(f"{op.describe()}: ids {ids.type} do not lie one after another")
    slot = lowering.weights.linear(table)
    kernel = embedding(lowering.isa, table.type.element, *(known_size(d, op) for d in table.type.shape))
    arguments: list[Argument] = [out, slot, source, "lo", "hi", str(found.strides[0][0])]
    lowering.call(op, kernel, arguments, found.outer)


def lower_linear(lowering: Lowering, op: Op) -> None:
    """A packed matrix by rows; threads share the blocks of outputs."""
    if op.attributes["act"] == "q8" and not _is_quantized(op.value(0)):
        raise UnsupportedError(f"{op.describe()} quantizes its own input; the pass `fuse` makes that an op of its own")
    x, weight, bias = op.value(0), required_weight(op, 1), optional_weight(op, 2)
    if _is_quantized(x) != isinstance(weight.type.element, QuantizedType):
        raise UnsupportedError(f"{op.describe()}: no kernel multiplies {x.type} by {weight.type}; expected both "
                               'quantized (act = "q8", which `fuse` makes an op of its own) or neither')  # fmt: skip
    pairs = op.attributes["act"] == "bf16" and weight.type.element == DType.bf16 and bool(lowering.isa.bf16_dot)
    if op.attributes["act"] == "bf16":
        x = _rounded_rows(lowering, op, DType.bf16 if pairs else DType.f32)
    residual = op.value(3) if len(op.operands) > 3 and op.operands[3] is not None else None
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, *([x] if residual is None else [x, residual]), even=True)
    outputs, columns = (known_size(d, op) for d in weight.type.shape)
    kernel = linear(
        lowering.isa, weight.type.element, outputs, columns, bias=bias is not None, residual=residual is not None,
        activation=_text(op, "activation"), rounded=pairs,
    )  # fmt: skip
    arguments: list[Argument] = [out, rows.views[1], lowering.weights.linear(weight)]
    arguments += [lowering.weights.raw(bias)] if bias is not None else []
    arguments += [rows.views[2]] if residual is not None else []
    arguments += ["t0", "t1", "lo", "hi", *rows.spacing]
    blocks = -(-outputs // lowering.weights.block(weight.type))
    lowering.call(op, kernel, arguments, blocks, tokens=rows.outer)


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
    x, cos, sin = (op.value(i) for i in range(3))
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, x, cos, sin)
    angles = rows.strides[2]
    if angles != rows.strides[3] or angles[1] != 0:
        raise UnsupportedError(f"{op.describe()}: cos and sin must be shared by all heads of a token")
    head_dim, rotary_dim = known_size(x.shape[-1], op), known_size(cos.shape[-1], op)
    kernel = rope(lowering.isa, head_dim=head_dim, rotary_dim=rotary_dim, style=str(op.attributes["style"]))
    arguments: list[Argument] = [*rows.views, "lo", "hi", *rows.layout[:5], str(angles[0])]
    lowering.call(op, kernel, arguments, rows.count)


def lower_glu(lowering: Lowering, op: Op) -> None:
    """A gated unit over rows."""
    gate, up = op.value(0), op.value(1)
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, gate, up, even=True)
    width = known_size(gate.shape[-1], op)
    kernel = glu(lowering.isa, width=width, activation=_text(op, "activation"), output=_output(op))
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *rows.spacing], rows.count)


def lower_quantize_rows(lowering: Lowering, op: Op) -> None:
    """Rows to 8-bit codes with scales."""
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, op.value(0), even=True)
    kernel = quantize_rows(lowering.isa, width=known_size(op.result.shape[-1], op))
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *rows.spacing], rows.count)
