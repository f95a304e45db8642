"""Matrix products: activations times packed weights, a block of outputs at a time.

    void k(float *out, const X *x, const uint8_t *w[, const float *bias][, const float *residual], int32_t t0,
           int32_t t1, int32_t lo, int32_t hi, int32_t out_stride, int32_t x_stride[, int32_t residual_stride])

computes out = activation(x W^T + bias) + residual for tokens t0..t1 and blocks lo..hi of outputs. One token: several
blocks are in flight, so that memory is read in several streams. More: a tile of tokens shares each weight that was
loaded and unpacked. `float_body.py`, `pair_body.py` and `quantized_body.py` have the inner products, `blocking.py`
the numbers of blocks and tokens; packing.py draws the layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.backends.tvm.blocking import choose_blocking
from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.float_body import FloatBody
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.packing import check_element
from slmopt.backends.tvm.pair_body import PairBody
from slmopt.backends.tvm.quantized_body import QuantizedBody
from slmopt.backends.tvm.vector_math import activate, broadcast
from slmopt.ir.types import DType, Element

__all__ = ["linear"]


def linear(
    isa: Isa, element: Element, rows: int, columns: int, *, bias: bool = False, residual: bool = False,
    activation: str | None = None, rounded: bool = False,
) -> Kernel:  # fmt: skip
    """The kernel for weights [rows, columns] of a type; x is float32 rows, or q8 rows for quantized weights.

    `rounded`: weights and x are bf16, on an instruction set with `bf16_dot`.
    """
    check_element(element)
    options = [("x_bf16", rounded), ("bias", bias), ("residual", residual), (activation or "", activation is not None)]
    name = "_".join(["linear", str(element), f"{rows}x{columns}", *(label for label, on in options if on)])
    quantized = not isinstance(element, DType)
    inputs = "uint8_t" if quantized else "uint16_t" if rounded else "float"
    parameters = ["float *out", f"const {inputs} *x", "const uint8_t *w"]
    parameters += ["const float *bias"] if bias else []
    parameters += ["const float *residual"] if residual else []
    numbers = ["t0", "t1", "lo", "hi", "out_stride", "x_stride", *(["residual_stride"] if residual else [])]
    parameters += [f"int32_t {number}" for number in numbers]
    builder = _Builder(isa, element, rows, columns, bias, residual, activation, rounded)
    return Kernel(name, tuple(parameters), lambda: builder.build(name))


class _Builder:
    def __init__(
        self, isa: Isa, element: Element, rows: int, columns: int, bias: bool, residual: bool, activation: str | None,
        rounded: bool,
    ) -> None:  # fmt: skip
        self.rounded = rounded
        self.isa, self.element, self.rows, self.columns = isa, element, rows, columns
        self.has_bias, self.has_residual, self.activation = bias, residual, activation

    def build(self, name: str) -> Any:
        """The PrimFunc."""
        from tvm import tirx

        code = self.code = Code(name)
        quantized = not isinstance(self.element, DType)
        self.out = code.pointer("out", "float32")
        self.x = code.pointer("x", "uint8" if quantized else "uint16" if self.rounded else "float32")
        self.w = code.pointer("w", "uint8")
        self.bias = code.pointer("bias", "float32") if self.has_bias else None
        self.residual = code.pointer("residual", "float32") if self.has_residual else None
        t0, t1, lo, hi, self.out_stride, self.x_stride = code.numbers("t0 t1 lo hi out_stride x_stride")
        self.residual_stride = code.number("residual_stride") if self.has_residual else None
        self.blocking = choose_blocking(self.isa, self.element, self.rows, self.columns)
        self.body = self._choose_body()
        tokens = t1 - t0
        with code.when(tirx.EQ(tokens, 1)):
            self._blocks(lo, hi, self.blocking.streams, lambda blocks: self._tile(t0, 1, blocks))
        with code.when(tokens > 1):
            self._blocks(lo, hi, self.blocking.blocks, lambda blocks: self._tokens(t0, tokens, blocks))
        return code.finish()

    def _choose_body(self) -> FloatBody | QuantizedBody:
        if not isinstance(self.element, DType):
            return QuantizedBody(self.code, self.isa, self.element, self.columns, self.blocking.prefetch)
        if self.rounded:
            return PairBody(self.code, self.isa, self.columns, self.blocking.prefetch)
        return FloatBody(self.code, self.isa, self.element, self.columns, self.blocking.prefetch)

    def _blocks(self, lo: Any, hi: Any, streams: int, body: Callable[[list[Any]], None]) -> None:
        """`body(blocks)` over lo..hi, `streams` of them at a time: stream j walks its own part of lo..hi."""
        from tvm import tirx

        code, count = self.code, hi - lo
        part = code.let(tirx.floordiv(count, streams))
        with code.loop(part) as i:
            body([code.let(lo + i + part * j) for j in range(streams)])
        if streams > 1:
            with code.loop(count - part * streams) as i:
                body([code.let(lo + part * streams + i)])

    def _tokens(self, t0: Any, tokens: Any, blocks: list[Any]) -> None:
        """All tokens of a few blocks, in tiles; the rest in tiles of powers of two."""
        from tvm import tirx

        tile = self.blocking.tokens
        full = self.code.let(tirx.floordiv(tokens, tile))
        with self.code.loop(full) as i:
            self._tile(t0 + i * tile, tile, blocks)
        rest = self.code.let(tokens - full * tile)
        larger = 0  # sizes that came before
        for part in (1 << bit for bit in reversed(range((tile - 1).bit_length()))):
            with self.code.when(tirx.NE(tirx.bitwise_and(rest, part), 0)):
                self._tile(t0 + full * tile + tirx.bitwise_and(rest, larger), part, blocks)
            larger += part

    def _tile(self, token: Any, tokens: int, blocks: list[Any]) -> None:
        """`tokens` tokens from `token` on, times a few blocks."""
        code = self.code
        first = code.let(token)
        rows = [code.let((first + i) * self.x_stride) for i in range(tokens)]
        sums = self.body.products(self.x, rows, self.w, blocks)
        for block, registers in zip(blocks, sums, strict=True):
            self._finish(first, block, registers)

    def _finish(self, token: Any, block: Any, registers: list[Register]) -> None:
        """Bias, activation, residual, store; of the last block only what there is."""
        code, lanes = self.code, self.isa.lanes
        column = code.let(block * lanes)
        cut = self.rows % lanes
        if cut == 0:
            self._store(token, column, registers, lanes)
            return
        with code.when(column + lanes <= self.rows):
            self._store(token, column, registers, lanes)
        with code.when(column + lanes > self.rows):
            self._store(token, column, registers, cut)

    def _store(self, token: Any, column: Any, registers: list[Register], width: int) -> None:
        """`width` outputs of each token. An activation is long code: it stands once, in a loop over the tokens."""
        code, lanes = self.code, self.isa.lanes
        bias = None if self.bias is None else self._read(self.bias, column, width)
        if self.activation is None or len(registers) == 1:
            for i, register in enumerate(registers):
                self._store_row(code.let(token + i), column, register.value, bias, width)
            return
        sums = code.local(lanes * len(registers))
        for i, register in enumerate(registers):
            sums.store(i * lanes, register.value, lanes)
        with code.loop(len(registers)) as i:
            self._store_row(code.let(token + i), column, sums.load(i * lanes, lanes), bias, width)

    def _store_row(self, row: Any, column: Any, value: Any, bias: Any, width: int) -> None:
        code, lanes = self.code, self.isa.lanes
        value = activate(self.isa, lanes, self.activation, value if bias is None else value + bias, code.let)
        if self.residual is not None:
            value = value + self._read(self.residual, row * self.residual_stride + column, width)
        place = code.let(row * self.out_stride + column)
        if width == lanes:
            self.out.store(place, value, lanes)
            return
        kept = code.local(lanes)
        kept.store(0, value, lanes)
        with code.loop(width) as lane:
            self.out.store(place + lane, kept.load(lane))

    def _read(self, source: Memory, place: Any, width: int) -> Any:
        """A vector from `place` on; where less than a vector is wanted, nothing past that is read."""
        code, lanes = self.code, self.isa.lanes
        if width == lanes:
            return code.let(source.load(place, lanes))
        kept = code.local(lanes)
        kept.store(0, broadcast(0.0, lanes), lanes)
        with code.loop(width) as lane:
            kept.store(lane, source.load(place + lane))
        return code.let(kept.load(0, lanes))
