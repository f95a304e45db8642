"""What the kernels of an op take on every machine: operands placed in memory, and why there is no kernel for some."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

from slmopt.backends.tvm.lower import Argument, Cache, Lowering
from slmopt.backends.tvm.operands import is_quantized, known_size, optional_weight, required_weight
from slmopt.backends.tvm.rows import Rows, joint_rows
from slmopt.backends.tvm.views import View
from slmopt.errors import UnsupportedError
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, Value, Weight
from slmopt.ir.types import QuantizedType

__all__ = [
    "LinearOperands",
    "cache_role",
    "check_linear",
    "head_strides",
    "place_embedding",
    "place_linear",
    "place_rope",
    "read_caches",
]

AnyCache = TypeVar("AnyCache", bound=Cache)


def place_embedding(lowering: Lowering, op: Op) -> tuple[Weight, list[Argument], Dim]:
    """The table of an embedding, the arguments of its kernel and how many rows it writes."""
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
    return table, [out, slot, source, "lo", "hi", str(found.strides[0][0])], found.outer


@dataclass(frozen=True)
class LinearOperands:
    """A linear's weight [outputs, columns], whether it adds a bias and a residual, its rows: of the result, the input
    and the residual. `arguments`: result, input, weight, then bias and residual where there are any."""

    weight: Weight
    outputs: int
    columns: int
    bias: bool
    residual: bool
    rows: Rows
    arguments: list[Argument]


def check_linear(op: Op) -> None:
    """UnsupportedError where a linear's input and weight are not of one kind."""
    if op.attributes["act"] == "q8" and not is_quantized(op.value(0)):
        raise UnsupportedError(f"{op.describe()} quantizes its own input; the pass `fuse` makes that an op of its own")
    x, weight = op.value(0), required_weight(op, 1)
    if is_quantized(x) != isinstance(weight.type.element, QuantizedType):
        raise UnsupportedError(f"{op.describe()}: no kernel multiplies {x.type} by {weight.type}; expected both "
                               'quantized (act = "q8", which `fuse` makes an op of its own) or neither')  # fmt: skip


def place_linear(lowering: Lowering, op: Op, x: Value) -> LinearOperands:
    """The operands of a linear that reads `x`."""
    weight, bias = required_weight(op, 1), optional_weight(op, 2)
    residual = op.value(3) if len(op.operands) > 3 and op.operands[3] is not None else None
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, *([x] if residual is None else [x, residual]), even=True)
    outputs, columns = (known_size(d, op) for d in weight.type.shape)
    arguments: list[Argument] = [out, rows.views[1], lowering.weights.linear(weight)]
    arguments += [lowering.weights.raw(bias)] if bias is not None else []
    arguments += [rows.views[2]] if residual is not None else []
    return LinearOperands(weight, outputs, columns, bias is not None, residual is not None, rows, arguments)


def place_rope(lowering: Lowering, op: Op) -> Rows:
    """Rows (token, head) of a rotation: of the result, the input, cos and sin. These two are the same for all heads."""
    x, cos, sin = (op.value(i) for i in range(3))
    out = lowering.allocate(op.result)
    rows = lowering.joint_rows(op, out, x, cos, sin)
    angles = rows.strides[2]
    if angles != rows.strides[3] or angles[1] != 0:
        raise UnsupportedError(f"{op.describe()}: cos and sin must be shared by all heads of a token")
    return rows


def cache_role(lowering: Lowering, state: Value, op: Op, stored: Collection[str]) -> str:
    """What a cache_update's state holds: "keys" or "values". UnsupportedError where no kernel can read it so.

    `stored`: the elements of which caches can be.
    """
    if state.op is not None or state in lowering.views:
        raise UnsupportedError(f"{op.describe()}: %{state.name} is no state of the step")
    roles = {use.index for use in op.result.uses if use.op.name == "attention"}
    others = [user for user in op.result.users if user.name != "attention"]
    if others or roles not in ({1}, {2}):
        raise UnsupportedError(f"{op.describe()}: a cache is read by attention alone, as keys or as values")
    if str(state.type.element) not in stored:
        expected = ", ".join(stored)
        raise UnsupportedError(f"{op.describe()}: no kernel for a cache of {state.type.element}; expected {expected}")
    return "keys" if roles == {1} else "values"


def read_caches(lowering: Lowering, op: Op, kind: type[AnyCache]) -> tuple[AnyCache, AnyCache]:
    """The caches of keys and of values that an attention reads."""
    keys, values = (lowering.caches.get(op.value(index)) for index in (1, 2))
    if not isinstance(keys, kind) or not isinstance(values, kind):
        raise UnsupportedError(f"{op.describe()}: keys and values must come from caches; run `incrementalize` first")
    return keys, values


def head_strides(*views: View) -> list[str]:
    """The strides of tokens and heads of each view [b, heads, tokens, size], as arguments."""
    return [str(view.strides[axis]) for view in views for axis in (2, 1)]
