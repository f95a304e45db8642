"""One tile of attention: queries of one token whose heads share keys, against all keys they see.

Running maximum m, sum l and accumulator a over steps of 64 keys (Milakov and Gimelshein 2018; Dao et al. 2022):

    s = q K^T;  m' = max(m, max s);  w = exp(s - m');  l = l exp(m - m') + sum w;  a = a exp(m - m') + w V;  out = a / l

    scores    [tile][64]    one load of a key vector (16 keys side by side) feeds every query of the tile;
                            each dot product is 4 partial sums, to hide the latency of multiply-add
    a         [tile][d]     in memory between steps; within one, in registers: tile x columns x (even, odd keys)

The order of additions depends on the key's place alone, never on the tile: a query gives the same bits in any tile.
Every block of 16 keys that is visited has a visible key, so m is finite. Keys past p in the last block are masked; the
memory behind them belongs to the cache and holds finite numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmopt.backends.tvm.cache import KEY_BLOCK
from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.row_output import chunks, each_chunk
from slmopt.backends.tvm.vector_math import add_all, broadcast, exp, from_half, max_all, multiply_add, tanh
from slmopt.ir.types import DType

__all__ = ["AttentionShape", "Operands", "attend"]

_MASKED = -1e30
_BLOCKS = 4  # blocks of 16 keys in a step
_STEP = _BLOCKS * KEY_BLOCK
_CHAINS = 4  # partial sums of a dot product
_PHASES = 2  # partial sums over keys: even and odd
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
    element: DType

    def tile(self, isa: Isa) -> int:
        """Queries that go together: heads that share keys, as many as have registers for their dot products."""
        together = self.heads // self.kv_heads
        most = max(1, (isa.registers - _SPARE) // _CHAINS)
        return -(-together // -(-together // most))


@dataclass(frozen=True)
class Operands:
    """The kernel's parameters."""

    out: Memory
    q: Memory
    keys: Memory
    values: Memory
    slopes: Memory | None
    sinks: Memory | None
    position: Any
    out_strides: tuple[Any, Any]
    q_strides: tuple[Any, Any]
    capacity: Any


def attend(code: Code, isa: Isa, shape: AttentionShape, operands: Operands, unit: Any, tile: int) -> None:
    """Units unit .. unit + tile, which share keys."""
    _Tile(code, isa, shape, operands, unit, tile).run()


class _Tile:
    def __init__(self, code: Code, isa: Isa, shape: AttentionShape, operands: Operands, unit: Any, tile: int) -> None:
        from tvm import tirx

        self.code, self.isa, self.shape, self.operands, self.tile = code, isa, shape, operands, tile
        self.token = code.let(tirx.floordiv(unit, shape.heads))
        self.head = code.let(tirx.floormod(unit, shape.heads))
        self.here = code.let(operands.position + self.token)
        q_s0, self.q_stride = operands.q_strides
        self.query = code.let(self.token * q_s0 + self.head * self.q_stride)
        group = tirx.Cast("int64", tirx.floordiv(self.head, shape.heads // shape.kv_heads))
        self.base = code.let(group * tirx.Cast("int64", operands.capacity))
        self.scores = code.local(tile * _STEP)
        self.sums = code.local(tile * shape.value_dim)
        self.maxima, self.totals, self.shrinks = code.local(tile), code.local(tile), code.local(tile)

    def run(self) -> None:
        """All of it."""
        from tvm import tirx

        code, window = self.code, self.shape.window
        self._start()
        first: Any = 0
        if window is not None:
            first = code.let(tirx.floordiv(tirx.max(self.here - (window - 1), 0), KEY_BLOCK))
        end = code.let(tirx.floordiv(self.here, KEY_BLOCK) + 1)
        with code.loop(tirx.floordiv(end - first + (_BLOCKS - 1), _BLOCKS)) as step:
            block = code.let(first + step * _BLOCKS)
            count = code.let(tirx.min(end - block, _BLOCKS))
            self._score(block, count)
            self._weigh(count)
            self._accumulate(block, count)
        self._finish()

    def _start(self) -> None:
        code, sinks = self.code, self.operands.sinks
        for h in range(self.tile):  # a sink is a key with this logit and no value
            self.maxima.store(h, broadcast(_MASKED, 1) if sinks is None else sinks.load(self.head + h))
            self.totals.store(h, broadcast(0.0 if sinks is None else 1.0, 1))
        size = self.tile * self.shape.value_dim
        each_chunk(code, size, self.isa.lanes, lambda at, lanes: self.sums.store(at, broadcast(0.0, lanes), lanes))

    # --- s = q K^T ---------------------------------------------------------------------------------------------------
    def _score(self, block: Any, count: Any) -> None:
        from tvm import tirx

        code, lanes = self.code, self.isa.lanes
        with code.loop(count) as i, code.loop(KEY_BLOCK // lanes) as part:
            start = (self.base + tirx.Cast("int64", block + i) * KEY_BLOCK) * self.shape.head_dim
            products = self._multiply_keys(code.let(start + tirx.Cast("int64", part * lanes)))
            key = code.let((block + i) * KEY_BLOCK + part * lanes)
            distance = code.let(tirx.Ramp(key, 1, lanes) - broadcast(self.here, lanes, "int32"))  # key - query
            for h, product in enumerate(products):
                score = self._adjust(product, distance, h)
                self.scores.store(h * _STEP + i * KEY_BLOCK + part * lanes, score, lanes)

    def _multiply_keys(self, start: Any) -> list[Any]:
        """q . k of each query for the keys of one vector."""
        code, lanes, size = self.code, self.isa.lanes, self.shape.head_dim
        chains = min(_CHAINS, size)
        sums = [[code.register(lanes, start=broadcast(0.0, lanes)) for _ in range(chains)] for _ in range(self.tile)]

        def step(j: Any, chain: int) -> None:
            key = code.let(self._float(self.operands.keys.load(start + self._wide(j * KEY_BLOCK), lanes), lanes))
            for h in range(self.tile):
                value = broadcast(self.operands.q.load(self.query + h * self.q_stride + j), lanes)
                sums[h][chain].set(multiply_add(self.isa, lanes, value, key, sums[h][chain].value))

        with code.loop(size // chains) as j:
            for chain in range(chains):
                step(j * chains + chain, chain)
        for j in range(size - size % chains, size):
            step(j, j % chains)
        return [code.let(_tree([register.value for register in of_query])) for of_query in sums]

    def _adjust(self, score: Any, distance: Any, h: int) -> Any:
        """Scale, soft cap, ALiBi and mask."""
        from tvm import tirx

        code, isa, lanes, shape = self.code, self.isa, self.isa.lanes, self.shape
        value = score * broadcast(shape.scale, lanes)
        if shape.softcap is not None:
            capped = tanh(isa, lanes, value * broadcast(1.0 / shape.softcap, lanes), code.let)
            value = code.let(capped * broadcast(shape.softcap, lanes))
        if self.operands.slopes is not None:
            slope = broadcast(self.operands.slopes.load(self.head + h), lanes)
            value = code.let(value + slope * tirx.Cast(f"float32x{lanes}", distance))
        seen = distance <= broadcast(0, lanes, "int32")
        value = tirx.Select(seen, value, broadcast(_MASKED, lanes))
        if shape.window is not None:
            value = tirx.Select(distance > broadcast(-shape.window, lanes, "int32"), value, broadcast(_MASKED, lanes))
        return value

    # --- w = exp(s - m') ---------------------------------------------------------------------------------------------
    def _weigh(self, count: Any) -> None:
        from tvm import tirx

        code, isa, lanes = self.code, self.isa, self.isa.lanes
        vectors = code.let(count * (KEY_BLOCK // lanes))
        with code.loop(self.tile) as h:
            row = code.let(h * _STEP)
            before = code.let(self.maxima.load(h))
            top = code.register(lanes, start=broadcast(before, lanes))
            with code.loop(vectors) as i:
                top.set(tirx.max(top.value, self.scores.load(row + i * lanes, lanes)))
            largest = code.let(max_all(lanes, code.let(top.value)))
            total = code.register(lanes, start=broadcast(0.0, lanes))
            with code.loop(vectors) as i:
                place = code.let(row + i * lanes)
                weight = exp(isa, lanes, self.scores.load(place, lanes) - broadcast(largest, lanes), code.let)
                self.scores.store(place, weight, lanes)
                total.set(total.value + weight)
            shrink = exp(isa, 1, before - largest, code.let)
            self.maxima.store(h, largest)
            self.shrinks.store(h, shrink)
            self.totals.store(h, self.totals.load(h) * shrink + add_all(lanes, code.let(total.value)))

    # --- a = a exp(m - m') + w V -------------------------------------------------------------------------------------
    def _accumulate(self, block: Any, count: Any) -> None:
        from tvm import tirx

        code, lanes, width = self.code, self.isa.lanes, self.shape.value_dim
        start = code.let((self.base + tirx.Cast("int64", block) * KEY_BLOCK) * width)
        columns = max(1, (self.isa.registers - _SPARE) // (self.tile * _PHASES))
        columns = min(1 << (columns.bit_length() - 1), max(1, width // lanes))
        whole = width // (columns * lanes)
        if whole:
            with code.loop(whole) as i:
                first = code.let(i * (columns * lanes))
                self._accumulate_columns(start, count, [(first + c * lanes, lanes) for c in range(columns)])
        rest = [(at, lanes) for at in range(whole * columns * lanes, width - width % lanes, lanes)]
        rest += chunks(width, lanes)
        for i in range(0, len(rest), columns):
            self._accumulate_columns(start, count, rest[i : i + columns])

    def _accumulate_columns(self, start: Any, count: Any, columns: list[tuple[Any, int]]) -> None:
        """The accumulators of all queries at `columns` (first, lanes)."""
        code, isa, width = self.code, self.isa, self.shape.value_dim
        registers: dict[tuple[int, int, int], Register] = {}
        for h in range(self.tile):
            shrink = code.let(self.shrinks.load(h))
            for c, (at, lanes) in enumerate(columns):
                shrunk = self.sums.load(h * width + at, lanes) * broadcast(shrink, lanes)
                registers[h, c, 0] = code.register(lanes, start=shrunk)
                for phase in range(1, _PHASES):
                    registers[h, c, phase] = code.register(lanes, start=broadcast(0.0, lanes))
        with code.loop(count * (KEY_BLOCK // _PHASES)) as pair:
            for phase in range(_PHASES):
                key = code.let(pair * _PHASES + phase)
                row = code.let(start + self._wide(key) * width)
                loaded = [self._value(row, at, lanes) for at, lanes in columns]
                for h in range(self.tile):
                    weight = code.let(self.scores.load(h * _STEP + key))
                    for c, (_, lanes) in enumerate(columns):
                        register = registers[h, c, phase]
                        register.set(multiply_add(isa, lanes, broadcast(weight, lanes), loaded[c], register.value))
        for h in range(self.tile):
            for c, (at, lanes) in enumerate(columns):
                found = _tree([registers[h, c, phase].value for phase in range(_PHASES)])
                self.sums.store(h * width + at, found, lanes)

    def _value(self, row: Any, at: Any, lanes: int) -> Any:
        return self.code.let(self._float(self.operands.values.load(row + self._wide(at), lanes), lanes))

    def _finish(self) -> None:
        """out = a / l."""
        code, width = self.code, self.shape.value_dim
        out_s0, out_s1 = self.operands.out_strides
        with code.loop(self.tile) as h:
            factor = code.let(broadcast(1.0, 1) / self.totals.load(h))
            place = code.let(self.token * out_s0 + (self.head + h) * out_s1)
            row = code.let(h * width)
            each_chunk(code, width, self.isa.lanes, lambda at, lanes: self.operands.out.store(
                place + at, self.sums.load(row + at, lanes) * broadcast(factor, lanes), lanes
            ))  # fmt: skip

    def _float(self, value: Any, lanes: int) -> Any:
        from tvm import tirx

        if self.shape.element == DType.f32:
            return value
        return from_half(self.isa, lanes, tirx.reinterpret("uint16" if lanes == 1 else f"uint16x{lanes}", value))

    def _wide(self, index: Any) -> Any:
        from tvm import tirx

        return index if isinstance(index, int) else tirx.Cast("int64", index)


def _tree(values: list[Any]) -> Any:
    """Their sum, pairwise."""
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=False)] + values[len(values) // 2 * 2 :]
    return values[0]
