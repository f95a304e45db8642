"""Lowers an op that works on each element alone, from one expression: rows of vectors, operands broadcast.

    void k(float *out, const float *a, const float *b, ..., int32_t lo, int32_t hi, int32_t inner,
           int32_t out_s0, int32_t out_s1, int32_t a_s0, int32_t a_s1, ...)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slmopt.backends.tvm import vector_math
from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel, write_kernel
from slmopt.backends.tvm.lowerings import Rule
from slmopt.backends.tvm.row_output import each_chunk
from slmopt.backends.tvm.rows import Rows, joint_rows
from slmopt.backends.tvm.views import Buffer, View, dense_view
from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Op, Value, Weight
from slmopt.ir.types import DType

if TYPE_CHECKING:
    from slmopt.backends.tvm.lower import Argument, Lowering

__all__ = ["Vectors", "elementwise"]


@dataclass(frozen=True)
class Vectors:
    """Arithmetic on vectors of `lanes` float32 numbers. `+ - * /` and comparisons work on them as they are.

    `let` names an intermediate value that is used more than once.
    """

    isa: Isa
    lanes: int
    let: Callable[[Any], Any]

    def number(self, value: float) -> Any:
        """A number in all lanes."""
        return vector_math.broadcast(float(value), self.lanes)

    def select(self, condition: Any, yes: Any, no: Any) -> Any:
        """`yes` in the lanes where the condition holds, else `no`; both are vectors or numbers."""
        from tvm import tirx

        return tirx.Select(condition, *(self.number(x) if isinstance(x, int | float) else x for x in (yes, no)))

    def maximum(self, x: Any, y: Any) -> Any:
        """The larger of two; NaN in `x` stays."""
        return self.select(x < y, y, x)

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller of two; NaN in `x` stays."""
        return self.select(x > y, y, x)

    def sqrt(self, x: Any) -> Any:
        """The square root, rounded correctly."""
        from tvm import tirx

        kind = "float32" if self.lanes == 1 else f"float32x{self.lanes}"
        return tirx.call_llvm_pure_intrin(kind, "llvm.sqrt", x)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once where the instruction set can."""
        return vector_math.multiply_add(self.isa, self.lanes, a, b, c)

    def exp(self, x: Any) -> Any:
        """e^x, relative error below 2e-7."""
        return vector_math.exp(self.isa, self.lanes, x, self.let)

    def tanh(self, x: Any) -> Any:
        """Hyperbolic tangent, relative error below 4e-7."""
        return vector_math.tanh(self.isa, self.lanes, x, self.let)

    def erf(self, x: Any) -> Any:
        """Error function, absolute error below 4e-7."""
        return vector_math.erf(self.isa, self.lanes, x, self.let)

    def activate(self, name: str | None, x: Any) -> Any:
        """An activation function by its name in the IR: silu, gelu, gelu_tanh, relu, sigmoid, tanh; None: x itself."""
        return vector_math.activate(self.isa, self.lanes, name, x, self.let)


Expression = Callable[..., Any]  # (Vectors, op, a vector or None for each operand) -> a vector


def elementwise(expression: Expression) -> Rule:
    """The lowering of an elementwise op on float32: `expression(vectors, op, *operands)` gives a vector of its result.

    Operands broadcast as in numpy, and may be weights; an absent one is None. To be used as a decorator.
    """

    def lower(lowering: Lowering, op: Op) -> None:
        out = lowering.allocate(op.result)
        sources = [None if operand is None else _source(lowering, op, operand) for operand in op.operands]
        rows = _find_rows(op, out, sources)
        if rows is None:
            sources = [_copied(lowering, op, source) for source in sources]
            rows = _find_rows(op, out, sources)
        if rows is None:
            raise UnsupportedError(f"{op.describe()}: {out.type} has too many leading axes for a kernel of rows")
        steps = [view.strides[-1] for view in rows.views[1:]]
        kernel = _kernel(lowering.isa, op, rows.views[0].shape[-1], steps, expression)  # type: ignore[arg-type]
        pointers = [source.argument for source in sources if source is not None]
        lowering.call(op, kernel, [out, *pointers, "lo", "hi", *rows.layout], rows.count)

    return lower


@dataclass(frozen=True)
class _Source:
    """An operand: what it is in the graph, how a call names it, and how it lies."""

    operand: Value | Weight
    argument: Argument
    view: View


def _source(lowering: Lowering, op: Op, operand: Value | Weight) -> _Source:
    if isinstance(operand, Weight):
        slot = lowering.weights.raw(operand)
        view = dense_view(Buffer(operand.key, "weights", 0), operand.type.with_element(slot.element))
        source = _Source(operand, slot, view)
    else:
        view = lowering.place(operand)
        source = _Source(operand, view, view)
    if view.element != DType.f32 or op.result.type.element != DType.f32:
        raise UnsupportedError(f"{op.describe()}: an elementwise kernel is of f32, got {operand!r} -> {op.result!r}")
    return source


def _copied(lowering: Lowering, op: Op, source: _Source | None) -> _Source | None:
    if source is None or isinstance(source.operand, Weight):
        return source
    return _source(lowering, op, lowering.copy(source.operand))


def _find_rows(op: Op, out: View, sources: Sequence[_Source | None]) -> Rows | None:
    """Rows of the result and of its operands, each broadcast to the result's shape."""
    views = [out, *(source.view.expand(out.shape) for source in sources if source is not None)]
    if not out.shape or not isinstance(out.shape[-1], int):  # no last axis of a known size: rows of one number
        views = [replace(view, shape=(*view.shape, 1), strides=(*view.strides, 1)) for view in views]
    if any(view.strides[-1] not in (0, 1) for view in views):
        return None
    return joint_rows(views[0].shape[:-1], views)


def _kernel(isa: Isa, op: Op, width: int, steps: Sequence[int], expression: Expression) -> Kernel:
    """Rows of `width`; an operand moves on by `steps` numbers for each column (0: it is one number a row)."""
    options = f"{sorted(op.attributes.items(), key=str)}{steps}{[operand is None for operand in op.operands]}"
    name = f"{op.name}_each_{width}_{hashlib.sha256(options.encode()).hexdigest()[:8]}"
    labels = ["out", *(f"in{index}" for index in range(len(steps)))]
    pointers = ", ".join(f"const float *{label}" for label in labels[1:])
    strides = ", ".join(f"int32_t {label}_s0, int32_t {label}_s1" for label in labels)
    parameters = ", ".join(filter(None, ("float *out", pointers, "int32_t lo, int32_t hi, int32_t inner", strides)))

    def body(code: Code, *declared: Any) -> None:
        from tvm import tirx

        memories, (lo, hi, inner, *places) = declared[: len(labels)], declared[len(labels) :]
        with code.loop(hi - lo) as i:
            row = code.let(lo + i)
            first, second = code.let(tirx.floordiv(row, inner)), code.let(tirx.floormod(row, inner))
            starts = [code.let(first * s0 + second * s1) for s0, s1 in zip(places[::2], places[1::2], strict=True)]

            def compute(at: Any, lanes: int) -> None:
                vectors = Vectors(isa, lanes, code.let)
                loads = iter(zip(memories[1:], starts[1:], steps, strict=True))
                given = [None if operand is None else _load(code, *next(loads), at, lanes) for operand in op.operands]
                memories[0].store(starts[0] + at, expression(vectors, op, *given), lanes)

            each_chunk(code, width, isa.lanes, compute)

    return write_kernel(name, parameters, body)


def _load(code: Code, memory: Memory, start: Any, step: int, at: Any, lanes: int) -> Any:
    return code.let(memory.load(start + at, lanes) if step else vector_math.broadcast(memory.load(start), lanes))
