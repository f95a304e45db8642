"""Normalization: a group of threads for each row.

    void k(T *out, const float *x[, const float *weight][, const float *bias], int32_t lo, int32_t hi, int32_t inner,
           int32_t out_s0, int32_t out_s1, int32_t x_s0, int32_t x_s1)

Row r begins at (r / inner) * s0 + (r % inner) * s1. T is float, or uint32_t: words of q8 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slmopt.backends.gpu.device_code import DeviceCode, DeviceKernel, DeviceMemory, call
from slmopt.backends.gpu.rows import find_row, write_codes
from slmopt.backends.tvm.packing import GROUP

__all__ = ["Norm"]

_THREADS = 64
_NUMBERS = "lo hi inner out_s0 out_s1 x_s0 x_s1"


@dataclass(frozen=True)
class Norm:
    """A normalization of rows of `width`: x / sqrt(mean(x^2) + eps) * weight + bias, of x - mean(x) if `centred`."""

    width: int
    eps: float
    centred: bool
    quantized: bool
    weight: bool
    bias: bool

    def kernel(self) -> DeviceKernel:
        """The kernel."""
        precision = float(self.eps).hex().replace(".", "_").replace("-", "m").replace("+", "p")
        label = ("layer_norm" if self.centred else "rms_norm") + f"_{self.width}_{'q8' if self.quantized else 'f32'}"
        name = f"{label}_{precision}{'_weight' * self.weight}{'_bias' * self.bias}"
        parameters = ["uint32_t *out" if self.quantized else "float *out", "const float *x"]
        parameters += ["const float *weight"] * self.weight + ["const float *bias"] * self.bias
        parameters += [f"int32_t {number}" for number in _NUMBERS.split()]
        return DeviceKernel(name, tuple(parameters), lambda: self._build(name), _THREADS, _THREADS)

    def _build(self, name: str) -> Any:
        from tvm import tirx

        code = DeviceCode(name, _THREADS)
        out = code.pointer("out", "uint32" if self.quantized else "float32")
        x = code.pointer("x", "float32")
        weight = code.pointer("weight", "float32") if self.weight else None
        bias = code.pointer("bias", "float32") if self.bias else None
        lo, _, inner, out_s0, out_s1, x_s0, x_s1 = code.numbers(_NUMBERS)
        row = code.let(lo + code.group)
        source, target = find_row(code, row, inner, x_s0, x_s1), find_row(code, row, inner, out_s0, out_s1)
        share = tirx.const(1.0 / self.width, "float32")
        mean = self._total(code, lambda at: x.load(source + at)) * share if self.centred else None
        mean = None if mean is None else code.let(mean)

        def centred(at: Any) -> Any:
            return x.load(source + at) if mean is None else x.load(source + at) - mean

        def square(at: Any) -> Any:
            number = code.let(centred(at))
            return number * number

        mean_square = self._total(code, square) * share + tirx.const(self.eps, "float32")
        factor = code.let(tirx.const(1.0, "float32") / call("float32", "sqrtf", mean_square))

        def produce(at: Any) -> Any:
            value = centred(at) * factor
            value = value if weight is None else value * weight.load(at)
            return value if bias is None else value + bias.load(at)

        self._write(code, out, target, produce)
        return code.finish()

    def _write(self, code: DeviceCode, out: DeviceMemory, target: Any, produce: Callable[[Any], Any]) -> None:
        if not self.quantized:
            for_each(code, self.width, lambda at: out.store(target + at, produce(at)))
            return
        groups = -(-self.width // GROUP)
        for_each(code, groups, lambda group: write_codes(code, out, target, self.width, group, produce))

    def _total(self, code: DeviceCode, term: Callable[[Any], Any]) -> Any:
        """The sum of a term over the row, the same in all threads."""
        from tvm import tirx

        parts = code.shared(_THREADS)
        own = code.register(1, start=tirx.const(0.0, "float32"))
        for_each(code, self.width, lambda at: own.set(own.value + term(at)))
        parts.store(code.thread, own.value)
        code.meet()
        own.set(tirx.const(0.0, "float32"))
        with code.loop(_THREADS) as other:
            own.set(own.value + parts.load(other))
        return code.let(own.value)


def for_each(code: DeviceCode, count: int, body: Callable[[Any], None]) -> None:
    """`body(index)` for this thread's share of 0..count, neighbours in neighbouring threads."""
    from tvm import tirx

    with code.loop(-(-count // code.threads)) as step:
        index = code.let(step * code.threads + code.thread)
        if count % code.threads == 0:
            body(index)
        else:
            with code.when(tirx.LT(index, tirx.const(count, "int32"))):
                body(index)
