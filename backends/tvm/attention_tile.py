"""One tile of attention: queries whose heads share keys, of one token or of several, against all keys they see.

Running maximum m, sum l and accumulator a over steps of 64 keys (Milakov and Gimelshein 2018; Dao et al. 2022):

    s = q K^T;  m' = max(m, max s);  w = exp(s - m');  l = l exp(m - m') + sum w;  a = a exp(m - m') + w V;  out = a / l

    queries   [tile][d]       the tile's queries, scaled
    scores    [tile][64]      s, then w: key k of a step at k, steps begin at multiples of 64
    totals    [tile][lanes]   l as partial sums
    a         [tile][e]

The products q K^T and w V are in attention_products.py. The order of additions depends on the key's place alone, never
on the tile, and a key that a query does not see adds zeros: a query gives the same bits in any tile. A tile visits the
blocks of 16 keys that any of its queries sees. Where a query sees none of the first steps, m stays at the value that
masks, and what it sums up there is multiplied by zero as soon as it sees a key. Keys past the last position are masked;
the memory behind them belongs to the cache and holds finite numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.tvm.attention_cache import CacheReader
from slmopt.backends.tvm.attention_memory import Vectors, hold
from slmopt.backends.tvm.attention_products import STEP, Products
from slmopt.backends.tvm.cache import KEY_BLOCK
from slmopt.backends.tvm.code import Code, Memory
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.row_output import each_chunk
from slmopt.backends.tvm.vector_math import add_all, broadcast, exp, max_all, multiply_add, tanh
from slmopt.ir.types import Element

__all__ = ["AttentionShape", "Operands", "attend"]

_MASKED = -1e30
_PER_STEP = STEP // KEY_BLOCK
_SPARE = 4  # registers left for what is loaded


@dataclass(frozen=True)
class AttentionShape:
    """Sizes and options of a kernel."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    window: int | None
    softcap: float | None
    element: Element
    sink: int = 0  # first positions that every query sees, whatever the window
    kept: int | None = None  # caches are rings, of which so many blocks stay (cache.py)

    @property
    def together(self) -> int:
        """Heads that share keys."""
        return self.heads // self.kv_heads

    def one_token(self, isa: Isa) -> int:
        """Queries of one token that go together: all, or evenly parted where there are more than registers."""
        return -(-self.together // -(-self.together // _most(isa)))

    def tiles(self, isa: Isa) -> list[int]:
        """Numbers of queries that go together, largest first: as many as have registers, one token's heads, one."""
        most, one_token = _most(isa), self.one_token(isa)
        several = one_token if one_token < self.together else most
        return sorted({several, one_token, 1} if one_token > 1 else {several, max(1, most // 3), 1}, reverse=True)


def _most(isa: Isa) -> int:
    """Queries whose sums for two vectors of keys lie in registers."""
    return max(1, (isa.registers - _SPARE) // 2)


@dataclass(frozen=True)
class Operands:
    """The kernel's parameters. Rows are (token, head of those that share keys), tokens from `first` on."""

    out: Memory
    q: Memory
    keys: Memory
    values: Memory
    slopes: Memory | None
    sinks: Memory | None
    position: Any
    first: Any
    out_strides: tuple[Any, Any]
    q_strides: tuple[Any, Any]
    capacity: Any


def attend(
    code: Code, isa: Isa, shape: AttentionShape, operands: Operands, group: Any, row: Any, tile: int
) -> None:  # fmt: skip
    """Rows row .. row + tile of the heads that share the keys of `group`."""
    _Tile(code, isa, shape, operands, group, row, tile).run()


class _Tile:
    def __init__(
        self, code: Code, isa: Isa, shape: AttentionShape, operands: Operands, group: Any, row: Any, tile: int
    ) -> None:  # fmt: skip
        self.code, self.isa, self.shape, self.operands, self.tile = code, isa, shape, operands, tile
        self.group, self.row = hold(code, group), hold(code, row)
        self.head, self.here = code.local(tile, "int32"), code.local(tile, "int32")  # of each query; its position
        self.queries, self.scores = self._array(tile * shape.head_dim), self._array(tile * STEP)
        self.sums = self._array(tile * shape.value_dim)
        self.vectors = -(-tile // isa.lanes) * isa.lanes  # a number for each query, in whole vectors
        self.maxima, self.shrinks = self._array(self.vectors), self._array(self.vectors)
        self.totals = self._array(tile * isa.lanes)
        # Queries of one token wait for memory: the keys and values of the next step are fetched meanwhile.
        ahead = STEP if tile <= shape.one_token(isa) and isa.prefetch else 0
        self.products = Products(
            code, isa, tile, shape.one_token(isa),
            CacheReader(code, isa, operands.keys, shape.element, shape.head_dim, shape.kept, ahead),
            CacheReader(code, isa, operands.values, shape.element, shape.value_dim, shape.kept, ahead),
            self.group, operands.capacity,
        )  # fmt: skip

    def _array(self, size: int) -> Vectors:
        return Vectors(self.code, size, self.isa.lanes)

    def run(self) -> None:
        """All of it."""
        from tvm import tirx

        code, window = self.code, self.shape.window
        self._start()
        first: Any = 0  # block that the window begins in
        if window is not None:
            first = hold(code, tirx.floordiv(tirx.max(self.here.load(0) - (window - 1), 0), KEY_BLOCK))
        end = hold(code, tirx.floordiv(self.here.load(self.tile - 1), KEY_BLOCK) + 1)
        steps = tirx.floordiv(end + (_PER_STEP - 1), _PER_STEP)
        start = tirx.floordiv(first, _PER_STEP) if window is not None else 0
        early = -(-self.shape.sink // STEP)  # steps with keys that every query sees
        if early:
            start = hold(code, tirx.max(start, early))
        with code.loop(tirx.min(steps, early) + tirx.max(steps - start, 0) if early else steps - start) as i:
            step = hold(code, (tirx.Select(i < early, i, start - early + i) if early else start + i) * _PER_STEP)
            low: Any = 0 if window is None else hold(code, tirx.max(first - step, 0))
            last = end
            if early:  # in the early steps there is nothing to see between these keys and the window
                low = hold(code, tirx.Select(i < early, 0, low))
                ends = tirx.And(i < early, first >= step + _PER_STEP)
                last = tirx.Select(ends, -(-self.shape.sink // KEY_BLOCK), end)
            high = hold(code, tirx.min(last - step, _PER_STEP))
            self.products.score(self.queries, self.scores, step, low, high, end)
            self._weigh(step, low, high)
            self.products.accumulate(self.scores, self.shrinks, self.sums, step, low, high)
        self._finish()

    def _start(self) -> None:
        from tvm import tirx

        code, shape, operands, lanes = self.code, self.shape, self.operands, self.isa.lanes
        factor = broadcast(shape.scale, 1)
        for at in range(0, self.vectors, lanes):
            self.maxima.store(at, broadcast(_MASKED, lanes), lanes)
        with code.loop(self.tile) as h:
            row = code.let(self.row + h)
            token = code.let(operands.first + tirx.floordiv(row, shape.together))
            head = code.let(self.group * shape.together + tirx.floormod(row, shape.together))
            self.here.store(h, operands.position + token)
            self.head.store(h, head)
            self.totals.store(h * lanes, broadcast(0.0, lanes), lanes)
            if operands.sinks is not None:  # a sink is a key with this logit and no value
                self.maxima.store(h, operands.sinks.load(head))
                self.totals.store(h * lanes, broadcast(1.0, 1))
            source = code.let(token * operands.q_strides[0] + head * operands.q_strides[1])
            place = code.let(h * shape.head_dim)
            each_chunk(code, shape.head_dim, lanes, lambda at, lanes: self.queries.store(
                place + at, operands.q.load(source + at, lanes) * broadcast(factor, lanes), lanes
            ))  # fmt: skip
        size = self.tile * shape.value_dim
        each_chunk(code, size, lanes, lambda at, lanes: self.sums.store(at, broadcast(0.0, lanes), lanes))

    # --- w = exp(s - m') ---------------------------------------------------------------------------------------------
    def _weigh(self, step: Any, low: Any, high: Any) -> None:
        from tvm import tirx

        code, isa, lanes = self.code, self.isa, self.isa.lanes
        parts = KEY_BLOCK // lanes
        begin, count = (code.let(low * parts) if not isinstance(low, int) else low), code.let((high - low) * parts)
        with code.loop(self.tile) as h:
            here, row = code.let(self.here.load(h) - step * KEY_BLOCK), code.let(h * STEP)
            top = code.register(lanes, start=broadcast(code.let(self.maxima.load(h)), lanes))
            with code.loop(count) as i:
                key = code.let((begin + i) * lanes)
                score = code.let(self._adjust(self.scores.load(row + key, lanes), key, here, h, step))
                self.scores.store(row + key, score, lanes)
                top.set(tirx.max(top.value, score))
            self.shrinks.store(h, max_all(lanes, code.let(top.value)))
        for at in range(0, self.vectors, lanes):
            largest = code.let(self.shrinks.load(at, lanes))
            shrink = exp(isa, lanes, self.maxima.load(at, lanes) - largest, code.let)
            self.maxima.store(at, largest, lanes)
            self.shrinks.store(at, shrink, lanes)
        with code.loop(self.tile) as h:
            row, at = code.let(h * STEP + begin * lanes), code.let(h * lanes)
            largest = code.let(broadcast(self.maxima.load(h), lanes))
            total = code.register(lanes, start=broadcast(0.0, lanes))
            with code.loop(count) as i:
                place = code.let(row + i * lanes)
                weight = exp(isa, lanes, self.scores.load(place, lanes) - largest, code.let)
                self.scores.store(place, weight, lanes)
                total.set(total.value + weight)
            # Written as one operation: a compiler that may fuse a product and a sum does so in some tiles only.
            shrink = code.let(broadcast(self.shrinks.load(h), lanes))
            self.totals.store(at, multiply_add(isa, lanes, self.totals.load(at, lanes), shrink, total.value), lanes)

    def _adjust(self, value: Any, key: Any, here: Any, h: Any, step: Any) -> Any:
        """Soft cap, ALiBi and mask of the scores of the keys from `key` on; both count from the step's first key."""
        from tvm import tirx

        code, isa, lanes, shape = self.code, self.isa, self.isa.lanes, self.shape
        count = tirx.Ramp(tirx.const(0, "int32"), 1, lanes)
        distance = code.let(broadcast(hold(code, key - here), lanes) + count)  # key - query
        if shape.softcap is not None:
            capped = tanh(isa, lanes, value * broadcast(1.0 / shape.softcap, lanes), code.let)
            value = code.let(capped * broadcast(shape.softcap, lanes))
        if self.operands.slopes is not None:
            slope = broadcast(code.let(self.operands.slopes.load(self.head.load(h))), lanes)
            value = code.let(value + slope * tirx.Cast(f"float32x{lanes}", distance))
        masked = broadcast(_MASKED, lanes)
        value = tirx.Select(distance <= broadcast(0, lanes, "int32"), value, masked)
        if shape.window is None:
            return value
        far = masked
        if shape.sink:
            place = broadcast(hold(code, key + step * KEY_BLOCK), lanes) + count
            value = code.let(value)
            far = tirx.Select(place < broadcast(shape.sink, lanes, "int32"), value, masked)
        return tirx.Select(distance > broadcast(-shape.window, lanes, "int32"), value, far)

    def _finish(self) -> None:
        """out = a / l."""
        from tvm import tirx

        code, width, lanes = self.code, self.shape.value_dim, self.isa.lanes
        out_s0, out_s1 = self.operands.out_strides
        with code.loop(self.tile) as h:
            total = add_all(lanes, code.let(self.totals.load(h * lanes, lanes)))
            factor = code.let(broadcast(1.0, 1) / total)
            token = self.operands.first + tirx.floordiv(self.row + h, self.shape.together)
            place = code.let(token * out_s0 + self.head.load(h) * out_s1)
            row = code.let(h * width)
            each_chunk(code, width, lanes, lambda at, lanes: self.operands.out.store(
                place + at, self.sums.load(row + at, lanes) * broadcast(factor, lanes), lanes
            ))  # fmt: skip
