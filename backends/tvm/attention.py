"""Attention of one query at a time over the caches (layouts: cache.py), online softmax over blocks of 16 keys.

    void k(float *out, const float *q, const T *keys, const T *values[, const float *slopes][, const float *sinks],
           int32_t tokens, int32_t position, int32_t lo, int32_t hi, int32_t out_s0, int32_t out_s1, int32_t q_s0,
           int32_t q_s1, int32_t capacity)

Work unit u = token * heads + head. The query at absolute position p = position + token sees keys max(0, p - window + 1)
.. p. Running maximum m, sum l and accumulator a over blocks (Milakov and Gimelshein 2018; Dao et al. 2022):

    m' = max(m, max s);  w = exp(s - m');  l = l exp(m - m') + sum w;  a = a exp(m - m') + w V;  out = a / l

Every block visited has a visible key, so m is finite. Keys past p in the last block are masked; the memory behind them
belongs to the cache and holds finite numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.tvm.cache import KEY_BLOCK
from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.row_output import chunks
from slmopt.backends.tvm.vector_math import add_all, broadcast, exp, max_all, multiply_add, tanh
from slmopt.ir.types import DType

__all__ = ["attention"]

_MASKED = -1e30
_TVM = {DType.f32: "float32", DType.f16: "float16"}
_NUMBERS = "tokens position lo hi out_s0 out_s1 q_s0 q_s1 capacity"


@dataclass(frozen=True)
class _Shape:
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    window: int | None
    softcap: float | None
    element: DType


def attention(
    isa: Isa, *, heads: int, kv_heads: int, head_dim: int, value_dim: int, scale: float, window: int | None = None,
    softcap: float | None = None, slopes: bool = False, sinks: bool = False, element: DType = DType.f32,
) -> Kernel:  # fmt: skip
    """The kernel for grouped-query attention over caches of f32 or f16; `softcap`: c tanh(s / c); `slopes`: ALiBi."""
    shape = _Shape(heads, kv_heads, head_dim, value_dim, scale, window, softcap, element)
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


def _build(name: str, isa: Isa, shape: _Shape, slopes: bool, sinks: bool) -> Any:
    from tvm import tirx

    code = Code(name)
    out, q = code.pointer("out", "float32"), code.pointer("q", "float32")
    keys, values = code.pointer("keys", _TVM[shape.element]), code.pointer("values", _TVM[shape.element])
    slope_table = code.pointer("slopes", "float32") if slopes else None
    sink_table = code.pointer("sinks", "float32") if sinks else None
    _, position, lo, hi, out_s0, out_s1, q_s0, q_s1, capacity = code.numbers(_NUMBERS)
    with code.loop(hi - lo) as i:
        unit = code.let(lo + i)
        token, head = code.let(tirx.floordiv(unit, shape.heads)), code.let(tirx.floormod(unit, shape.heads))
        here = code.let(position + token)
        group = tirx.Cast("int64", tirx.floordiv(head, shape.heads // shape.kv_heads))
        query = code.let(token * q_s0 + head * q_s1)
        base = group * tirx.Cast("int64", capacity)
        state = _State(code, isa, shape, sink_table, head)
        first = _first_block(code, here, shape.window)
        with code.loop(tirx.floordiv(here, KEY_BLOCK) + 1 - first) as j:
            block = code.let(first + j)
            scores = _scores(code, isa, shape, q, query, keys, base, block)
            slope = slope_table.load(head) if slope_table is not None else None
            scores = _adjust(code, isa, shape, scores, block, here, slope)
            start = code.let((base + tirx.Cast("int64", block) * KEY_BLOCK) * shape.value_dim)
            state.add(scores, values, start)
        state.store(out, code.let(token * out_s0 + head * out_s1))
    return code.finish()


def _first_block(code: Code, here: Any, window: int | None) -> Any:
    from tvm import tirx

    if window is None:
        return 0
    return code.let(tirx.floordiv(tirx.max(here - (window - 1), 0), KEY_BLOCK))


def _scores(
    code: Code, isa: Isa, shape: _Shape, q: Memory, query: Any, keys: Memory, base: Any, block: Any
) -> list[Register]:
    """q . k for the 16 keys of a block, as 16 / lanes vectors."""
    from tvm import tirx

    lanes = isa.lanes
    scores = [code.register(lanes, start=broadcast(0.0, lanes)) for _ in range(KEY_BLOCK // lanes)]
    start = code.let((base + tirx.Cast("int64", block) * KEY_BLOCK) * shape.head_dim)
    with code.loop(shape.head_dim) as j:
        value = code.let(broadcast(q.load(query + j), lanes))
        for part, register in enumerate(scores):
            key = _float(keys.load(start + tirx.Cast("int64", j) * KEY_BLOCK + part * lanes, lanes), lanes, shape.element)
            register.set(multiply_add(isa, lanes, value, key, register.value))
    return scores


def _adjust(
    code: Code, isa: Isa, shape: _Shape, scores: list[Register], block: Any, here: Any, slope: Any
) -> list[Any]:
    """Scale, soft cap, ALiBi and mask."""
    from tvm import tirx

    lanes, found = isa.lanes, []
    for part, register in enumerate(scores):
        value = register.value * broadcast(shape.scale, lanes)
        if shape.softcap is not None:
            value = tanh(isa, lanes, code.let(value * broadcast(1.0 / shape.softcap, lanes))) * broadcast(shape.softcap, lanes)
        key = block * KEY_BLOCK + part * lanes
        distance = code.let((tirx.Ramp(key, 1, lanes) if lanes > 1 else key) - broadcast(here, lanes, "int32"))  # key - query
        if slope is not None:
            value = value + broadcast(slope, lanes) * tirx.Cast(f"float32x{lanes}", distance)
        seen = distance <= broadcast(0, lanes, "int32")
        value = tirx.Select(seen, value, broadcast(_MASKED, lanes))
        if shape.window is not None:
            value = tirx.Select(distance > broadcast(-shape.window, lanes, "int32"), value, broadcast(_MASKED, lanes))
        found.append(code.let(value))
    return found


def _float(value: Any, lanes: int, element: DType) -> Any:
    from tvm import tirx

    return value if element == DType.f32 else tirx.Cast("float32" if lanes == 1 else f"float32x{lanes}", value)


class _State:
    """Running maximum, sum and accumulator of one query."""

    def __init__(self, code: Code, isa: Isa, shape: _Shape, sinks: Memory | None, head: Any) -> None:
        self.code, self.isa, self.shape = code, isa, shape
        # A sink is a key with this logit and no value.
        self.maximum = code.register(1, start=broadcast(_MASKED, 1) if sinks is None else sinks.load(head))
        self.total = code.register(1, start=broadcast(0.0 if sinks is None else 1.0, 1))
        whole = [(start, isa.lanes) for start in range(0, shape.value_dim - isa.lanes + 1, isa.lanes)]
        self.parts = whole + chunks(shape.value_dim, isa.lanes)
        self.sums = [code.register(lanes, start=broadcast(0.0, lanes)) for _, lanes in self.parts]

    def add(self, scores: list[Any], values: Memory, start: Any) -> None:
        """Take in 16 keys with their scores; their values begin at `start`."""
        from tvm import tirx

        code, isa, lanes = self.code, self.isa, self.isa.lanes
        top = scores[0]
        for value in scores[1:]:
            top = tirx.max(top, value)
        largest = code.let(tirx.max(self.maximum.value, max_all(lanes, code.let(top))))
        shrink = code.let(exp(isa, 1, self.maximum.value - largest))
        weights = code.local(KEY_BLOCK)
        total: Any = None
        for part, value in enumerate(scores):
            weight = code.let(exp(isa, lanes, value - broadcast(largest, lanes)))
            weights.store(part * lanes, weight, lanes)
            total = weight if total is None else total + weight
        self.total.set(self.total.value * shrink + add_all(lanes, code.let(total)))
        self.maximum.set(largest)
        for register, (_, width) in zip(self.sums, self.parts, strict=True):
            register.set(register.value * broadcast(shrink, width))
        with code.loop(KEY_BLOCK) as key:
            weight = code.let(weights.load(key))
            row = code.let(start + tirx.Cast("int64", key) * self.shape.value_dim)
            for register, (at, width) in zip(self.sums, self.parts, strict=True):
                value = _float(values.load(row + at, width), width, self.shape.element)
                register.set(multiply_add(isa, width, broadcast(weight, width), value, register.value))

    def store(self, out: Memory, place: Any) -> None:
        """out = accumulator / sum."""
        factor = self.code.let(broadcast(1.0, 1) / self.total.value)
        for register, (at, width) in zip(self.sums, self.parts, strict=True):
            out.store(place + at, register.value * broadcast(factor, width), width)
