"""Normalization of rows.

    void k(T *out, const float *x[, const float *weight][, const float *bias], int32_t lo, int32_t hi, int32_t inner,
           int32_t out_s0, int32_t out_s1, int32_t x_s0, int32_t x_s1)

Row r begins at (r / inner) * s0 + (r % inner) * s1. `out` is float32 or q8 rows (then inner is 1, strides in bytes).
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.row_output import each_chunk, output_pointer, write_row
from slmopt.backends.tvm.vector_math import add_all, broadcast, multiply_add

__all__ = ["layer_norm", "rms_norm"]


def rms_norm(isa: Isa, *, width: int, eps: float, output: str = "f32", weight: bool = True) -> Kernel:
    """x / sqrt(mean(x^2) + eps) * weight."""
    return _norm(isa, width, eps, output, weight, False, centred=False)


def layer_norm(
    isa: Isa, *, width: int, eps: float, output: str = "f32", weight: bool = True, bias: bool = True
) -> Kernel:
    """(x - mean) / sqrt(var + eps) * weight + bias."""
    return _norm(isa, width, eps, output, weight, bias, centred=True)


def _norm(isa: Isa, width: int, eps: float, output: str, weight: bool, bias: bool, *, centred: bool) -> Kernel:
    kind = "layer_norm" if centred else "rms_norm"
    precision = float(eps).hex().replace(".", "_").replace("-", "m").replace("+", "p")
    options = "".join(f"_{label}" for label, on in (("weight", weight), ("bias", bias)) if on)
    name = f"{kind}_{width}_{output}_{precision}{options}"
    parameters = ["uint8_t *out" if output == "q8" else "float *out", "const float *x"]
    parameters += ["const float *weight"] if weight else []
    parameters += ["const float *bias"] if bias else []
    numbers = "lo hi inner out_s0 out_s1 x_s0 x_s1"

    def build() -> Any:
        from tvm import tirx

        code = Code(name)
        out, _ = output_pointer(code, output)
        x = code.pointer("x", "float32")
        scales = code.pointer("weight", "float32") if weight else None
        shifts = code.pointer("bias", "float32") if bias else None
        lo, hi, inner, out_s0, out_s1, x_s0, x_s1 = code.numbers(numbers)
        with code.loop(hi - lo) as i:
            row = code.let(lo + i)
            first, second = code.let(tirx.floordiv(row, inner)), code.let(tirx.floormod(row, inner))
            source, target = code.let(first * x_s0 + second * x_s1), code.let(first * out_s0 + second * out_s1)
            mean = _mean(code, isa, width, x, source) if centred else None
            factor = _factor(code, isa, width, eps, x, source, mean)

            def produce(at: Any, lanes: int) -> Any:
                value = x.load(source + at, lanes)
                value = value if mean is None else value - broadcast(mean, lanes)
                value = value * broadcast(factor, lanes)
                value = value if scales is None else value * scales.load(at, lanes)
                return value if shifts is None else value + shifts.load(at, lanes)

            write_row(code, isa, width, output, out, target, produce)
        return code.finish()

    return Kernel(name, (*parameters, *(f"int32_t {number}" for number in numbers.split())), build)


def _mean(code: Code, isa: Isa, width: int, x: Memory, source: Any) -> Any:
    total = _total(code, isa, width, lambda at, lanes, sum: sum + x.load(source + at, lanes))
    return code.let(total * (1.0 / width))


def _factor(code: Code, isa: Isa, width: int, eps: float, x: Memory, source: Any, mean: Any) -> Any:
    """1 / sqrt(mean of squares + eps), of x or of x - mean."""
    from tvm import tirx

    def square(at: Any, lanes: int, total: Any) -> Any:
        value = x.load(source + at, lanes)
        value = code.let(value if mean is None else value - broadcast(mean, lanes))
        return multiply_add(isa, lanes, value, value, total)

    total = _total(code, isa, width, square)
    root = tirx.call_llvm_pure_intrin("float32", "llvm.sqrt", total * (1.0 / width) + tirx.const(eps, "float32"))
    return code.let(tirx.const(1.0, "float32") / root)


def _total(code: Code, isa: Isa, width: int, step: Any) -> Any:
    """The sum over a row of what `step(column, lanes, sum so far)` adds."""
    sums = code.register(isa.lanes, start=broadcast(0.0, isa.lanes))
    rest = code.register(1, start=broadcast(0.0, 1))

    def add(at: Any, lanes: int) -> None:
        if lanes == isa.lanes:
            sums.set(step(at, lanes, sums.value))
        else:
            part = code.let(step(at, lanes, broadcast(0.0, lanes)))
            rest.set(rest.value + add_all(lanes, part))

    each_chunk(code, width, isa.lanes, add)
    return add_all(isa.lanes, code.let(sums.value)) + rest.value
