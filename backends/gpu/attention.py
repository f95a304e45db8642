"""Attention over caches (cache.py): a group of threads for each token and query head.

    void k(float *out, const float *query, const K *keys[, const float *key_scales], const V *values[, const float
           *value_scales][, const float *slopes][, const float *sinks], int32_t tokens, int32_t position, int32_t lo,
           int32_t hi, int32_t out_s0, int32_t out_s1, int32_t q_s0, int32_t q_s1, int32_t slots)

Row r is head r % heads of token r / heads. Keys are taken in tiles, one for each thread, with the largest score and the
sum of the weights kept so far ("online softmax", Milakov and Gimelshein 2018): memory does not grow with the context.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from slmopt.backends.gpu.cache import STORED, CacheRows
from slmopt.backends.gpu.device_code import DeviceCode, DeviceKernel, call
from slmopt.backends.gpu.norm import for_each
from slmopt.backends.tvm.code import Memory, Register
from slmopt.ir.types import DType, Element

__all__ = ["Attention"]

_THREADS = 64
_LOWEST = -3.0e38  # below every score, and finite: its difference to itself is 0
_NUMBERS = "tokens position lo hi out_s0 out_s1 q_s0 q_s1 slots"


@dataclass(frozen=True)
class Attention:
    """Causal attention of `heads` query heads over `kv_heads` heads of keys of `size` and values of `value_size`."""

    heads: int
    kv_heads: int
    size: int
    value_size: int
    element: Element
    scale: float
    softcap: float | None
    window: int | None
    sink: int
    chunk: int | None
    ring: bool
    slopes: bool
    sinks: bool

    def kernel(self) -> DeviceKernel:
        """The kernel."""
        text = f"{self.scale} {self.softcap} {self.window} {self.sink} {self.chunk} {self.ring}"
        options = "_slopes" * self.slopes + "_sinks" * self.sinks + "_" + hashlib.sha256(text.encode()).hexdigest()[:8]
        name = f"attention_{self.element}_{self.heads}x{self.size}_{self.kv_heads}x{self.value_size}{options}"
        kind = STORED[str(self.element)][0]
        scaled = not isinstance(self.element, DType)
        parameters = ["float *out", "const float *query", f"const {kind} *keys"]
        parameters += ["const float *key_scales"] * scaled + [f"const {kind} *values"]
        parameters += ["const float *value_scales"] * scaled
        parameters += ["const float *slopes"] * self.slopes + ["const float *sinks"] * self.sinks
        parameters += [f"int32_t {number}" for number in _NUMBERS.split()]
        return DeviceKernel(name, tuple(parameters), lambda: self._build(name), _THREADS, _THREADS)

    def _build(self, name: str) -> Any:
        return _Writer(self, DeviceCode(name, _THREADS)).write()


class _Writer:
    """Writes one attention kernel."""

    def __init__(self, shape: Attention, code: DeviceCode) -> None:
        self.shape, self.code = shape, code
        scaled = not isinstance(shape.element, DType)
        stored = STORED[str(shape.element)][1]
        self.out, self.query = code.pointer("out", "float32"), code.pointer("query", "float32")
        keys = code.pointer("keys", stored), code.pointer("key_scales", "float32") if scaled else None
        values = code.pointer("values", stored), code.pointer("value_scales", "float32") if scaled else None
        self.slopes = code.pointer("slopes", "float32") if shape.slopes else None
        self.sinks = code.pointer("sinks", "float32") if shape.sinks else None
        self.tokens, self.position, lo, _, *strides, self.slots = code.numbers(_NUMBERS)
        self.keys = CacheRows("keys", shape.element, shape.size, *keys, self.slots)
        self.values = CacheRows("values", shape.element, shape.value_size, *values, self.slots)
        self._find_row(lo, strides)

    def _find_row(self, lo: Any, strides: list[Any]) -> None:
        """What this group computes, and where that lies."""
        from tvm import tirx

        code, shape = self.code, self.shape
        row = code.let(lo + code.group)
        token, self.head = code.let(tirx.truncdiv(row, shape.heads)), code.let(tirx.truncmod(row, shape.heads))
        self.kv_head = code.let(tirx.truncdiv(self.head, shape.heads // shape.kv_heads))
        self.place = code.let(self.position + token)  # of the query
        self.last = code.let(self.position + self.tokens - 1)  # of the step
        wide = tirx.Cast("int64", token)
        self.target = code.let(wide * strides[0] + self.head * strides[1])
        self.source = code.let(wide * strides[2] + self.head * strides[3])

    def write(self) -> Any:
        """The PrimFunc."""
        from tvm import tirx

        code, shape, zero = self.code, self.shape, tirx.const(0.0, "float32")
        query, scores, weights = code.shared(shape.size), code.shared(_THREADS), code.shared(_THREADS)
        for_each(code, shape.size, lambda at: query.store(at, self.query.load(self.source + at)))
        largest = code.register(1, start=tirx.const(_LOWEST, "float32"))
        total = code.register(1, start=zero)
        if self.sinks is not None:
            largest.set(self.sinks.load(self.head))
            total.set(tirx.const(1.0, "float32"))
        own = [code.register(1, start=zero) for _ in range(-(-shape.value_size // _THREADS))]
        code.meet()
        start, end = self._range()
        with code.loop(tirx.truncdiv(end - start + (_THREADS - 1), _THREADS)) as tile:
            first = code.let(start + tile * _THREADS)
            score = self._score(query, first + code.thread, end)
            scores.store(code.thread, score)
            code.meet()
            before = code.let(largest.value)
            with code.loop(_THREADS) as other:
                seen = code.let(scores.load(other))
                largest.set(tirx.Select(largest.value >= seen, largest.value, seen))  # NaN stays
            weights.store(code.thread, call("float32", "expf", score - largest.value))
            code.meet()
            shrunk = code.let(call("float32", "expf", before - largest.value))
            self._add_values(weights, first, code.let(tirx.min(end - first, _THREADS)), shrunk, total, own)
        for index, register in enumerate(own):
            at = code.let(code.thread + index * _THREADS)
            with code.when(at < shape.value_size):
                result = tirx.Select(tirx.EQ(total.value, zero), zero, register.value / total.value)
                self.out.store(self.target + at, result)
        return code.finish()

    def _range(self) -> tuple[Any, Any]:
        """First and one past the last of the slots that can be seen."""
        from tvm import tirx

        code, shape = self.code, self.shape
        if shape.ring:
            return tirx.const(0, "int32"), code.let(tirx.min(self.slots, self.last + 1))
        start: Any = tirx.const(0, "int32")
        if shape.window is not None and not shape.sink:
            start = tirx.max(start, self.place - (shape.window - 1))
        if shape.chunk is not None:
            start = tirx.max(start, self.place - tirx.truncmod(self.place, shape.chunk))
        return code.let(start), code.let(self.place + 1)

    def _score(self, query: Memory, slot: Any, end: Any) -> Any:
        """The score of the key at a slot; far below all others where it cannot be seen."""
        from tvm import tirx

        code, shape = self.code, self.shape
        slot = code.let(slot)
        score = code.register(1, start=tirx.const(float("-inf"), "float32"))
        key = code.let(self._held(slot))
        with code.when(tirx.And(slot < end, self._visible(key))):
            score.set(tirx.const(0.0, "float32"))
            with code.loop(shape.size) as index:
                score.set(score.value + query.load(index) * self.keys.number(self.kv_head, slot, index))
            score.set(score.value * tirx.const(shape.scale, "float32"))
            if shape.softcap is not None:
                cap = tirx.const(shape.softcap, "float32")
                score.set(call("float32", "tanhf", score.value / cap) * cap)
            if self.slopes is not None:
                distance = tirx.Cast("float32", key - self.place)
                score.set(score.value + self.slopes.load(self.head) * distance)
        return code.let(score.value)

    def _held(self, slot: Any) -> Any:
        """The position whose key a slot has; one that no query sees where it has none."""
        from tvm import tirx

        if not self.shape.ring:
            return slot
        sink = self.shape.sink
        held = self.code.let(self.last - tirx.floormod(self.last - slot, self.slots - sink))
        return tirx.Select(slot < sink, slot, tirx.Select(held < sink, self.last + 1, held))

    def _visible(self, key: Any) -> Any:
        from tvm import tirx

        shape = self.shape
        allowed = key <= self.place
        if shape.window is not None:
            near = self.place - key < shape.window
            allowed = tirx.And(allowed, tirx.Or(near, key < shape.sink) if shape.sink else near)
        if shape.chunk is not None:
            same = tirx.truncdiv(self.place, shape.chunk).equal(tirx.truncdiv(key, shape.chunk))
            allowed = tirx.And(allowed, same)
        return allowed

    def _add_values(
        self, weights: Memory, first: Any, count: Any, shrunk: Any, total: Register, own: list[Register]
    ) -> None:
        """The tile's weights and weighted values, after what came before has been shrunk."""
        from tvm import tirx

        code, shape = self.code, self.shape
        total.set(total.value * shrunk)
        for register in own:
            register.set(register.value * shrunk)
        with code.loop(count) as index:
            weight = code.let(weights.load(index))
            total.set(total.value + weight)
            for number, register in enumerate(own):
                at = code.let(code.thread + number * _THREADS)
                with code.when(tirx.And(at < shape.value_size, weight > tirx.const(0.0, "float32"))):
                    value = self.values.number(self.kv_head, first + index, at)
                    register.set(register.value + weight * value)
