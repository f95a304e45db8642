"""ATen ops that combine elements: reductions and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slmopt.frontends.aten.builder import Argument, Builder
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Value, Weight

__all__ = ["RULES"]

Tensor = Value | Weight


def _axes(x: Tensor, dims: Argument) -> list[int]:
    rank = x.type.rank
    if dims is None or dims == []:
        return list(range(rank))
    return [axis % rank for axis in (dims if isinstance(dims, Sequence) else [dims])]


def _reduced(build: Builder, name: str, x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Reduce one axis after another, from the last, so that axes keep their place."""
    for axis in sorted(axes, reverse=True):
        x = build.add(name, (x,), {"axis": axis, "keep": keep})
    return x


def _reduction(name: str) -> Callable[..., Tensor]:
    def rule(build: Builder, x: Argument, dim: Argument = None, keepdim: bool = False, **_: Argument) -> Tensor:
        value = build.operand(x, build.element)
        return _reduced(build, name, value, _axes(value, dim), keepdim)

    return rule


def _amin(build: Builder, x: Argument, dim: Argument = None, keepdim: bool = False) -> Tensor:
    value = build.add("neg", (build.operand(x, build.element),))
    return build.add("neg", (_reduced(build, "amax", value, _axes(value, dim), keepdim),))


def _max_along(build: Builder, x: Argument, dim: int, keepdim: bool = False) -> list[Argument]:
    """Values alone: the indices of torch's pair have no form here, and using them is an error."""
    value = build.operand(x)
    return [_reduced(build, "amax", value, _axes(value, dim), keepdim), None]


def _softmax(build: Builder, x: Argument, dim: int, *_: Argument, **__: Argument) -> Tensor:
    value = build.operand(x, build.element)
    return build.add("softmax", (value,), {"axis": dim % value.type.rank})


def _logsumexp_kept(build: Builder, value: Tensor, axes: Sequence[int]) -> Tensor:
    peak = _reduced(build, "amax", value, axes, True)
    total = _reduced(build, "sum", build.add("exp", (build.add("sub", (value, peak)),)), axes, True)
    return build.add("add", (build.add("log", (total,)), peak))


def _log_softmax(build: Builder, x: Argument, dim: int, *_: Argument, **__: Argument) -> Tensor:
    value = build.operand(x, build.element)
    return build.add("sub", (value, _logsumexp_kept(build, value, _axes(value, dim))))


def _logsumexp(build: Builder, x: Argument, dim: Argument, keepdim: bool = False) -> Tensor:
    value = build.operand(x, build.element)
    return build.reshape(_logsumexp_kept(build, value, _axes(value, dim)), build.shape)


def _variance(build: Builder, x: Argument, dim: Argument, correction: float, keep: bool) -> Tensor:
    value = build.operand(x, build.element)
    axes = _axes(value, dim)
    count = 1
    for axis in axes:
        size = value.type.shape[axis]
        if not isinstance(size, int):
            raise build.unsupported("the variance along an axis of symbolic size")
        count *= size
    centred = build.add("sub", (value, _reduced(build, "mean", value, axes, True)))
    squares = _reduced(build, "sum", build.add("mul", (centred, centred)), axes, keep)
    return build.add("div", (squares, build.constant(count - correction, build.element)))


def _var(build: Builder, x: Argument, dim: Argument = None, unbiased: bool = True, keepdim: bool = False,
         correction: float | None = None) -> Tensor:  # fmt: skip
    return _variance(build, x, dim, float(unbiased) if correction is None else correction, keepdim)


def _std(build: Builder, *arguments: Argument, **options: Argument) -> Tensor:
    return build.add("sqrt", (_var(build, *arguments, **options),))


def _norm(
    build: Builder, x: Argument, order: float = 2, dim: Argument = None, keepdim: bool = False, **_: Argument
) -> Tensor:
    if order != 2:
        raise build.unsupported(f"a vector norm of order {order}")
    value = build.operand(x, build.element)
    return build.add("sqrt", (_reduced(build, "sum", build.add("mul", (value, value)), _axes(value, dim), keepdim),))


# --- matrix products ---------------------------------------------------------------------------------------------
def _product(build: Builder, a: Tensor, b: Tensor) -> Tensor:
    """torch's matmul: vectors become matrices of one row or column."""
    left = build.reshape(a, (1, *a.type.shape)) if a.type.rank == 1 else a
    right = build.reshape(b, (*b.type.shape, 1)) if b.type.rank == 1 else b
    return build.add("matmul", (left, right))


def _matmul(build: Builder, a: Argument, b: Argument) -> Tensor:
    left, right = build.operand(a, build.element), build.operand(b, build.element)
    return build.reshape(_product(build, left, right), build.shape)


def _added_product(build: Builder, x: Argument, a: Argument, b: Argument, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta x + alpha (a b): addmm, addbmm and baddbmm."""
    element = build.element
    found = _product(build, build.operand(a, element), build.operand(b, element))
    if alpha != 1:
        found = build.add("mul", (found, build.constant(alpha, element)))
    if beta == 0:
        return found
    term = build.operand(x, element)
    if beta != 1:
        term = build.add("mul", (term, build.constant(beta, element)))
    return build.add("add", (found, term))


def _outer(build: Builder, a: Argument, b: Argument) -> Tensor:
    left, right = build.operand(a, build.element), build.operand(b, build.element)
    columns: Dim = right.type.shape[0]
    return build.add("mul", (build.reshape(left, (left.type.shape[0], 1)), build.reshape(right, (1, columns))))


def _einsum(build: Builder, equation: str, operands: Sequence[Argument], **_: Argument) -> Tensor:
    """Two operands: axes are ordered batch, own, shared, and multiplied as one batch of matrices."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or not arrow or any(len(set(term)) != len(term) or not term.isalpha() for term in terms):
        raise build.unsupported(f"einsum {equation!r}")
    a, b = (build.operand(operand, build.element) for operand in operands)
    sizes = dict(zip(terms[0] + terms[1], (*a.type.shape, *b.type.shape), strict=True))
    batch = [i for i in terms[0] if i in terms[1] and i in result]
    shared = [i for i in terms[0] if i in terms[1] and i not in result]
    rows, columns = ([i for i in terms[n] if i not in terms[1 - n]] for n in (0, 1))
    if not set(rows + columns) <= set(result):
        raise build.unsupported(f"einsum {equation!r} (it sums an axis of one operand alone)")

    def grouped(value: Tensor, term: str, groups: list[list[str]]) -> Tensor:
        ordered = build.permute(value, [term.index(i) for group in groups for i in group])
        return build.reshape(ordered, [_size(sizes, group) for group in groups])

    found = build.add(
        "matmul", (grouped(a, terms[0], [batch, rows, shared]), grouped(b, terms[1], [batch, shared, columns]))
    )
    order = batch + rows + columns
    return build.permute(build.reshape(found, [sizes[i] for i in order]), [order.index(i) for i in result])


def _size(sizes: dict[str, Dim], names: Sequence[str]) -> Dim:
    total: Dim = 1
    for name in names:
        total = total * sizes[name]
    return total


RULES: dict[str, Callable[..., Any]] = {
    "sum": _reduction("sum"), "mean": _reduction("mean"), "amax": _reduction("amax"), "amin": _amin,
    "max": _reduction("amax"), "max.dim": _max_along,
    "softmax": _softmax, "_softmax": _softmax, "log_softmax": _log_softmax, "_log_softmax": _log_softmax,
    "logsumexp": _logsumexp, "var": _var, "std": _std, "linalg_vector_norm": _norm,
    "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "mv": _matmul, "dot": _matmul,
    "addmm": _added_product, "baddbmm": _added_product, "outer": _outer, "einsum": _einsum,
}  # fmt: skip
