"""Every kind of kernel at odd sizes: ops for an OpModule, each with what its kernel promises."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from slmopt.ir import Value
from slmopt.ir.dims import symbol
from slmopt.ir.graph import Operand
from slmopt.ir.ops.language import activate
from slmopt.ir.types import QuantizedType, parse_element
from slmopt.ir.weights import QuantizedTensor
from tests.backends.op_module import WIDTH, OpModule

__all__ = ["add_attention", "odd_linears", "odd_ops"]

ELEMENTS = ("f32", "f16", "bf16", "q4g32", "q4g32a", "q4c", "q8g32", "q8c")
ROW_COUNTS = (1, 3, 15, 17, 20, 33, 36, 67, 131)  # below, at and above what blocks of 4, 8, 16 and 32 hold
COLUMN_COUNTS = (1, 3, 20, 31, 33, 36, 45, 52, WIDTH)
# (heads, heads of keys, their size, the size of values, options). An attention kernel takes a second to compile.
ATTENTION: tuple[tuple[int, int, int, int, dict[str, Any]], ...] = (
    (1, 1, 20, 20, {}), (6, 2, 11, 7, {"window": 5, "softcap": 3.0}),
)  # fmt: skip
MORE_ATTENTION: tuple[tuple[int, int, int, int, dict[str, Any]], ...] = (
    (3, 3, 20, 20, {"window": 5}), (4, 2, 1, 3, {"window": 1}), (5, 1, 11, 1, {"softcap": 3.0}), (3, 1, 5, 7, {}),
    (1, 1, 77, 33, {"window": 16}), (7, 1, 11, 36, {}),
)  # fmt: skip
LINEAR_ATTENTION = ((6, 2, 11, 7), (3, 1, 20, 1))
MORE_LINEAR_ATTENTION = ((1, 1, 1, 36), (5, 5, 9, 9), (7, 1, 11, 31))

SUM_ERROR = 3e-6  # of the sum of all |x w|: up to 77 products and sums, each rounded to 2^-24, and the interpreter's
NORM_ERROR = 2e-6  # of the largest number: a sum of squares, a root, two products
ACTIVATION_ERROR = 1e-6  # relative or absolute: `vector_math.activate`
CODE_ERROR = 0.5001 / 127  # of the largest in a group of 32: half a step of 8-bit codes
ROPE_ERROR = 2e-7  # of the two products that are added
ATTENTION_ERROR = {"f32": 2e-6, "f16": 3e-3}  # of the largest value: float32 sums, or values stored in 11 bits


def odd_ops(seed: int = 0, shapes: int = 1) -> OpModule:
    """All of them, their sizes drawn by `seed`: `shapes` of each type of linear, more of attention where not 1."""
    ops = OpModule(seed)
    _add_linears(ops, shapes)
    _add_rounding_linears(ops)
    _add_embeddings(ops)
    _add_rows(ops)
    _add_ropes(ops)
    _add_primitives(ops)
    add_attention(ops, more=shapes > 1)
    _add_linear_attention(ops, more=shapes > 1)
    ops.finish()
    return ops


def odd_linears(seed: int = 0, *, rounding: bool = False) -> OpModule:
    """Linears of every type, or those that round what they read: what a machine multiplies with its instructions."""
    ops = OpModule(seed)
    if rounding:
        _add_rounding_linears(ops)
    else:
        _add_linears(ops, 1)
    ops.finish()
    return ops


def _add_linears(ops: OpModule, shapes: int) -> None:
    """Every type of weights, whole and real, so many shapes of each, and each option of an epilogue somewhere."""
    for index, name in enumerate(ELEMENTS):
        element, quantized = parse_element(name), name.startswith("q")
        options = ("plain", "bias", "residual", "relu", "all")
        for option in (options[(index + 2 * shape) % 5] for shape in range(shapes)):
            rows, columns = (int(ops.random.choice(sizes)) for sizes in (ROW_COUNTS, COLUMN_COUNTS))
            rows = min(rows, WIDTH) if option in ("residual", "all") else rows
            x = ops.part(0, columns)
            x = ops.add("quantize_rows", [x]) if quantized else x
            for exact in (True, False):
                matrix = ops.matrix(element, rows, columns, exact=exact)
                weights = _sizes(matrix)
                bias = (ops.whole(99, rows) if exact else ops.numbers(rows)) if option in ("bias", "all") else None
                operands: list[Operand] = [x, ops.weight(matrix, element)]
                operands += [None if bias is None else ops.weight(bias)]
                operands += [ops.part(WIDTH - rows, rows)] if option in ("residual", "all") else []
                activation = "relu" if option in ("relu", "all") else None
                found = ops.add("linear", operands, activation=activation)
                ops.show(
                    f"linear {name} [{rows}, {columns}] {option}{' whole' * exact}", found, error=SUM_ERROR,
                    exact=exact, size=partial(_products, weights, bias),
                )  # fmt: skip


def _add_rounding_linears(ops: OpModule) -> None:
    """Linears that round what they read to bfloat16; all of them read x itself, whose rounding is no other's."""
    for name in ("bf16", "f16"):
        rows, columns = (int(ops.random.choice(sizes)) for sizes in (ROW_COUNTS, COLUMN_COUNTS))
        x = ops.part(0, columns)
        for exact in (True, False):
            matrix = ops.matrix(parse_element(name), rows, columns, exact=exact)
            found = ops.add("linear", [x, ops.weight(matrix, parse_element(name))], act="bf16")
            ops.show(
                f"linear {name} [{rows}, {columns}] rounding{' whole' * exact}", found, error=SUM_ERROR, exact=exact,
                size=partial(_products, _sizes(matrix), None),
            )  # fmt: skip


def _sizes(matrix: torch.Tensor | QuantizedTensor) -> torch.Tensor:
    """How large the numbers are whose sum a weight is: |scale * code| + |minimum|, which may cancel."""
    if not isinstance(matrix, QuantizedTensor):
        return matrix.abs()
    minimum = None if matrix.minimum is None else matrix.minimum.abs()
    return QuantizedTensor(matrix.type, matrix.codes, matrix.scales, minimum).dequantize().abs()


def _products(
    weights: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, expected: torch.Tensor
) -> torch.Tensor:
    """The sum of the sizes of all that is added; what is next to nothing may vanish."""
    sizes = x[:, : weights.shape[1]].abs() @ weights.T + expected.abs() + 1e-30
    return sizes if bias is None else sizes + bias.abs()


def _identity(ops: OpModule, x: Value) -> Value:
    """The numbers that 8-bit rows stand for: a product with the identity, which is exact."""
    width = x.shape[-1]
    assert isinstance(width, int)
    element = QuantizedType(8)
    codes, scales = torch.eye(width).to(torch.int8), torch.ones(width, 1, dtype=torch.float16)
    return ops.add("linear", [x, ops.weight(QuantizedTensor(element, codes, scales), element)])


def _add_embeddings(ops: OpModule) -> None:
    """Tables of fewer rows than there are ids, of every type: each number is the interpreter's."""
    for index, name in enumerate(ELEMENTS):
        rows, columns = (67, 131, 33)[index % 3], int(ops.random.choice(COLUMN_COUNTS))
        table = ops.matrix(parse_element(name), rows, columns, exact=False)
        few = ops.add("remainder", [ops.ids, ops.add("full", [], shape=(), value=rows, element="i64")])
        found = ops.add("embedding", [few, ops.weight(table, parse_element(name))])
        ops.show(f"embedding {name} [{rows}, {columns}]", found, error=0)


def _add_rows(ops: OpModule) -> None:
    """Quantization, norms and gated units, as float32 and as 8-bit rows."""
    for width in (31, WIDTH):  # the rest of 31 is 16, 8, 4, 2 and 1
        ops.show(f"quantize_rows {width}", _identity(ops, ops.add("quantize_rows", [ops.part(0, width)])), error=0)
    for width in (31, WIDTH):  # the rest of 31 is 16, 8, 4, 2 and 1
        weight = ops.numbers(width)
        operands: list[Operand] = [ops.part(0, width), ops.weight(weight)]
        _both(ops, f"rms_norm {width}", "rms_norm", operands, NORM_ERROR, eps=1e-5)
        shifted = [*operands, ops.weight(ops.numbers(width))]
        _both(ops, f"layer_norm {width}", "layer_norm", shifted, NORM_ERROR, size=partial(_spread, weight), eps=1e-5)
    width = 31
    for activation in (None, "silu", "gelu", "relu"):
        operands = [ops.part(0, width), ops.part(WIDTH - width, width)]
        exact = activation in (None, "relu")
        _both(ops, f"glu {activation} {width}", "glu", operands, ACTIVATION_ERROR, exact=exact,
              size=partial(_gated, activation, width), activation=activation)  # fmt: skip


def _both(
    ops: OpModule, label: str, name: str, operands: list[Operand], error: float, *, exact: bool = False,
    size: Any = None, **attributes: Any,
) -> None:  # fmt: skip
    """An op's float32 result, and its 8-bit rows against the float32 numbers they are rounded from."""
    sizes = {} if size is None else {"size": size}
    ops.show(label, ops.add(name, operands, **attributes), error=error, exact=exact, **sizes)
    rows = ops.add(name, operands, output="q8g32", **attributes)
    ops.show(f"{label} q8", _identity(ops, rows), error=1.0, size=partial(_step, error, size), against=label)
    if exact:
        ops.show(f"{label} q8 codes", _identity(ops, rows), error=1e30, exact=True)


def _step(error: float, size: Any, x: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Half a step of the codes of each group of 32, and the error before rounding."""
    groups = [expected[:, start : start + 32].abs() for start in range(0, expected.shape[1], 32)]
    largest = torch.cat([group.amax(-1, keepdim=True).expand_as(group) for group in groups], -1)
    before: torch.Tensor = largest if size is None else size(x, expected)
    return CODE_ERROR * largest + 2 * error * before


def _spread(weight: torch.Tensor, x: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The largest number, with what cancels where the mean is subtracted."""
    part = x[:, : len(weight)].double()
    factor = (part.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
    largest = part.abs().amax(-1, keepdim=True) * factor * weight.abs().max()
    return largest.float() + expected.abs().amax(-1, keepdim=True)


def _gated(activation: str | None, width: int, x: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    gate: torch.Tensor = activate(activation, x[:, :width])
    return (gate.abs() + 1) * x[:, WIDTH - width :].abs()


def _add_ropes(ops: OpModule) -> None:
    """One head and several, all of a head turned or a part of it, both styles; whole cosines give whole results."""
    for heads, size, rotary in ((1, 20, 20), (3, 20, 10), (1, 77, 66), (3, 6, 2), (7, 11, 4)):
        for style in ("half", "interleaved"):
            x = _heads(ops, ops.part(0, heads * size), heads, size)
            tables = [
                ops.add("reshape", [ops.part(start, rotary)], shape=(symbol("b"), 1, symbol("s"), rotary))
                for start in (WIDTH - rotary, 0)
            ]
            found = ops.add("rope", [x, *tables], style=style)
            ops.show(f"rope {style} {heads} x {size}, {rotary}", _rows(ops, found), error=ROPE_ERROR, exact=True,
                     size=lambda x, expected: 2 * x.abs().amax(-1, keepdim=True) ** 2)  # fmt: skip


def _heads(ops: OpModule, x: Value, heads: int, size: int) -> Value:
    """[b, s, heads * size] as [b, heads, s, size]."""
    split = ops.add("reshape", [x], shape=(symbol("b"), symbol("s"), heads, size))
    return ops.add("permute", [split], axes=(0, 2, 1, 3))


def _rows(ops: OpModule, x: Value) -> Value:
    """[b, heads, s, size] as [b, s, heads * size]."""
    _, heads, _, size = x.shape
    back = ops.add("permute", [x], axes=(0, 2, 1, 3))
    return ops.add("reshape", [back], shape=(symbol("b"), symbol("s"), heads * size))


def add_attention(ops: OpModule, cache: str = "f32", *, more: bool = False) -> None:
    """One head, and heads that share keys, of odd sizes, with and without a window and a soft cap."""
    x = ops.add("tanh", [ops.x])
    for heads, shared, size, value_size, options in ATTENTION + MORE_ATTENTION * more:
        parts = [
            _heads(ops, ops.add("slice", [x], axis=-1, start=start, stop=start + count * width), count, width)
            for start, count, width in (
                (0, heads, size), (WIDTH - shared * size, shared, size), (0, shared, value_size)
            )
        ]
        found = ops.add("attention", parts, scale=0.7, **options)
        ops.show(f"attention {heads}/{shared} x {size}, {value_size} {options}", _rows(ops, found),
                 error=ATTENTION_ERROR[cache], size=lambda x, expected: torch.ones(()))  # fmt: skip


def _add_linear_attention(ops: OpModule, *, more: bool = False) -> None:
    """Heads that share keys and a head of its own, of odd sizes."""
    x = ops.add("tanh", [ops.x])
    for heads, shared, size, width in LINEAR_ATTENTION + MORE_LINEAR_ATTENTION * more:
        parts = [
            _heads(ops, ops.add("slice", [x], axis=-1, start=start, stop=start + count * each), count, each)
            for start, count, each in ((0, heads, size), (WIDTH - shared * size, shared, size), (0, shared, width))
        ]
        found = ops.add("linear_attention", parts)
        ops.show(f"linear attention {heads}/{shared} x {size}, {width}", _rows(ops, found),
                 error=ATTENTION_ERROR["f32"], size=lambda x, expected: torch.ones(()))  # fmt: skip


def _add_primitives(ops: OpModule) -> None:
    """Elementwise ops and reductions over odd rows."""
    for width in (1, 33, WIDTH):
        a, b = ops.part(0, width), ops.part(WIDTH - width, width)
        for name in ("add", "sub", "mul", "maximum", "minimum"):
            ops.show(f"{name} {width}", ops.add(name, [a, b]), error=0)
        chosen = ops.add("where", [ops.add("lt", [a, b]), a, ops.add("neg", [b])])
        ops.show(f"where {width}", chosen, error=0)
        ops.show(f"amax {width}", ops.add("amax", [a], axis=-1, keep=True), error=0)
        ops.show(f"sum {width}", ops.add("sum", [a], axis=-1, keep=True), error=SUM_ERROR, exact=True,
                 size=lambda x, expected: x.abs().sum(-1, keepdim=True))  # fmt: skip
    for name in ("silu", "gelu", "tanh", "sigmoid", "relu"):
        ops.show(name, ops.add(name, [ops.x]), error=ACTIVATION_ERROR, size=lambda x, expected: expected.abs() + 1)
