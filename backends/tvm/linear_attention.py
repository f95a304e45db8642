"""Linear attention from its state: one serial pass over the tokens of a step, linear in their number.

    void k(float *out, float *state, float *normalizer, const float *q, const float *k, const float *v, int32_t tokens,
           int32_t lo, int32_t hi, int32_t out_s0, int32_t out_s1, ... of q, k and v)

For a head of keys g and each of its tokens, one after the other, with f the feature map:

    S = S + f(k) v^T    z = z + f(k)    out[h] = f(q[h]) S / max(f(q[h]) . z, LEAST)    for the queries h that share g

    state       [g][d][e]
    normalizer  [g][panels][D]   D: d rounded up to whole vectors; each panel has a copy of its own

Rows of q, k, v and out lie at token * s0 + head * s1. Work units lo .. hi are panels: e / panels columns of the values
of one head of keys, that threads compute without looking at each other.

    fk    [tile][D]              f(k) of a tile of tokens, 0 behind d
    fq    [tile][together][D]    f(q) of the heads that share keys
    below [tile][together]       what divides

The columns of a panel go in vectors. A vector of S, row by row, is loaded once for a tile, and takes the tokens of it
in turn; the sums of all their queries lie in registers. A token gives the same bits in a tile of any size: the order of
additions is that of the rows of S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.tvm.attention_memory import hold
from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.row_output import each_chunk
from slmopt.backends.tvm.vector_math import add_all, broadcast, exp, multiply_add
from slmopt.errors import UnsupportedError
from slmopt.ir.ops.linear_attention import LEAST

__all__ = ["LinearAttention"]

_PANEL = 4  # vectors of a panel
_MOST = 8  # tokens of a tile
_SPARE = 3  # registers left for what is loaded
_NUMBERS = "tokens lo hi out_s0 out_s1 q_s0 q_s1 k_s0 k_s1 v_s0 v_s1"


@dataclass(frozen=True)
class LinearAttention:
    """Sizes of a kernel, and how its work is cut."""

    isa: Isa
    heads: int
    kv_heads: int
    size: int
    width: int
    feature: str

    @property
    def together(self) -> int:
        """Heads that share keys."""
        return self.heads // self.kv_heads

    @property
    def panels(self) -> int:
        """Parts of equal width that the values of a head are cut into."""
        wanted = -(-self.width // (_PANEL * self.isa.lanes))
        return next(count for count in range(wanted, 0, -1) if self.width % count == 0)

    @property
    def padded(self) -> int:
        """Numbers of a key, rounded up to whole vectors."""
        return -(-self.size // self.isa.lanes) * self.isa.lanes

    @property
    def normalizer_bytes(self) -> int:
        """Bytes of the normalizers."""
        return self.kv_heads * self.panels * self.padded * 4

    @property
    def tile(self) -> int:
        """Tokens whose values, and sums of all queries, have registers: a power of two."""
        tile = _MOST
        while tile > 1 and tile * (1 + self.together) + _SPARE > self.isa.registers:
            tile //= 2
        return tile

    def kernel(self) -> Kernel:
        """The kernel."""
        if self.feature != "elu1":
            raise UnsupportedError(f"no kernel for linear attention with the feature map {self.feature!r}")
        name = f"linear_attention_{self.feature}_{self.heads}x{self.kv_heads}x{self.size}x{self.width}"
        parameters = ["float *out", "float *state", "float *normalizer"]
        parameters += [f"const float *{row}" for row in "qkv"] + [f"int32_t {number}" for number in _NUMBERS.split()]
        return Kernel(name, tuple(parameters), lambda: _Writer(self, Code(name)).write())


class _Writer:
    def __init__(self, shape: LinearAttention, code: Code) -> None:
        self.shape, self.code, self.isa, self.lanes = shape, code, shape.isa, shape.isa.lanes
        self.out, self.state, self.normalizer, self.q, self.k, self.v = (
            code.pointer(name, "float32") for name in ("out", "state", "normalizer", "q", "k", "v")
        )
        self.tokens, self.lo, self.hi, *strides = code.numbers(_NUMBERS)
        self.strides = dict(zip("oqkv", zip(strides[::2], strides[1::2], strict=True), strict=True))
        self.fk = code.local(shape.tile * shape.padded)
        self.fq = code.local(shape.tile * shape.together * shape.padded)
        self.below = code.local(shape.tile * shape.together)

    def write(self) -> Any:
        """The PrimFunc."""
        from tvm import tirx

        code, shape = self.code, self.shape
        for memory, rows in ((self.fk, shape.tile), (self.fq, shape.tile * shape.together)):
            with code.loop(rows * shape.padded // self.lanes) as i:
                memory.store(i * self.lanes, broadcast(0.0, self.lanes), self.lanes)
        with code.loop(self.hi - self.lo) as i:
            unit = hold(code, self.lo + i)
            group = hold(code, tirx.floordiv(unit, shape.panels))
            column = hold(code, tirx.floormod(unit, shape.panels) * (shape.width // shape.panels))
            whole = hold(code, tirx.floordiv(self.tokens, shape.tile))
            with code.loop(whole) as j:
                self._tile(unit, group, column, hold(code, j * shape.tile), shape.tile)
            if shape.tile > 1:
                with code.loop(self.tokens - whole * shape.tile) as j:
                    self._tile(unit, group, column, hold(code, whole * shape.tile + j), 1)
        return code.finish()

    def _tile(self, unit: Any, group: Any, column: Any, first: Any, tile: int) -> None:
        """`tile` tokens from `first` on, the columns of a panel from `column` on."""
        code, shape = self.code, self.shape
        with code.loop(tile) as t:
            token = code.let(first + t)
            self._features(self.k, "k", (token, group), self.fk, code.let(t * shape.padded))
            with code.loop(shape.together) as h:
                place = code.let((t * shape.together + h) * shape.padded)
                self._features(self.q, "q", (token, code.let(group * shape.together + h)), self.fq, place)
            self._divide(unit, t)
        heads = range(shape.together)
        most = max(1, self.isa.registers - 1 - _SPARE) if tile == 1 else shape.together
        parts = [heads[start : start + most] for start in range(0, shape.together, most)]
        each_chunk(
            code, shape.width // shape.panels, self.lanes,
            lambda at, lanes: self._columns(group, code.let(column + at), lanes, first, tile, parts),
        )  # fmt: skip

    def _features(self, rows: Memory, name: str, row: tuple[Any, Any], out: Memory, place: Any) -> None:
        """f of a row, at `place`."""
        from tvm import tirx

        code, source = self.code, self._place(name, *row)

        def write(at: Any, lanes: int) -> None:
            x = code.let(rows.load(source + at, lanes))
            low = exp(self.isa, lanes, x, code.let)
            out.store(place + at, tirx.Select(x > broadcast(0.0, lanes), x + broadcast(1.0, lanes), low), lanes)

        each_chunk(code, self.shape.size, self.lanes, write)

    def _place(self, name: str, token: Any, head: Any) -> Any:
        """Where a row begins."""
        outer, inner = self.strides[name]
        return self.code.let(token * outer + head * inner)

    def _divide(self, unit: Any, t: Any) -> None:
        """z = z + f(k), and f(q) . z of every query of token t of the tile."""
        from tvm import tirx

        code, shape, lanes = self.code, self.shape, self.lanes
        vectors, base, row = shape.padded // lanes, code.let(unit * shape.padded), code.let(t * shape.padded)
        with code.loop(vectors) as i:
            at = code.let(base + i * lanes)
            self.normalizer.store(at, self.normalizer.load(at, lanes) + self.fk.load(row + i * lanes, lanes), lanes)
        with code.loop(shape.together) as h:
            query = code.let(t * shape.together + h)
            total = code.register(lanes, start=broadcast(0.0, lanes))
            with code.loop(vectors) as i:
                z = self.normalizer.load(base + i * lanes, lanes)
                f = self.fq.load(query * shape.padded + i * lanes, lanes)
                total.set(multiply_add(self.isa, lanes, f, z, total.value))
            found = code.let(add_all(lanes, code.let(total.value)))
            self.below.store(query, tirx.Select(found < LEAST, tirx.const(LEAST, "float32"), found))

    def _columns(self, group: Any, column: Any, lanes: int, first: Any, tile: int, parts: list[range]) -> None:
        """A vector of columns: S takes the tokens of the tile, and gives the sums of their queries."""
        code = self.code
        values = [code.let(self.v.load(self._place("v", first + t, group) + column, lanes)) for t in range(tile)]
        for part in parts:
            self._sum_rows(group, column, lanes, tile, part, values if part.start == 0 else [])
            for t in range(tile):
                for h in part:
                    place = self._place("o", first + t, group * self.shape.together + h)
                    below = code.let(broadcast(self.below.load(t * self.shape.together + h), lanes))
                    self.out.store(place + column, self.sums[t, h].value / below, lanes)

    def _sum_rows(
        self, group: Any, column: Any, lanes: int, tile: int, part: range, values: list[Any]
    ) -> None:  # fmt: skip
        """The sums f(q) S of some heads; S takes `values` on the way."""
        code, shape = self.code, self.shape
        zero = broadcast(0.0, lanes)
        self.sums = {(t, h): code.register(lanes, start=zero) for t in range(tile) for h in part}
        base = code.let(group * (shape.size * shape.width) + column)
        with code.loop(shape.size) as j:
            place = code.let(base + j * shape.width)
            row = code.let(self.state.load(place, lanes))
            for t in range(tile):
                if values:
                    key = code.let(broadcast(self.fk.load(t * shape.padded + j), lanes))
                    row = code.let(multiply_add(self.isa, lanes, key, values[t], row))
                for h in part:
                    query = broadcast(self.fq.load((t * shape.together + h) * shape.padded + j), lanes)
                    found = self.sums[t, h]
                    found.set(multiply_add(self.isa, lanes, query, row, found.value))
            if values:
                self.state.store(place, row, lanes)
