"""Which number or group of numbers a thread computes, and rows of 8-bit codes (layout: backends/tvm/row_output.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from slmopt.backends.gpu.device_code import DeviceCode, DeviceMemory, call
from slmopt.backends.tvm.packing import GROUP

__all__ = ["THREADS", "each_number", "find_row", "snap_group", "write_codes"]

THREADS = 128  # of a group, where threads have nothing to do with each other

Produce = Callable[[Any], Any]  # column -> number


@contextmanager
def each_number(code: DeviceCode, lo: Any, hi: Any, width: int) -> Iterator[tuple[Any, Any]]:
    """(row, column) of this thread's number in rows lo..hi of `width`; nothing in threads to spare."""
    from tvm import tirx

    item = code.let(code.group * code.threads + code.thread)
    with code.when(item < (hi - lo) * width):
        yield code.let(lo + tirx.truncdiv(item, width)), code.let(tirx.truncmod(item, width))


def find_row(code: DeviceCode, row: Any, inner: Any, s0: Any, s1: Any) -> Any:
    """Where row (row / inner, row % inner) begins, by the strides of both."""
    from tvm import tirx

    return code.let(tirx.Cast("int64", tirx.truncdiv(row, inner)) * s0 + tirx.truncmod(row, inner) * s1)


def snap_group(code: DeviceCode, count: Any, produce: Produce) -> tuple[Any, Any]:
    """The scale of the first `count` of up to 32 numbers, and a local array of their codes, 0 after them, as int32.

    scale = amax / 127, code = round_half_even(x / scale); zeros have scale 0.
    """
    from tvm import tirx

    numbers, codes = code.local(GROUP), code.local(GROUP, "int32")
    largest = code.register(1, start=tirx.const(0.0, "float32"))
    with code.loop(GROUP) as index:
        numbers.store(index, tirx.const(0.0, "float32"))
        with code.when(index < count):
            numbers.store(index, produce(index))
        size = code.let(call("float32", "fabsf", numbers.load(index)))
        largest.set(tirx.Select(largest.value >= size, largest.value, size))  # a row of NaN has the scale NaN
    scale = code.let(largest.value / tirx.const(127.0, "float32"))
    divisor = code.let(tirx.Select(scale > tirx.const(0.0, "float32"), scale, tirx.const(1.0, "float32")))
    with code.loop(GROUP) as index:
        rounded = code.let(call("float32", "rintf", numbers.load(index) / divisor))
        limit = tirx.const(127.0, "float32")  # passed where the scale is subnormal and so inexact
        clamped = tirx.Select(rounded > limit, limit, tirx.Select(rounded < -limit, -limit, rounded))
        codes.store(index, tirx.Cast("int32", clamped))
    return scale, codes


def write_codes(code: DeviceCode, out: DeviceMemory, start: Any, width: int, group: Any, produce: Produce) -> None:
    """A group of 32 numbers of a row of `width`, as codes, scale and sum; words of `out` from `start` on."""
    from tvm import tirx

    groups = -(-width // GROUP)
    count = code.let(tirx.min(width - group * GROUP, GROUP))
    scale, codes = snap_group(code, count, lambda index: produce(group * GROUP + index))
    total = code.register(1, "int32", tirx.const(0, "int32"))
    with code.loop(GROUP // 4) as quad:
        word: Any = tirx.const(0, "uint32")
        for byte in range(4):
            number = codes.load(quad * 4 + byte)
            total.set(total.value + number)
            low = tirx.bitwise_and(tirx.reinterpret("uint32", number), tirx.const(255, "uint32"))
            word = tirx.bitwise_or(word, tirx.shift_left(low, tirx.const(8 * byte, "uint32")))
        out.store(start + group * (GROUP // 4) + quad, word)
    out.store(start + groups * 8 + group, tirx.reinterpret("uint32", scale))
    out.store(start + groups * 9 + group, tirx.reinterpret("uint32", total.value))
