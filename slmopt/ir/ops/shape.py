"""Ops that make tensors or move elements without computing on them."""

from __future__ import annotations

from typing import Any

from slmopt.errors import IRError, UnsupportedError
from slmopt.ir.dims import Dim, SymbolicDim, dim_symbols, product, symbol
from slmopt.ir.graph import Op, operand_type
from slmopt.ir.linking import FIXED, AxisLinker, couple_elementwise, couple_nothing
from slmopt.ir.ops.elementwise import broadcast_shapes
from slmopt.ir.ops.reshape_axes import couple_reshape
from slmopt.ir.spec import OpSpec, Required
from slmopt.ir.types import DType, TensorType, parse_element

__all__ = ["SPECS", "axis_of", "dims_of"]


def dims_of(op: Op, attribute: str) -> tuple[Dim, ...]:
    """An attribute that is a list of dimensions."""
    value = op.attributes[attribute]
    if not isinstance(value, tuple) or not all(isinstance(d, int | SymbolicDim) for d in value):
        raise IRError(f"{attribute} must be a list of dimensions, got {value!r}")
    return value  # type: ignore[return-value]


def axis_of(op: Op, rank: int, attribute: str = "axis") -> int:
    """An axis attribute, counted from the front."""
    axis = op.attributes[attribute]
    if not isinstance(axis, int) or isinstance(axis, bool) or not -rank <= axis < rank:
        raise IRError(f"{attribute} {axis!r} is out of range for {rank} axes")
    return axis % rank


def _element(op: Op) -> DType:
    element = parse_element(str(op.attributes["element"]))
    if not isinstance(element, DType):
        raise IRError(f"element must be plain, not {element}")
    return element


def _constant(op: Op) -> TensorType:
    if not isinstance(op.attributes["value"], int | float):
        raise IRError(f"value must be a number, got {op.attributes['value']!r}")
    return TensorType(_element(op), ())


def _full(op: Op) -> TensorType:
    return TensorType(_element(op), dims_of(op, "shape"))


def _arange(op: Op) -> TensorType:
    start, stop = op.attributes["start"], op.attributes["stop"]
    if not isinstance(start, int | SymbolicDim) or not isinstance(stop, int | SymbolicDim):
        raise IRError(f"start and stop must be dimensions, got {start!r} and {stop!r}")
    return TensorType(_element(op), (stop - start,))


def _dimension(op: Op) -> TensorType:
    if not isinstance(op.attributes["value"], int | SymbolicDim):
        raise IRError(f"value must be a dimension, got {op.attributes['value']!r}")
    return TensorType(DType.i64, ())


def _reshape(op: Op) -> TensorType:
    found, shape = operand_type(op.operands[0]), dims_of(op, "shape")
    if product(shape) != found.elements:
        raise IRError(f"{found} has {found.elements} elements, shape {list(shape)} has {product(shape)}")
    return found.with_shape(*shape)


def _permute(op: Op) -> TensorType:
    found, axes = operand_type(op.operands[0]), op.attributes["axes"]
    numbers = [axis for axis in axes if isinstance(axis, int)] if isinstance(axes, tuple) else []
    if not isinstance(axes, tuple) or len(numbers) != len(axes) or sorted(numbers) != list(range(found.rank)):
        raise IRError(f"axes {axes!r} is no permutation of the {found.rank} axes of {found}")
    return found.with_shape(*(found.shape[axis] for axis in numbers))


def _expand(op: Op) -> TensorType:
    found, shape = operand_type(op.operands[0]), dims_of(op, "shape")
    if broadcast_shapes(found.shape, shape) != shape:
        raise IRError(f"{found} does not broadcast to {list(shape)}")
    return found.with_shape(*shape)


def slice_bounds(op: Op) -> tuple[int, Dim, Dim, int]:
    """(axis, start, stop, step) of a slice, stop filled in."""
    found = operand_type(op.operands[0])
    axis = axis_of(op, found.rank)
    start, stop, step = (op.attributes[name] for name in ("start", "stop", "step"))
    stop = found.shape[axis] if stop is None else stop
    if not isinstance(start, int | SymbolicDim) or not isinstance(stop, int | SymbolicDim) or not isinstance(step, int):
        raise IRError(f"start, stop and step must be dimensions, got {start!r}, {stop!r}, {step!r}")
    return axis, start, stop, step


def _slice(op: Op) -> TensorType:
    found = operand_type(op.operands[0])
    axis, start, stop, step = slice_bounds(op)
    length, size = stop - start, found.shape[axis]
    if step < 1 or (step > 1 and not isinstance(length, int)):
        raise IRError(f"step must be at least 1, and 1 on a symbolic axis, got {step}")
    if isinstance(length, int) and (length < 0 or (isinstance(start, int) and start < 0)):
        raise IRError(f"slice {start}:{stop} is negative")
    if isinstance(size, int) and isinstance(stop, int) and stop > size:
        raise IRError(f"slice {start}:{stop} passes the end of axis {axis} of {found}")
    length = -(-length // step) if isinstance(length, int) else length
    return found.with_shape(*found.shape[:axis], length, *found.shape[axis + 1 :])


def _concat(op: Op) -> TensorType:
    types = [operand_type(o) for o in op.operands]
    if not types:
        raise IRError("concat needs at least one operand")
    axis, total = axis_of(op, types[0].rank), operand_type(op.operands[0]).shape[axis_of(op, types[0].rank)]
    for other in types[1:]:
        rest = [list(t.shape[:axis] + t.shape[axis + 1 :]) for t in (types[0], other)]
        if other.element != types[0].element or other.rank != types[0].rank or rest[0] != rest[1]:
            raise IRError(f"{types[0]} and {other} do not concatenate along axis {axis}")
        total = total + other.shape[axis]
    return types[0].with_shape(*types[0].shape[:axis], total, *types[0].shape[axis + 1 :])


def _gather(op: Op) -> TensorType:
    table, index = (operand_type(o) for o in op.operands)
    axis = axis_of(op, table.rank)
    if index.element not in (DType.i64, DType.i32):
        raise IRError(f"the index must be i64 or i32, got {index}")
    return table.with_shape(*table.shape[:axis], *index.shape, *table.shape[axis + 1 :])


# --- references --------------------------------------------------------------------------------------------------
def _numbers(op: Op, attribute: str) -> list[int]:
    return [int(dim) for dim in dims_of(op, attribute)]  # type: ignore[arg-type]


def _reference_full(op: Op) -> Any:
    import torch

    from slmopt.ir.torch_types import torch_dtype

    shape = _numbers(op, "shape") if "shape" in op.attributes else []
    value: Any = op.attributes["value"]
    return torch.full(shape, value, dtype=torch_dtype(_element(op)))


def _reference_arange(op: Op) -> Any:
    import torch

    from slmopt.ir.torch_types import torch_dtype

    start: Any = op.attributes["start"]
    stop: Any = op.attributes["stop"]
    return torch.arange(start, stop, dtype=torch_dtype(_element(op)))


def _reference_dimension(op: Op) -> Any:
    import torch

    return torch.tensor(op.attributes["value"], dtype=torch.int64)


def _reference_slice(op: Op, x: Any) -> Any:
    axis, start, stop, step = slice_bounds(op)
    index = [slice(None)] * x.dim()
    index[axis] = slice(start, stop if op.attributes["stop"] is not None else None, step)
    return x[tuple(index)]


def _reference_concat(op: Op, *parts: Any) -> Any:
    import torch

    return torch.cat(parts, axis_of(op, parts[0].dim()))


def _reference_gather(op: Op, table: Any, index: Any) -> Any:
    axis = axis_of(op, table.dim())
    picked = table.index_select(axis, index.reshape(-1))
    return picked.reshape(*table.shape[:axis], *index.shape, *table.shape[axis + 1 :])


def _mixes_axis(op: Op, symbol: str) -> bool:
    found = operand_type(op.operands[0])
    return symbol in dim_symbols(found.shape[axis_of(op, found.rank)])


def _strides(shape: tuple[Dim, ...], symbol_name: str) -> set[Dim] | None:
    """How far apart, in elements, neighbours along `symbol_name` may lie; None where the symbol is not on one axis."""
    axes = [axis for axis, dim in enumerate(shape) if symbol_name in dim_symbols(dim)]
    if len(axes) != 1:
        return None
    dim, inner = shape[axes[0]], product(shape[axes[0] + 1 :])
    rest = dim.divide(symbol(symbol_name)) if isinstance(dim, SymbolicDim) else None
    return {inner} if rest is None else {inner, inner * rest}  # an axis b*s holds s inside b, or b inside s


def _reshape_mixes(op: Op, symbol_name: str) -> bool:
    """[b, s, 64] -> [b, 64, s] hands elements from one position to another; [b, s, 8, 8] -> [b, s, 64] does not."""
    before = _strides(operand_type(op.operands[0]).shape, symbol_name)
    after = _strides(dims_of(op, "shape"), symbol_name)
    return before is not None and after is not None and not before & after


def _slice_mixes(op: Op, symbol: str) -> bool:
    axis, start, stop, step = slice_bounds(op)
    whole = start == 0 and stop == operand_type(op.operands[0]).shape[axis] and step == 1
    return not whole and (_mixes_axis(op, symbol) or symbol in dim_symbols(stop - start))


def _concat_mixes(op: Op, symbol: str) -> bool:
    axis = axis_of(op, operand_type(op.operands[0]).rank)
    return any(symbol in dim_symbols(operand_type(o).shape[axis]) for o in op.operands)


def _arange_step(builder: Any, op: Op, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Positions shift: arange(s) of the whole sequence is position + arange(t) of the step."""
    attributes = {**op.attributes, "stop": builder.renamed(op.attributes["stop"])}
    if op.results[0].shape != (symbol(builder.sequence),):
        raise UnsupportedError(f"{op.describe()} counts {op.results[0].shape[0]} numbers, not one for each position")
    counted = builder.add("arange", (), attributes)
    start = builder.position
    if counted.type.element != DType.i64:
        start = builder.add("cast", (start,), {"element": str(counted.type.element)})
    return (builder.add("add", (counted, start)),)


_ELEMENT = {"element": Required(str)}
def _couple_arange(axes: AxisLinker, op: Op) -> None:
    axes.block(axes.result, 0, "counts positions")


def _couple_permute(axes: AxisLinker, op: Op) -> None:
    order: Any = op.attributes["axes"]
    for index, source in enumerate(order):
        axes.link(axes.operand(0), source, axes.result, index)


def _couple_slice(axes: AxisLinker, op: Op) -> None:
    axis, start, stop, step = slice_bounds(op)
    x = axes.operand(0)
    axes.link_same(x, axes.result, but=(axis,))
    size = axes.shape(x)[axis]
    if not isinstance(size, int):
        return
    if not isinstance(start, int) or not isinstance(stop, int) or step != 1:
        axes.block(x, axis, "takes some of its positions, which are no range of known numbers")
        axes.block(axes.result, axis, "takes some of its positions, which are no range of known numbers")
        return
    channels = [position - start if start <= position < stop else FIXED for position in range(size)]
    axes.link(x, axis, axes.result, axis, (channels, range(stop - start)))


def _couple_concat(axes: AxisLinker, op: Op) -> None:
    axis: Any = op.attributes["axis"]
    axis %= len(axes.shape(axes.result))
    total, start = axes.shape(axes.result)[axis], 0
    for part in op.operands:
        axes.link_same(part, axes.result, but=(axis,))
        size = axes.shape(part)[axis]
        if isinstance(total, int) and isinstance(size, int):
            channels = [p - start if start <= p < start + size else FIXED for p in range(total)]
            axes.link(part, axis, axes.result, axis, (range(size), channels))
            start += size


def _couple_gather(axes: AxisLinker, op: Op) -> None:
    table, index = op.operands
    axis: Any = op.attributes["axis"]
    axis %= len(axes.shape(table))
    more = len(axes.shape(index)) - 1
    axes.block(table, axis, "picks positions of it by number")
    for own in range(len(axes.shape(table))):
        if own != axis:
            axes.link(table, own, axes.result, own if own < axis else own + more)
    for own in range(more + 1):
        axes.link(index, own, axes.result, axis + own)


SPECS: tuple[OpSpec, ...] = (
    OpSpec("constant", (), _constant, _reference_full, "one number", {"value": Required(float), **_ELEMENT},
           couple=couple_nothing,
           meaning="A tensor without axes that holds `value`, rounded to the plain element type `element`.",
           example='-> constant() {value = 1e-05, element = "f32"} : f32[]'),
    OpSpec("full", (), _full, _reference_full, "a tensor of one number",
           {"shape": Required(tuple), "value": Required(float), **_ELEMENT},
           couple=couple_nothing,
           meaning="Every element of `shape` is `value`, rounded to the plain element type `element`.",
           example='%x: f32[b, s] -> full() {shape = [b, s], value = 0.0, element = "f32"} : f32[b, s]'),
    OpSpec("arange", (), _arange, _reference_arange, "start, start + 1, ... below stop",
           {"start": 0, "stop": Required(int), **_ELEMENT},
           mixes=lambda op, symbol: symbol in dim_symbols(op.results[0].shape[0]), step=_arange_step,
           couple=_couple_arange,
           meaning="One axis of stop - start elements of the plain element type `element`: `start`, `start` + 1, ... "
                   "up "
                   "to `stop` - 1. In a step, position is added: arange(s) counts the positions of the tokens.",
           example='%ids: i64[b, s] -> arange() {start = 0, stop = s, element = "i64"} : i64[s]'),
    OpSpec("dimension", (), _dimension, _reference_dimension, "a symbolic size as a number",
           {"value": Required(int)}, mixes=lambda op, symbol: symbol in dim_symbols(op.attributes["value"]),  # type: ignore[arg-type]
           couple=couple_nothing, meaning="A tensor without axes that holds the size `value` when the graph runs.",
           example="%ids: i64[b, s] -> dimension() {value = s} : i64[]"),
    OpSpec("reshape", ("x",), _reshape, lambda op, x: x.reshape(_numbers(op, "shape")),
           "the same elements in row-major order under another shape", {"shape": Required(tuple)},
           mixes=_reshape_mixes,
           couple=couple_reshape,
           meaning="`shape` has as many elements as x: the sizes multiply to the same polynomial.",
           example="%x: f32[b, s, 64] -> reshape(%x) {shape = [b, s, 8, 8]} : f32[b, s, 8, 8]"),
    OpSpec("permute", ("x",), _permute, lambda op, x: x.permute(op.attributes["axes"]),
           "result axis i is operand axis axes[i]", {"axes": Required(tuple)},
           couple=_couple_permute,
           meaning="`axes` is a permutation of 0, 1, ...: result[i0, i1, ...] = x at the position whose coordinate "
                   "along "
                   "axis axes[k] is ik.",
           example="%x: f32[b, s, 8, 4] -> permute(%x) {axes = [0, 2, 1, 3]} : f32[b, 8, s, 4]"),
    OpSpec("expand", ("x",), _expand, lambda op, x: x.expand(_numbers(op, "shape")),
           "axes of size 1 repeated to `shape` (numpy broadcasting)", {"shape": Required(tuple)},
           couple=couple_elementwise,
           meaning="The shape of x, aligned at the last axis, has the sizes of `shape` or 1; axes may be added in "
                   "front.",
           example="%x: f32[b, 1, s, 8] -> expand(%x) {shape = [b, 4, s, 8]} : f32[b, 4, s, 8]"),
    OpSpec("slice", ("x",), _slice, _reference_slice, "x[start:stop:step] along an axis; stop none: to the end",
           {"axis": Required(int), "start": 0, "stop": None, "step": 1}, mixes=_slice_mixes,
           couple=_couple_slice,
           meaning="Along `axis` (negative: counted from the end) the elements `start`, `start` + `step`, ... before "
                   "`stop`; 0 <= start <= stop <= size. `stop` none is the size. `step` is at least 1, and 1 where the "
                   "number of elements is symbolic.",
           example="%x: f32[b, s, 96] -> slice(%x) {axis = 2, start = 32, stop = 64, step = 1} : f32[b, s, 32]"),
    OpSpec("concat", ("*parts",), _concat, _reference_concat, "the operands one after another along an axis",
           {"axis": Required(int)}, mixes=_concat_mixes,
           couple=_couple_concat,
           meaning="At least one operand; element types and all sizes but the one along `axis` (negative: counted from "
                   "the end) agree.",
           example="%a: f32[b, s, 4], %b: f32[b, s, 12] -> concat(%a, %b) {axis = 2} : f32[b, s, 16]"),
    OpSpec("gather", ("table", "index"), _gather, _reference_gather,
           "table rows picked by index along an axis: shape table[:axis] + index + table[axis+1:]", {"axis": 0},
           mixes=_mixes_axis,
           couple=_couple_gather,
           meaning="result[p..., i..., q...] = table[p..., index[i...], q...], the axis between p and q being `axis` "
                   "(negative: counted from the end). The index is i64 or i32, from 0 to the size of that axis - 1.",
           example="%ids: i64[b, s], %t: f32[16, 8] -> gather(%t, %ids) {axis = 0} : f32[b, s, 8]"),
)  # fmt: skip
