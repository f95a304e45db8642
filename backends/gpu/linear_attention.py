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
        return _Writer(self, DeviceCode(name, _THREADS)).write()


class _Writer:
    """Writes one kernel. In shared memory are the features of a token's key and queries, and the normalizer."""

    def __init__(self, shape: LinearAttention, code: DeviceCode) -> None:
        from tvm import tirx

        self.shape, self.code = shape, code
        self.out, self.state, self.normalizer, self.query, self.key, self.value = (
            code.pointer(label, "float32") for label in _POINTERS
        )
        self.tokens, lo, _, *strides = code.numbers(_NUMBERS)
        self.strides = list(zip(strides[::2], strides[1::2], strict=True))
        self.head = code.let(lo + code.group)
        self.kept = code.let(tirx.Cast("int64", self.head) * shape.size)
        self.together = shape.heads // shape.kv_heads
        self.keys, self.sums = code.shared(shape.size), code.shared(shape.size)
        self.queries = code.shared(shape.size * self.together)

    def write(self) -> Any:
        """The PrimFunc."""
        code, size = self.code, self.shape.size
        for_each(code, size, lambda at: self.sums.store(at, self.normalizer.load(self.kept + at)))
        with code.loop(self.tokens) as token:
            starts = self._starts(token)
            for_each(code, size, lambda at: self._take_key(starts[2] + at, at))
            for_each(code, size * self.together, lambda at: self._take_query(starts[1], at))
            code.meet()
            for_each(code, self.shape.value_size, lambda at: self._take_value(starts[3], starts[0], at))
            code.meet()
        for_each(code, size, lambda at: self.normalizer.store(self.kept + at, self.sums.load(at)))
        return code.finish()

    def _starts(self, token: Any) -> list[Any]:
        """Where a token's rows of out, query, key and value begin, of the first head of this group."""
        from tvm import tirx

        wide, heads = tirx.Cast("int64", token), (self.head * self.together, self.head)
        return [self.code.let(wide * s0 + heads[index >= 2] * s1) for index, (s0, s1) in enumerate(self.strides)]

    def _take_key(self, place: Any, at: Any) -> None:
        self.keys.store(at, _feature(self.code, self.key.load(place)))
        self.sums.store(at, self.sums.load(at) + self.keys.load(at))

    def _take_query(self, start: Any, at: Any) -> None:
        from tvm import tirx

        own, index = tirx.truncdiv(at, self.shape.size), tirx.truncmod(at, self.shape.size)
        number = self.query.load(start + own * self.strides[1][1] + index)
        self.queries.store(at, _feature(self.code, number))

    def _take_value(self, start: Any, target: Any, at: Any) -> None:
        """A column of the state, and what the queries see of it."""
        from tvm import tirx

        code, size = self.code, self.shape.size
        number = code.let(self.value.load(start + at))
        with code.loop(size) as index:
            place = code.let(self._cell(index, at))
            self.state.store(place, self.state.load(place) + self.keys.load(index) * number)
        with code.loop(self.together) as own:
            above, below = (code.register(1, start=tirx.const(0.0, "float32")) for _ in range(2))
            with code.loop(size) as index:
                feature = code.let(self.queries.load(own * size + index))
                above.set(above.value + feature * self.state.load(self._cell(index, at)))
                below.set(below.value + feature * self.sums.load(index))
            least = tirx.const(LEAST, "float32")
            divisor = tirx.Select(below.value < least, least, below.value)
            self.out.store(target + own * self.strides[0][1] + at, above.value / divisor)

    def _cell(self, index: Any, at: Any) -> Any:
        return (self.kept + index) * self.shape.value_size + at


def _feature(code: DeviceCode, x: Any) -> Any:
    """elu(x) + 1."""
    from tvm import tirx

    x, one = code.let(x), tirx.const(1.0, "float32")
    return tirx.Select(x > tirx.const(0.0, "float32"), x + one, call("float32", "expf", x))
