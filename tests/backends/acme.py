"""A plugin of somebody else's, as tests need one: ops with and without state, kernels for them, and one for `glu`."""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.authoring import (
    Code,
    Isa,
    Kernel,
    Lowering,
    Memory,
    Vectors,
    each_chunk,
    elementwise,
    expansion,
    known_size,
    write_kernel,
)
from slmopt.errors import IRError, UnsupportedError
from slmopt.ir.cursor import Cursor
from slmopt.ir.dims import dim_symbols, symbol
from slmopt.ir.graph import Op, Value, operand_type
from slmopt.ir.spec import OpSpec, Required
from slmopt.ir.step import TOKENS, StepBuilder
from slmopt.ir.types import TensorType

__all__ = ["LOWERINGS", "SPECS"]


# --- squash: elementwise, with a weight or another value that broadcasts ---------------------------------------------
def _squash_reference(op: Op, x: Any, scale: Any = None) -> Any:
    return (x.relu().square() if scale is None else (x * scale).relu()) + op.attributes["offset"]


@elementwise
def lower_squash(vectors: Vectors, op: Op, x: Any, scale: Any = None) -> Any:
    """max(x, 0)^2 + offset, or max(x scale, 0) + offset."""
    if scale is not None:
        return vectors.maximum(x * scale, 0.0) + float(op.attributes["offset"])  # type: ignore[arg-type]
    positive = vectors.let(vectors.maximum(x, 0.0))
    return positive * positive + float(op.attributes["offset"])  # type: ignore[arg-type]


@expansion
def expand_squash(at: Cursor, op: Op, x: Value) -> Value:
    """With an offset: one without, whose expansion is made of primitives, and the offset."""
    if op.attributes["offset"]:
        return at.add("add", at.add("squash", x), at.constant(float(op.attributes["offset"]), x))  # type: ignore[arg-type]
    positive = at.add("relu", x)
    return at.add("mul", positive, positive)


@expansion
def expand_forever(at: Cursor, op: Op, x: Value) -> Value:
    """Into itself."""
    return at.add("squash", x)


@expansion
def expand_narrow(at: Cursor, op: Op, x: Value) -> Value:
    """Into something smaller."""
    return at.add("sum", x, axis=2, keep=True)


@expansion
def expand_badly(at: Cursor, op: Op, x: Value) -> Value:
    """Raises what no expansion should."""
    return at.constant(1 / 0, x)


# --- decayed_sum: y[i] = x[i] + decay * y[i - 1] along axis 1; its step keeps the last y -----------------------------
def _sum_infer(op: Op) -> TensorType:
    x = operand_type(op.operands[0])
    if x.rank != 3:
        raise IRError(f"expected x [b, positions, width], got {x}")
    return x


def _sum_reference(op: Op, x: Any) -> Any:
    found, _ = _sum_step_reference(op, x, x[:, 0] * 0)
    return found


def _sum_step_reference(op: Op, x: Any, last: Any) -> Any:
    import torch

    rows = []
    for position in range(x.shape[1]):
        last = x[:, position] + op.attributes["decay"] * last
        rows.append(last)
    return torch.stack(rows, 1), last


def _sum_step(builder: StepBuilder, op: Op, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    (x,) = operands
    state = builder.state("last", x.type.with_shape(x.shape[0], x.shape[2]))
    names = [op.result.name, f"{state.name}_next"]
    added = builder.graph.add("decayed_sum_step", [x, state], op.attributes, location=op.location, hint=names)
    found, following = added.results
    builder.update(state, following)
    return (found,)


def lower_sum_step(lowering: Lowering, op: Op) -> None:
    """Threads share the columns, a vector of them at a time."""
    x, last = op.value(0), op.value(1)
    width = known_size(x.shape[-1], op)
    if width % lowering.isa.lanes:
        raise UnsupportedError(f"{op.describe()}: the width {width} is no multiple of {lowering.isa.lanes}")
    rows = lowering.joint_rows(op, lowering.allocate(op.results[0]), x, even=True)
    state = lowering.keep(op.results[1], last)
    kernel = decayed_sum(lowering.isa, float(op.attributes["decay"]))  # type: ignore[arg-type]
    out, source = rows.views
    blocks = width // lowering.isa.lanes
    lowering.call(op, kernel, [out, state, source, "lo", "hi", "tokens", *rows.spacing], blocks)


def decayed_sum(isa: Isa, decay: float) -> Kernel:
    """Columns lo..hi, in vectors, of all tokens."""

    def body(
        code: Code, out: Memory, state: Memory, x: Memory, lo: Any, hi: Any, tokens: Any, out_stride: Any, x_stride: Any
    ) -> None:
        with code.loop(hi - lo) as i:
            column = code.let((lo + i) * isa.lanes)
            total = code.register(isa.lanes, start=state.load(column, isa.lanes))
            with code.loop(tokens) as token:
                total.set(total.value * decay + x.load(token * x_stride + column, isa.lanes))
                out.store(token * out_stride + column, total.value, isa.lanes)
            state.store(column, total.value, isa.lanes)

    name = f"acme_decayed_sum_{decay.hex().replace('.', '_').replace('-', 'm').replace('+', 'p')}"
    parameters = "float *out, float *state, const float *x, int32_t lo, int32_t hi, int32_t tokens"
    return write_kernel(name, f"{parameters}, int32_t out_stride, int32_t x_stride", body)


# --- shift_tokens: every position gets the one before it; its step is made of primitives, so it needs no kernel ------
def _shift_reference(op: Op, x: Any) -> Any:
    import torch

    return torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)


def _shift_step(builder: StepBuilder, op: Op, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    (x,) = operands
    state = builder.state("last", x.type.with_shape(x.shape[0], 1, x.shape[2]))
    both = builder.add("concat", (state, x), {"axis": 1})
    tokens = symbol(TOKENS)
    builder.update(state, builder.add("slice", (both,), {"axis": 1, "start": tokens, "stop": tokens + 1}))
    return (builder.add("slice", (both,), {"axis": 1, "stop": tokens}),)


# --- glu, computed another way ---------------------------------------------------------------------------------------
def lower_glu(lowering: Lowering, op: Op) -> None:
    """gate * up without an activation: all that these tests need."""
    if op.attributes["activation"] is not None:
        raise UnsupportedError(f"{op.describe()}: acme has no activation {op.attributes['activation']!r}")
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, op.value(0), op.value(1), even=True)
    kernel = acme_glu(lowering.isa, known_size(out.shape[-1], op))
    lowering.call(op, kernel, [*rows.views, "lo", "hi", *rows.spacing], rows.count)


def acme_glu(isa: Isa, width: int) -> Kernel:
    """gate * up, rows lo..hi."""

    def body(
        code: Code, out: Memory, gate: Memory, up: Memory, lo: Any, hi: Any, out_s: Any, gate_s: Any, up_s: Any
    ) -> None:
        with code.loop(hi - lo) as i:
            row = code.let(lo + i)

            def multiply(at: Any, lanes: int) -> None:
                product = gate.load(row * gate_s + at, lanes) * up.load(row * up_s + at, lanes)
                out.store(row * out_s + at, product, lanes)

            each_chunk(code, width, isa.lanes, multiply)

    pointers = "float *out, const float *gate, const float *up, int32_t lo, int32_t hi"
    return write_kernel(f"acme_glu_{width}", f"{pointers}, int32_t out_s, int32_t gate_s, int32_t up_s", body)


# --- what is wrong ---------------------------------------------------------------------------------------------------
NOT_CALLABLE = "lower_squash"


def lower_wrongly(lowering: Lowering, op: Op) -> None:
    """Raises what no lowering should."""
    raise KeyError("width")


def lower_nothing(lowering: Lowering, op: Op) -> None:
    """Forgets to say where the result lies."""


def lower_with_too_few_arguments(lowering: Lowering, op: Op) -> None:
    """Forgets the strides."""
    out = lowering.allocate(op.result)
    lowering.call(op, acme_glu(lowering.isa, 32), [out, lowering.rows(op.value(0)), "lo", "hi"], 1)


def _mixes(op: Op, name: str) -> bool:
    return name in dim_symbols(operand_type(op.operands[0]).shape[1])


def _same(op: Op) -> TensorType:
    return operand_type(op.operands[0])


SPECS = (
    OpSpec("squash", ("x", "scale?"), _same, _squash_reference, "max(x, 0)^2 + offset", {"offset": 0.0}),
    OpSpec("decayed_sum", ("x",), _sum_infer, _sum_reference, "y[i] = x[i] + decay y[i - 1]",
           {"decay": Required(float)}, mixes=_mixes, step=_sum_step),
    OpSpec("decayed_sum_step", ("x", "last"), lambda op: (_same(op), operand_type(op.operands[1])),
           _sum_step_reference, "decayed_sum from the last y on", {"decay": Required(float)}, mixes=_mixes),
    OpSpec("shift_tokens", ("x",), _same, _shift_reference, "the position before", mixes=_mixes, step=_shift_step),
)  # fmt: skip
LOWERINGS = {
    "tvm:squash": f"{__name__}:lower_squash",
    "tvm:decayed_sum_step": f"{__name__}:lower_sum_step",
}
