"""Matrix products: activations times packed weights, a block of outputs at a time.

    void k(float *out, const X *x, const uint8_t *w[, const float *bias][, const float *residual],
           int32_t t0, int32_t t1, int32_t lo, int32_t hi, int32_t out_stride, int32_t x_stride[, int32_t residual_stride])

computes out = activation(x W^T + bias) + residual for tokens t0..t1 and blocks lo..hi of outputs. One token: several
blocks are in flight, so that memory is read in several streams. More: a tile of tokens shares each weight that was
loaded and unpacked. `linear_body.py` has the inner products; packing.py draws the layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.linear_body import FloatBody, QuantizedBody
from slmopt.backends.tvm.packing import check_element
from slmopt.backends.tvm.vector_math import activate
from slmopt.ir.types import DType, Element

__all__ = ["linear"]


def linear(
    isa: Isa, element: Element, rows: int, columns: int, *, bias: bool = False, residual: bool = False,
    activation: str | None = None,
) -> Kernel:  # fmt: skip
    """The kernel for weights [rows, columns] of a type; x is float32 rows, or q8 rows where the weights are quantized."""
    check_element(element)
    options = [("bias", bias), ("residual", residual), (activation or "", activation is not None)]
    name = "_".join(["linear", str(element), f"{rows}x{columns}", *(label for label, on in options if on)])
    quantized = not isinstance(element, DType)
    parameters = ["float *out", "const uint8_t *x" if quantized else "const float *x", "const uint8_t *w"]
    parameters += ["const float *bias"] if bias else []
    parameters += ["const float *residual"] if residual else []
    numbers = ["t0", "t1", "lo", "hi", "out_stride", "x_stride", *(["residual_stride"] if residual else [])]
    parameters += [f"int32_t {number}" for number in numbers]
    return Kernel(
        name, tuple(parameters), lambda: _Builder(isa, element, rows, columns, bias, residual, activation).build(name)
    )


class _Builder:
    def __init__(
        self, isa: Isa, element: Element, rows: int, columns: int, bias: bool, residual: bool, activation: str | None
    ) -> None:
        self.isa, self.element, self.rows, self.columns = isa, element, rows, columns
        self.has_bias, self.has_residual, self.activation = bias, residual, activation

    def build(self, name: str) -> Any:
        """The PrimFunc."""
        from tvm import tirx

        code = self.code = Code(name)
        quantized = not isinstance(self.element, DType)
        self.out = code.pointer("out", "float32")
        self.x = code.pointer("x", "uint8" if quantized else "float32")
        self.w = code.pointer("w", "uint8")
        self.bias = code.pointer("bias", "float32") if self.has_bias else None
        self.residual = code.pointer("residual", "float32") if self.has_residual else None
        t0, t1, lo, hi, self.out_stride, self.x_stride = code.numbers("t0 t1 lo hi out_stride x_stride")
        self.residual_stride = code.number("residual_stride") if self.has_residual else None
        self.body: FloatBody | QuantizedBody = (
            FloatBody(code, self.isa, self.element, self.columns) if isinstance(self.element, DType)
            else QuantizedBody(code, self.isa, self.element, self.columns)
        )  # fmt: skip
        tokens = t1 - t0
        with code.when(tirx.EQ(tokens, 1)):
            self._blocks(lo, hi, self.body.streams, lambda block, count: self._tile(t0, 1, block, count))
        with code.when(tokens > 1):
            self._blocks(lo, hi, 1, lambda block, count: self._tokens(t0, tokens, block))
        return code.finish()

    def _blocks(self, lo: Any, hi: Any, streams: int, body: Callable[[Any, int], None]) -> None:
        """`body(first block, blocks)` over lo..hi in groups of `streams`, the rest one at a time."""
        from tvm import tirx

        code, count = self.code, hi - lo
        if streams > 1:
            # The streams are far apart: stream j walks its own part of lo..hi.
            part = code.let(tirx.floordiv(count, streams))
            with code.loop(part) as i:
                body([lo + i + part * j for j in range(streams)], streams)  # type: ignore[arg-type]
            with code.loop(count - part * streams) as i:
                body([lo + part * streams + i], 1)  # type: ignore[arg-type]
        else:
            with code.loop(count) as i:
                body([lo + i], 1)  # type: ignore[arg-type]

    def _tokens(self, t0: Any, tokens: Any, block: Any) -> None:
        """All tokens of one block, in tiles and single ones for the rest."""
        from tvm import tirx

        tile = self.isa.token_tile
        full = self.code.let(tirx.floordiv(tokens, tile))
        with self.code.loop(full) as i:
            self._tile(t0 + i * tile, tile, block, 1)
        with self.code.loop(tokens - full * tile) as i:
            self._tile(t0 + full * tile + i, 1, block, 1)

    def _tile(self, token: Any, tokens: int, blocks: Any, count: int) -> None:
        """`tokens` tokens from `token` on, times `count` blocks."""
        code, lanes = self.code, self.isa.lanes
        rows = [code.let((token + i) * self.x_stride) for i in range(tokens)]
        sums = self.body.products(self.x, rows, self.w, blocks)
        for j, block in enumerate(blocks):
            for i in range(tokens):
                self._finish(token + i, block, sums[j][i], lanes)

    def _finish(self, token: Any, block: Any, register: Register, lanes: int) -> None:
        """Bias, activation, residual, store; the last block may be cut."""
        from tvm import tirx

        code = self.code
        first = code.let(block * lanes)
        value = register.value
        if self.bias is not None and self.rows % lanes == 0:
            value = value + self.bias.load(first, lanes)
        if self.rows % lanes == 0:
            self._store(token, first, value, lanes)
            return
        whole = self.rows // lanes
        with code.when(block < whole):
            full = value if self.bias is None else value + self.bias.load(first, lanes)
            self._store(token, first, full, lanes)
        with code.when(tirx.EQ(block, whole)):
            kept: Memory = code.local(lanes)
            kept.store(0, register.value, lanes)
            for lane in range(self.rows % lanes):
                one = kept.load(lane) if self.bias is None else kept.load(lane) + self.bias.load(first + lane)
                self._store(token, first + lane, one, 1)

    def _store(self, token: Any, column: Any, value: Any, lanes: int) -> None:
        value = activate(self.isa, lanes, self.activation, value)
        if self.residual is not None:
            value = value + self.residual.load(token * self.residual_stride + column, lanes)
        self.out.store(token * self.out_stride + column, value, lanes)
