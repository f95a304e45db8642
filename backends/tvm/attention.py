"""Attention over the caches (layouts: cache.py), online softmax over steps of 64 keys, heads that share keys together.

    void k(float *out, const float *q, const T *keys, const T *values[, const float *slopes][, const float *sinks],
           int32_t tokens, int32_t position, int32_t lo, int32_t hi, int32_t out_s0, int32_t out_s1, int32_t q_s0,
           int32_t q_s1, int32_t capacity)

Work unit u = token * heads + head. The query at absolute position p = position + token sees keys max(0, p - window + 1)
.. p. Units that read the same keys lie side by side: they go in tiles (attention_tile.py), so that keys and values are
loaded once for a tile. A tile that lo or hi cuts is done unit by unit, with the same arithmetic.
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.attention_tile import AttentionShape, Operands, attend
from slmopt.backends.tvm.cache import STORED
from slmopt.backends.tvm.code import Code
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.ir.types import DType

__all__ = ["attention"]

_NUMBERS = "tokens position lo hi out_s0 out_s1 q_s0 q_s1 capacity"


def attention(
    isa: Isa, *, heads: int, kv_heads: int, head_dim: int, value_dim: int, scale: float, window: int | None = None,
    softcap: float | None = None, slopes: bool = False, sinks: bool = False, element: DType = DType.f32,
) -> Kernel:  # fmt: skip
    """The kernel for grouped-query attention over caches of f32 or f16; `softcap`: c tanh(s / c); `slopes`: ALiBi."""
    shape = AttentionShape(heads, kv_heads, head_dim, value_dim, scale, window, softcap, element)
    numbers = [f"{label}{_plain(value)}" for label, value in
               (("s", scale), ("w", window), ("c", softcap)) if value is not None]  # fmt: skip
    options = [label for label, on in (("slopes", slopes), ("sinks", sinks)) if on]
    name = "_".join(["attention", str(element), f"{heads}x{kv_heads}x{head_dim}x{value_dim}", *numbers, *options])
    c_type = "float" if element == DType.f32 else "uint16_t"
    parameters = ["float *out", "const float *q", f"const {c_type} *keys", f"const {c_type} *values"]
    parameters += [f"const float *{label}" for label in options] + [f"int32_t {number}" for number in _NUMBERS.split()]
    return Kernel(name, tuple(parameters), lambda: _build(name, isa, shape, slopes, sinks))


def _plain(value: float) -> str:
    text = float(value).hex() if isinstance(value, float) else str(value)
    return text.replace(".", "_").replace("-", "m").replace("+", "p")


def _build(name: str, isa: Isa, shape: AttentionShape, slopes: bool, sinks: bool) -> Any:
    code = Code(name)
    out, q = code.pointer("out", "float32"), code.pointer("q", "float32")
    keys, values = code.pointer("keys", STORED[shape.element]), code.pointer("values", STORED[shape.element])
    slope_table = code.pointer("slopes", "float32") if slopes else None
    sink_table = code.pointer("sinks", "float32") if sinks else None
    _, position, lo, hi, out_s0, out_s1, q_s0, q_s1, capacity = code.numbers(_NUMBERS)
    operands = Operands(
        out, q, keys, values, slope_table, sink_table, position, (out_s0, out_s1), (q_s0, q_s1), capacity
    )
    _walk(code, isa, shape, operands, lo, hi)
    return code.finish()


def _walk(code: Code, isa: Isa, shape: AttentionShape, operands: Operands, lo: Any, hi: Any) -> None:
    """Units lo..hi: whole tiles together, the others one by one."""
    from tvm import tirx

    together, size = shape.heads // shape.kv_heads, shape.tile(isa)
    tiles = -(-together // size)  # tiles of the heads that share keys; the last may be short
    first = code.let(tirx.floordiv(lo, together))
    groups = code.let(tirx.floordiv(hi - 1, together) + 1 - first)
    with code.loop(groups) as i, code.loop(tiles) as j:
        group = code.let((first + i) * together)
        start = code.let(group + j * size)
        end = code.let(tirx.min(start + size, group + together))
        whole: Any = tirx.And(lo <= start, end <= hi)
        if size > 1:
            whole = code.let(tirx.And(whole, (end - start).equal(size)))
        with code.when(whole):
            attend(code, isa, shape, operands, start, size)
        if size > 1:
            with code.when(tirx.Not(whole)):
                from_unit, to_unit = code.let(tirx.max(start, lo)), code.let(tirx.min(end, hi))
                with code.loop(to_unit - from_unit) as k:
                    attend(code, isa, shape, operands, code.let(from_unit + k), 1)
