"""Linear attention: a group of threads for each head of keys, that takes the tokens of a step one after the other.

    void k(float *out, float *state, float *normalizer, const float *query, const float *key, const float *value,
           int32_t tokens, int32_t lo, int32_t hi, int32_t out_s0, int32_t out_s1, int32_t q_s0, int32_t q_s1,
           int32_t k_s0, int32_t k_s1, int32_t v_s0, int32_t v_s1)

state is [g][d][e], normalizer [g][d]; both are updated in place. A thread owns columns of the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.gpu.device_code import DeviceCode, DeviceKernel, call
from slmopt.backends.gpu.norm import for_each
from slmopt.ir.ops.linear_attention import LEAST

__all__ = ["LinearAttention"]

_THREADS = 64
_NUMBERS = "tokens lo hi out_s0 out_s1 q_s0 q_s1 k_s0 k_s1 v_s0 v_s1"
_POINTERS = ("out", "state", "normalizer", "query", "key", "value")


@dataclass(frozen=True)
class LinearAttention:
    """`heads` query heads over `kv_heads` heads of keys of `size` and values of `value_size`; features elu(x) + 1."""

    heads: int
    kv_heads: int
    size: int
    value_size: int

    def kernel(self) -> DeviceKernel:
        """The kernel."""
        name = f"linear_attention_{self.heads}x{self.size}_{self.kv_heads}x{self.value_size}"
        parameters = [f"{'' if index < 3 else 'const '}float *{label}" for index, label in enumerate(_POINTERS)]
        parameters += [f"int32_t {number}" for number in _NUMBERS.split()]
        return DeviceKernel(name, tuple(parameters), lambda: self._build(name), _THREADS, _THREADS)

    def _build(self, name: str) -> Any:
        from tvm import tirx

        code = DeviceCode(name, _THREADS)
        out, state, normalizer, query, key, value = (code.pointer(label, "float32") for label in _POINTERS)
        tokens, lo, _, *strides = code.numbers(_NUMBERS)
        size, width, together = self.size, self.value_size, self.heads // self.kv_heads
        head = code.let(lo + code.group)
        keys, sums, queries = code.shared(size), code.shared(size), code.shared(size * together)
        kept = code.let(tirx.Cast("int64", head) * size)
        for_each(code, size, lambda at: sums.store(at, normalizer.load(kept + at)))
        with code.loop(tokens) as token:
            places = [code.let(tirx.Cast("int64", token) * s0) for s0 in strides[::2]]
            starts = [code.let(place + head * s1 * (together if index < 2 else 1))
                      for index, (place, s1) in enumerate(zip(places, strides[1::2], strict=True))]  # fmt: skip

            def take_key(at: Any, starts: list[Any] = starts) -> None:
                keys.store(at, _feature(code, key.load(starts[2] + at)))
                sums.store(at, sums.load(at) + keys.load(at))

            def take_query(at: Any, starts: list[Any] = starts) -> None:
                own, index = tirx.truncdiv(at, size), tirx.truncmod(at, size)
                queries.store(at, _feature(code, query.load(starts[1] + own * strides[3] + index)))

            def column(at: Any, starts: list[Any] = starts) -> None:
                number = code.let(value.load(starts[3] + at))
                with code.loop(size) as index:
                    place = code.let((kept + index) * width + at)
                    state.store(place, state.load(place) + keys.load(index) * number)
                with code.loop(together) as own:
                    above, below = (code.register(1, start=tirx.const(0.0, "float32")) for _ in range(2))
                    with code.loop(size) as index:
                        feature = code.let(queries.load(own * size + index))
                        above.set(above.value + feature * state.load((kept + index) * width + at))
                        below.set(below.value + feature * sums.load(index))
                    least = tirx.const(LEAST, "float32")
                    divisor = tirx.Select(below.value < least, least, below.value)
                    out.store(starts[0] + own * strides[1] + at, above.value / divisor)

            for_each(code, size, take_key)
            for_each(code, size * together, take_query)
            code.meet()
            for_each(code, width, column)
            code.meet()
        for_each(code, size, lambda at: normalizer.store(kept + at, sums.load(at)))
        return code.finish()


def _feature(code: DeviceCode, x: Any) -> Any:
    """elu(x) + 1."""
    from tvm import tirx

    x, one = code.let(x), tirx.const(1.0, "float32")
    return tirx.Select(x > tirx.const(0.0, "float32"), x + one, call("float32", "expf", x))
