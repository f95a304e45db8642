"""Measures how many blocks and tokens a linear should have in flight on this machine: what `slmopt tune` writes.

Every variant of a kernel gives the same bytes, so only time is compared. Variants run in turns, a short piece of work
each, and are judged by the median of their ratios to the default in the same turn: what else the machine does hits all
of them alike. One token reads weights that lie in no cache, as a step does; many tokens read them once for all.
Processor time of one thread is counted, not that of the clock.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from slmopt.backend import BuildReport
from slmopt.backends.tvm.blocking import Blocking, default_blocking
from slmopt.backends.tvm.isa import Isa, missing_flags
from slmopt.backends.tvm.operands import known_size
from slmopt.backends.tvm.packing import block_rows, check_element, packed_bytes
from slmopt.backends.tvm.tuning_table import TunedLinear, write_entries
from slmopt.backends.tvm.views import quantized_row_bytes
from slmopt.errors import InputError
from slmopt.ir.graph import Module, Weight
from slmopt.ir.types import DType, parse_element
from slmopt.link import c_compiler

__all__ = ["Shape", "find_shapes", "tune", "tune_shape", "write_isa"]

_MARGIN = 0.02  # what a variant must gain to be taken: less is noise
_PREFILL_TOKENS = 96
_PREFILL_BLOCKS = 48  # most blocks that many tokens are measured with: enough for a figure
_COLD_BYTES = 64 << 20  # weights that one token reads in turn: more than any cache keeps
_SECONDS = 0.002  # least work between two looks at the clock


@dataclass(frozen=True, order=True)
class Shape:
    """Weights [rows, columns] of a type, by its name; `rounded`: what reads them rounds its inputs to bfloat16."""

    element: str
    rows: int
    columns: int
    rounded: bool = False

    def entry(self, blocking: Blocking) -> TunedLinear:
        """What is written of the shape: weights that are read in both ways have one blocking for both."""
        return TunedLinear(self.element, self.rows, self.columns, **asdict(blocking))

    def has_pairs(self, isa: Isa) -> bool:
        """Whether the instruction set multiplies pairs of bfloat16 numbers here."""
        return self.rounded and self.element == str(DType.bf16) and bool(isa.bf16_dot)


def tune(module: Module, isa: Isa, rounds: int, report: BuildReport) -> str:
    """The description of `isa` as TOML, with an entry for each shape of `module` that some blocking is better for.

    InputError where this machine cannot run the instruction set. `report(what, done, total)` is told how far it is.
    """
    if missing := missing_flags(isa):
        raise InputError(f"instruction set {isa.name} cannot be measured here: this processor has no "
                         f"{', '.join(missing)}; tune on one that has, or name another: isa=NAME")  # fmt: skip
    shapes, entries = find_shapes(module), []
    for index, shape in enumerate(shapes):
        report("tune", index, len(shapes))
        entry = tune_shape(isa, shape, rounds)
        entries += [] if entry is None else [entry]
    report("tune", len(shapes), len(shapes))
    return write_isa(isa, entries)


def find_shapes(module: Module) -> list[Shape]:
    """The distinct weights of linears in @step."""
    found = set()
    for op in module.graph("step").walk():
        if op.name == "linear" and isinstance(op.operands[1], Weight):
            weight = op.operands[1].type
            check_element(weight.element)
            rows, columns = (known_size(size, op) for size in weight.shape)
            found.add(Shape(str(weight.element), rows, columns, op.attributes["act"] == "bf16"))
    return sorted(found)


def tune_shape(isa: Isa, shape: Shape, rounds: int) -> TunedLinear | None:
    """The best blocking found, or None where nothing beats the default: first for one token, then for many."""
    default = best = default_blocking(isa, parse_element(shape.element))
    for tokens, variants in ((1, _streams), (1, _prefetches), (_PREFILL_TOKENS, _tiles)):
        others = [variant for variant in variants(isa, best) if variant != best]
        best = _choose(isa, shape, [best, *others], tokens, rounds)
    return None if best == default else shape.entry(best)


def _streams(isa: Isa, best: Blocking) -> Iterator[Blocking]:
    for streams in (1, 2, 3, 4):
        yield replace(best, streams=streams)


def _prefetches(isa: Isa, best: Blocking) -> Iterator[Blocking]:
    for prefetch in (0, 2048, 4096, 8192):
        yield replace(best, prefetch=prefetch)


def _tiles(isa: Isa, best: Blocking) -> Iterator[Blocking]:
    """Tiles whose sums fill from a quarter to half of the registers: the products of a group need as many again."""
    for blocks in (1, 2, 3, 4):
        for tokens in range(2, isa.registers // 2 + 1):
            if isa.registers // 4 <= tokens * blocks <= isa.registers * 3 // 8:
                yield replace(best, tokens=tokens, blocks=blocks)


def _choose(isa: Isa, shape: Shape, variants: list[Blocking], tokens: int, rounds: int) -> Blocking:
    """The fastest; the first where none gains enough over it."""
    with tempfile.TemporaryDirectory(prefix="slmopt-tune-") as directory:
        functions = [_load(isa, shape, variant, Path(directory) / f"{index}.so") for index, variant in
                     enumerate(variants)]  # fmt: skip
        work = _Work(isa, shape, tokens)
        times = [[work.time(function) for function in functions] for _ in range(rounds + 1)][1:]
    gains = [statistics.median(row[0] / row[index] for row in times) for index in range(len(variants))]
    best = max(range(len(variants)), key=lambda index: gains[index])
    return variants[best] if gains[best] > 1 + _MARGIN else variants[0]


def _load(isa: Isa, shape: Shape, blocking: Blocking, path: Path) -> Any:
    """The kernel with a blocking, as a function of Python."""
    from slmopt.backends.tvm.build import build_object
    from slmopt.backends.tvm.linear import linear

    forced = replace(isa, linear=(shape.entry(blocking),))
    kernel = linear(
        forced, parse_element(shape.element), shape.rows, shape.columns, rounded=shape.has_pairs(isa)
    )  # fmt: skip
    objects = path.with_suffix(".o")
    objects.write_bytes(build_object([kernel], forced)[0])
    subprocess.run([*c_compiler(), "-shared", "-o", str(path), str(objects), "-lm"], check=True)
    return getattr(ctypes.CDLL(str(path)), kernel.name)


class _Work:
    """Weights, inputs and room for outputs of a shape; the weights repeat in memory, so that each call finds others."""

    def __init__(self, isa: Isa, shape: Shape, tokens: int) -> None:
        import numpy as np

        element = parse_element(shape.element)
        rows = block_rows(isa, element)
        blocks = -(-shape.rows // rows)
        blocks = blocks if tokens == 1 else min(blocks, _PREFILL_BLOCKS)
        stride = shape.columns if isinstance(element, DType) else quantized_row_bytes(shape.columns)
        self.bytes = packed_bytes(isa, element, blocks * rows, shape.columns)
        self.copies = max(1, _COLD_BYTES // self.bytes) + 1
        self.turn = 0
        # Small numbers of every type: subnormal ones would take longer, and infinite ones are none.
        self.weights = _aligned(np.full(self.copies * self.bytes, 0x22, np.uint8))
        size = 1 if not isinstance(element, DType) else 2 if shape.has_pairs(isa) else 4
        self.x = _aligned(np.full(tokens * stride * size, 0x22, np.uint8))
        self.out = _aligned(np.zeros(tokens * shape.rows * 4, np.uint8))
        self.numbers = [ctypes.c_int32(n) for n in (0, tokens, 0, blocks, shape.rows, stride)]

    def time(self, function: Any) -> float:
        """Seconds of a call, from as many as make the time of one sure."""
        start, calls = time.thread_time(), 0
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (self.out, self.x)]
        while True:
            self.turn = (self.turn + 1) % self.copies
            weights = ctypes.c_void_p(self.weights.ctypes.data + self.turn * self.bytes)
            function(*pointers, weights, *self.numbers)
            calls += 1
            passed = time.thread_time() - start
            if passed >= _SECONDS:
                return passed / calls


def _aligned(array: Any) -> Any:
    """A copy that begins at a multiple of 64 bytes, with room after it for what is fetched ahead."""
    import numpy as np

    raw = np.zeros(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64
    raw[start : start + array.nbytes] = array
    return raw[start : start + array.nbytes]


def write_isa(isa: Isa, entries: Sequence[TunedLinear]) -> str:
    """The description of an instruction set as TOML, with these entries and those of its own for other shapes."""
    found = {entry.key: entry for entry in (*isa.linear, *entries)}
    lines = [f"{field.name} = {_toml(getattr(isa, field.name))}" for field in fields(isa)
             if field.name not in ("name", "linear")]  # fmt: skip
    return "\n".join([*lines, ""]) + write_entries(tuple(found[key] for key in sorted(found)))


def _toml(value: Any) -> str:
    import json

    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # of text, numbers and truth values the same in TOML
