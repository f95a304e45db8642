"""Kernels for ops without a hand-made one: an expression per element, elementwise producers computed in place.

    void k(T *out, const A *a, const B *b, ..., int32_t tokens, int32_t position, int32_t lo, int32_t hi)

computes rows lo..hi of the result. A row is the last axis of the result's storage order (token axis outermost); rows
count the other axes. Operands are read through strides that are part of the kernel, so any strided view will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.primitive_math import ELEMENTWISE
from slmopt.backends.tvm.views import token_axis
from slmopt.errors import UnsupportedError
from slmopt.ir.dims import Dim, SymbolicDim
from slmopt.ir.graph import Op, Value, Weight
from slmopt.ir.ops.shape import slice_bounds
from slmopt.ir.step import POSITION, TOKENS
from slmopt.ir.types import DType

__all__ = [
    "INJECTIVE",
    "REDUCTIONS",
    "Expression",
    "Leaf",
    "compute_element",
    "element_of",
    "element_place",
    "primitive_kernel",
    "row_axes",
    "stored_type",
]

INJECTIVE = frozenset(ELEMENTWISE) | {
    "constant", "full", "arange", "dimension", "reshape", "permute", "expand", "slice", "concat", "gather", "cast",
}  # fmt: skip
REDUCTIONS = frozenset({"sum", "amax", "cumsum", "matmul"})

_C_TYPE = {
    DType.f32: "float", DType.f16: "uint16_t", DType.i64: "int64_t", DType.i32: "int32_t", DType.i8: "int8_t",
    DType.u8: "uint8_t", DType.bool: "uint8_t",
}  # fmt: skip
_TVM_TYPE = {
    DType.f32: "float32", DType.f16: "float16", DType.i64: "int64", DType.i32: "int32", DType.i8: "int8",
    DType.u8: "uint8", DType.bool: "bool",
}  # fmt: skip


def stored_type(element: DType) -> str:
    """How TVM calls an element type in memory."""
    return "uint8" if element == DType.bool else _TVM_TYPE[element]


@dataclass(frozen=True)
class Leaf:
    """An operand in memory: strides in elements; `stored` is the element type in memory (ids are stored as i32)."""

    element: DType
    shape: tuple[Dim, ...]
    strides: tuple[int, ...]
    stored: DType


def row_axes(shape: Sequence[Dim]) -> tuple[list[int], int | None]:
    """(axes that count rows, outermost first; the axis of a row's elements) for a result of `shape`."""
    token = token_axis(shape)
    order = [axis for axis in range(len(shape)) if axis != token]
    if token is not None:
        order.insert(0, token)
    if not order or (len(order) == 1 and token is not None):
        return order, None
    return order[:-1], order[-1]


class Expression:
    """Builds the TIR expression of one element of a value. `buffers` has what each leaf is read from, by index."""

    def __init__(self, leaves: dict[Value | Weight, Leaf]) -> None:
        from tvm import tirx

        self.tir, self.leaves = tirx, leaves
        self.tokens, self.position = tirx.Var("tokens", "int32"), tirx.Var("position", "int32")
        self.buffers: dict[Value | Weight, Any] = {}
        self.reduced: dict[int, Any] = {}

    def size(self, dim: Dim) -> Any:
        """A dimension as an int32 expression."""
        if not isinstance(dim, SymbolicDim):
            return self.tir.const(dim, "int32")
        total: Any = self.tir.const(0, "int32")
        for monomial, coefficient in dim.terms:
            factor: Any = self.tir.const(coefficient, "int32")
            for name in monomial:
                if name != TOKENS:
                    raise UnsupportedError(f"a dimension {dim} depends on {name}, which a step does not know")
                factor = factor * self.tokens
            total = total + factor
        return total

    def load(self, key: Value | Weight, indices: Sequence[Any]) -> Any:
        """An element of a leaf."""
        leaf = self.leaves[key]
        place: Any = self.tir.const(0, "int32")
        for index, stride, dim in zip(indices, leaf.strides, leaf.shape, strict=True):
            if dim != 1 and stride:
                place = place + index * stride
        value = self.buffers[key][place]
        if leaf.element == DType.bool:
            return value != self.tir.const(0, "uint8")
        return value if leaf.stored == leaf.element else self.tir.Cast(_TVM_TYPE[leaf.element], value)

    def element(self, operand: Value | Weight, indices: Sequence[Any]) -> Any:
        """The element of any operand at `indices`."""
        if operand in self.leaves:
            return self.load(operand, indices)
        if isinstance(operand, Value) and operand.op is None and operand.name == POSITION:
            return self.tir.Cast("int64", self.position)
        op = operand.op if isinstance(operand, Value) else None
        if op is None:
            raise UnsupportedError(f"{operand!r} is neither in memory nor computed here")
        if op.name in ELEMENTWISE:
            shape = op.result.shape
            operands = [self.element(o, _broadcast(indices, shape, _shape(o))) for o in op.operands]  # type: ignore[arg-type]
            return ELEMENTWISE[op.name](self.tir, op, *operands)
        rule: Callable[[Op, Sequence[Any]], Any] = getattr(self, f"_{op.name}")
        return rule(op, indices)

    def _cast(self, op: Op, indices: Sequence[Any]) -> Any:
        return self.tir.Cast(_TVM_TYPE[element_of(op.result)], self.element(_source(op), indices))

    def _constant(self, op: Op, indices: Sequence[Any]) -> Any:
        return self.tir.const(op.attributes["value"], _TVM_TYPE[element_of(op.result)])

    _full = _constant

    def _arange(self, op: Op, indices: Sequence[Any]) -> Any:
        start = op.attributes["start"]
        counted = indices[0] + (self.size(start) if isinstance(start, int | SymbolicDim) else 0)
        return self.tir.Cast(_TVM_TYPE[element_of(op.result)], counted)

    def _dimension(self, op: Op, indices: Sequence[Any]) -> Any:
        return self.tir.Cast("int64", self.size(op.attributes["value"]))  # type: ignore[arg-type]

    def _permute(self, op: Op, indices: Sequence[Any]) -> Any:
        source = [None] * len(indices)
        for axis, index in zip(op.attributes["axes"], indices, strict=True):  # type: ignore[arg-type]
            source[axis] = index  # type: ignore[index]
        return self.element(_source(op), source)

    def _expand(self, op: Op, indices: Sequence[Any]) -> Any:
        return self.element(_source(op), _broadcast(indices, op.result.shape, _shape(_source(op))))

    def _slice(self, op: Op, indices: Sequence[Any]) -> Any:
        axis, start, _, step = slice_bounds(op)
        source = list(indices)
        source[axis] = source[axis] * step + self.size(start)
        return self.element(_source(op), source)

    def _reshape(self, op: Op, indices: Sequence[Any]) -> Any:
        flat: Any = self.tir.const(0, "int32")
        for index, dim in zip(indices, op.result.shape, strict=True):
            flat = flat * self.size(dim) + index
        source: list[Any] = []
        for dim in reversed(_shape(_source(op))):
            source.insert(0, self.tir.const(0, "int32") if dim == 1 else self.tir.floormod(flat, self.size(dim)))
            flat = flat if dim == 1 else self.tir.floordiv(flat, self.size(dim))
        return self.element(_source(op), source)

    def _concat(self, op: Op, indices: Sequence[Any]) -> Any:
        axis = int(op.attributes["axis"]) % len(indices)  # type: ignore[arg-type]
        parts: list[tuple[Any, Any]] = []
        start: Dim = 0
        for operand in op.operands:
            source = list(indices)
            source[axis] = indices[axis] - self.size(start)
            start = start + _shape(operand)[axis]
            parts.append((indices[axis] < self.size(start), self.element(operand, source)))  # type: ignore[arg-type]
        found = parts[-1][1]
        for inside, value in reversed(parts[:-1]):
            found = self.tir.if_then_else(inside, value, found)
        return found

    def _gather(self, op: Op, indices: Sequence[Any]) -> Any:
        table, index = op.operands
        axis, rank = int(op.attributes["axis"]) % len(_shape(table)), len(_shape(index))  # type: ignore[arg-type]
        picked = self.tir.Cast("int32", self.element(index, indices[axis : axis + rank]))  # type: ignore[arg-type]
        return self.element(table, [*indices[:axis], picked, *indices[axis + rank :]])  # type: ignore[arg-type]


def _source(op: Op) -> Value | Weight:
    """The first operand, computed by the graph or a weight."""
    operand = op.operands[0]
    if operand is None:
        raise UnsupportedError(f"{op.describe()}: operand 0 is absent")
    return operand


def _shape(operand: Any) -> tuple[Dim, ...]:
    shape: tuple[Dim, ...] = operand.type.shape
    return shape


def element_of(value: Value | Weight) -> DType:
    """The element type; UnsupportedError where kernels do not compute with it."""
    element = value.type.element
    if element not in _TVM_TYPE:
        raise UnsupportedError(f"{value!r}: no kernel for element type {element}")
    return element


def _broadcast(indices: Sequence[Any], shape: Sequence[Dim], own: Sequence[Dim]) -> list[Any]:
    """Indices into an operand of shape `own` that is broadcast to `shape`."""
    kept = indices[len(shape) - len(own) :]
    return [0 if size == 1 else index for index, size in zip(kept, own, strict=True)]


def _signature(value: Value | Weight, leaves: dict[Value | Weight, Leaf], seen: dict[Any, int]) -> str:
    """All that distinguishes the expression of `value`: ops, attributes, types, strides; leaves by number."""
    if value in leaves:
        number = seen.setdefault(value, len(seen))
        return f"{number}:{leaves[value]}"
    op = value.op if isinstance(value, Value) else None
    if op is None:
        return f"?{value!r}"
    parts = ",".join(_signature(o, leaves, seen) for o in op.operands)  # type: ignore[arg-type]
    return f"{op.name}{sorted(op.attributes.items(), key=str)}({parts}):{op.result.type}"


def _reduction(build: Expression, op: Op, accumulator: Any, indices: Sequence[Any]) -> Any:
    """Statements that leave the reduction of `op` at `indices` in accumulator[0]."""
    tir = build.tir
    k = tir.Var("k", "int32")
    if op.name == "matmul":
        left, right = op.operands
        batch = indices[:-2]
        shape = op.result.shape[:-2]
        a = build.element(left, [*_broadcast(batch, shape, _shape(left)[:-2]), indices[-2], k])  # type: ignore[arg-type]
        b = build.element(right, [*_broadcast(batch, shape, _shape(right)[:-2]), k, indices[-1]])  # type: ignore[arg-type]
        term, extent = a * b, build.size(_shape(left)[-1])
    else:
        source = _shape(_source(op))
        axis = int(op.attributes["axis"]) % len(source)  # type: ignore[arg-type]
        inner = list(indices)
        if op.name == "cumsum" or op.attributes.get("keep"):
            extent = indices[axis] + 1 if op.name == "cumsum" else build.size(source[axis])
            inner[axis] = k
        else:
            extent = build.size(source[axis])
            inner.insert(axis, k)
        term = build.element(_source(op), inner)
    element = _TVM_TYPE[element_of(op.result)]
    start = tir.const(0, element) if op.name != "amax" else tir.min_value(element)
    total = accumulator[0] + term if op.name != "amax" else tir.max(accumulator[0], term)
    loop = tir.For(k, 0, extent, tir.ForKind.SERIAL, tir.BufferStore(accumulator, total, [0]))
    return tir.SeqStmt([tir.BufferStore(accumulator, start, [0]), loop])


def primitive_kernel(
    op: Op, leaves: dict[Value | Weight, Leaf], out_strides: tuple[int, ...]
) -> tuple[Kernel, list[Value | Weight]]:
    """The kernel that computes `op` from `leaves`, and the leaves it reads, in the order of its pointers."""
    used: dict[Any, int] = {}
    operands = ",".join(_signature(o, leaves, used) for o in op.operands)  # type: ignore[arg-type]
    text = f"{op.name}{sorted(op.attributes.items(), key=str)}({operands}):{op.result.type}:{out_strides}"
    name = f"{op.name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    order: list[Value | Weight] = list(used)
    arguments = [f"const {_C_TYPE[leaves[key].stored]} *in{i}" for i, key in enumerate(order)]
    parameters = (f"{_C_TYPE[element_of(op.result)]} *out", *arguments,
                  "int32_t tokens", "int32_t position", "int32_t lo", "int32_t hi")  # fmt: skip
    return Kernel(name, parameters, lambda: _build(name, op, leaves, order, out_strides)), order


def _build(name: str, op: Op, leaves: dict[Value | Weight, Leaf], order: list[Value | Weight], strides: Any) -> Any:
    from tvm import ir, tirx

    build = Expression(leaves)

    def pointer(label: str, element: DType) -> tuple[Any, Any]:
        kind = stored_type(element)
        variable = tirx.Var(label, ir.PointerType(ir.PrimType(kind), "global"))
        return variable, tirx.decl_buffer((1 << 30,), kind, label, data=variable)

    out_pointer, out = pointer("out", element_of(op.result))
    pointers, declared = [out_pointer], [tirx.DeclBuffer(out, data=out_pointer)]
    for i, key in enumerate(order):
        variable, build.buffers[key] = pointer(f"in{i}", leaves[key].stored)
        pointers.append(variable)
        declared.append(tirx.DeclBuffer(build.buffers[key], data=variable))
    lo, hi = tirx.Var("lo", "int32"), tirx.Var("hi", "int32")
    row, column = tirx.Var("row", "int32"), tirx.Var("column", "int32")
    indices, place = element_place(build, op.result.shape, strides, row, column)
    body = compute_element(build, op, indices, lambda value: tirx.BufferStore(out, value, [place]))
    _, inner = row_axes(op.result.shape)
    if inner is not None:
        body = tirx.For(column, 0, build.size(op.result.shape[inner]), tirx.ForKind.SERIAL, body)
    loop = tirx.For(row, lo, hi - lo, tirx.ForKind.SERIAL, body)
    function = tirx.PrimFunc([*pointers, build.tokens, build.position, lo, hi], tirx.SeqStmt([*declared, loop]))
    return function.with_attr("global_symbol", name).with_attr("tirx.noalias", True)


def element_place(
    build: Expression, shape: Sequence[Dim], strides: Sequence[int], row: Any, column: Any
) -> tuple[list[Any], Any]:
    """The indices of the element of a result of `shape` at a row and column, and its place by the result's strides."""
    tir = build.tir
    axes, inner = row_axes(shape)
    indices: list[Any] = [tir.const(0, "int32")] * len(shape)
    rest: Any = row
    for axis in reversed(axes[1:]):
        indices[axis] = tir.floormod(rest, build.size(shape[axis])) if shape[axis] != 1 else tir.const(0, "int32")
        rest = tir.floordiv(rest, build.size(shape[axis])) if shape[axis] != 1 else rest
    if axes:
        indices[axes[0]] = rest
    if inner is not None:
        indices[inner] = column
    place: Any = tir.const(0, "int32")
    for index, stride in zip(indices, strides, strict=True):
        place = place + index * stride
    return indices, place


def compute_element(build: Expression, op: Op, indices: Sequence[Any], store: Callable[[Any], Any]) -> Any:
    """Statements that compute the element of the result of `op` at `indices` and `store` it."""
    tir, boolean = build.tir, element_of(op.result) == DType.bool
    if op.name not in REDUCTIONS:
        build.leaves = {key: leaf for key, leaf in build.leaves.items() if key is not op.result}
        value = build.element(op.result, indices)
        return store(tir.Cast("uint8", value) if boolean else value)
    accumulator = tir.decl_buffer((1,), _TVM_TYPE[element_of(op.result)], "accumulator", scope="local")
    steps = _reduction(build, op, accumulator, indices)
    return tir.SeqStmt([tir.AllocBuffer(accumulator), steps, store(accumulator[0])])
