"""The two matrix products of attention on a tile of queries: q K^T and w V for a step of 64 keys.

    q K^T    in registers: tile x panel, a panel being one or two vectors of keys, summed over d in 1, 2 or 4 parts
    w V      in registers: tile x columns, columns being vectors of a row of values, summed over keys in 1, 2 or 4 parts

How many parts depends on the heads that share keys, never on the tile: few queries need several to hide the latency of
multiply-add. Where registers do not suffice, parts are computed one after another and added in the same order.

One load of a key or value vector, and its conversion to float32, serves every query of the tile. Codes are summed as
they are: scores of a group of 32 numbers are multiplied by the keys' scales, weights by the values' scales before use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from slmopt.backends.tvm.attention_cache import CacheReader
from slmopt.backends.tvm.attention_memory import Vectors, hold
from slmopt.backends.tvm.cache import KEY_BLOCK
from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.row_output import chunks
from slmopt.backends.tvm.vector_math import broadcast, multiply_add

__all__ = ["STEP", "Products"]

STEP = 64  # keys
_PANEL = 2  # vectors of keys side by side
_IN_FLIGHT = 8  # multiply-adds that hide their latency


@dataclass
class Products:
    """`tile` queries go together here, `few` where there is only one token."""

    code: Code
    isa: Isa
    tile: int
    few: int
    keys: CacheReader
    values: CacheReader
    group: Any
    capacity: Any
    scaled: Memory | None = field(init=False, default=None)  # weights multiplied by the scales of a group

    def __post_init__(self) -> None:
        if self.values.quantized:
            self.scaled = Vectors(self.code, self.tile * STEP, self.isa.lanes)

    # --- q K^T -------------------------------------------------------------------------------------------------------
    def score(self, queries: Memory, scores: Memory, step: Any, low: Any, high: Any, end: Any) -> None:
        """scores[h][k] = q . k for the keys k of blocks step + low .. step + high. `end`: blocks that may be read."""
        from tvm import tirx

        code, lanes = self.code, self.isa.lanes
        per_block = KEY_BLOCK // lanes
        panel = self._panel(self.tile)
        first = 0 if isinstance(low, int) else code.let(tirx.floordiv(low * per_block, panel))
        panels = code.let(tirx.floordiv(high * per_block + (panel - 1), panel) - first)
        with code.loop(panels) as i:
            vector = hold(code, (first + i) * panel)  # of the step
            places = []
            for v in range(panel):
                block = tirx.min(step + tirx.floordiv(vector + v, per_block), end - 1)
                lane = 0 if per_block == 1 else hold(code, tirx.floormod(vector + v, per_block) * lanes)
                places.append((self.keys.block(self.group, self.capacity, block), lane))
            for index, (start, count) in enumerate(self.keys.groups()):
                self._multiply_keys(queries, scores, hold(code, vector * lanes), places, (index, start, count))

    def _panel(self, tile: int) -> int:
        """Vectors of keys side by side. For few queries memory is the limit, and serves one stream faster than two."""
        return 1 if tile <= self.few else self._fit(tile, _PANEL)

    def _fit(self, tile: int, most: int) -> int:
        """How many vectors go beside `tile` queries, all sums and what is loaded for them being in registers."""
        while most > 1 and most * tile + min(tile, most) + 2 > self.isa.registers:
            most //= 2
        return most

    def _chains(self) -> int:
        """Partial sums of a score: the same for all tiles, so that the order of additions is."""
        return self._parts(self._panel(self.few))

    def _parts(self, vectors: int) -> int:
        """Partial sums that keep multiply-adds in flight, with `vectors` beside the queries of one token."""
        parts = 1
        while parts < 4 and parts * vectors * self.few < _IN_FLIGHT:
            parts *= 2
        return parts

    def _multiply_keys(
        self, queries: Memory, scores: Memory, column: Any, places: list[tuple[Any, Any]], group: tuple[int, int, int]
    ) -> None:  # fmt: skip
        """The products over the numbers of one group, put down at `column`, or added to what is there."""
        lanes, (index, start, count) = self.isa.lanes, group
        scales = [self.keys.scales(block, index, lane) for block, lane in places] if self.keys.quantized else []
        step = min(self._chains(), count)
        for chains in self._passes(len(places), step):
            sums = self._sum_products(queries, places, (start, count, step), chains)
            for h, v in product(range(self.tile), range(len(places))):
                place = h * STEP + column + v * lanes
                total = None if chains[0] == 0 and index == 0 else scores.load(place, lanes)
                for chain in chains:
                    value = sums[h, v, chain].value
                    if scales and total is not None:
                        total = multiply_add(self.isa, lanes, value, scales[v], total)
                    elif scales:
                        total = value * scales[v]
                    else:
                        total = value if total is None else total + value
                scores.store(place, total, lanes)

    def _passes(self, vectors: int, parts: int) -> list[range]:
        """The partial sums that are computed at once: all, or where registers do not suffice, one after another."""
        fits = parts * vectors * self.tile + min(self.tile, vectors) + 2 <= self.isa.registers
        return [range(parts)] if fits else [range(part, part + 1) for part in range(parts)]

    def _sum_products(
        self, queries: Memory, places: list[tuple[Any, Any]], numbers: tuple[int, int, int], chains: range
    ) -> dict[tuple[int, int, int], Register]:  # fmt: skip
        """The sums of queries and vectors of keys over the numbers start + chain, start + chain + step, ..."""
        code, isa, lanes, (start, count, step) = self.code, self.isa, self.isa.lanes, numbers
        sums = {
            (h, v, chain): code.register(lanes, start=broadcast(0.0, lanes))
            for h in range(self.tile) for v in range(len(places)) for chain in chains
        }  # fmt: skip

        def multiply(j: Any, chain: int) -> None:
            self._outer(
                len(places),
                lambda h: code.let(broadcast(queries.load(h * self.keys.size + j), lanes)),
                lambda v: self.keys.key(*places[v], j),
                lambda h, v, query, key: sums[h, v, chain].set(
                    multiply_add(isa, lanes, query, key, sums[h, v, chain].value)
                ),
            )

        with code.loop(count // step) as i:
            for chain in chains:
                multiply(code.let(start + i * step + chain), chain)
        for chain in chains:
            if chain < count % step:
                multiply(start + count - count % step + chain, chain)
        return sums

    def _outer(self, others: int, of_query: Any, of_other: Any, multiply: Any) -> None:
        """Every query by every other; what there are fewer of stays in registers."""
        if self.tile < others:
            queries = [of_query(h) for h in range(self.tile)]
            for v in range(others):
                other = of_other(v)
                for h in range(self.tile):
                    multiply(h, v, queries[h], other)
        else:
            loaded = [of_other(v) for v in range(others)]
            for h in range(self.tile):
                query = of_query(h)
                for v in range(others):
                    multiply(h, v, query, loaded[v])

    # --- a = a exp(m - m') + w V -------------------------------------------------------------------------------------
    def accumulate(self, weights: Memory, shrinks: Memory, sums: Memory, step: Any, low: Any, high: Any) -> None:
        """sums[h] = sums[h] shrink[h] + the weighted values of blocks step + low .. step + high."""
        lanes = self.isa.lanes
        blocks = (step, low, high)
        for index, (start, count) in enumerate(self.values.groups()):
            source = weights if self.scaled is None else self._scale_weights(weights, index, blocks)
            columns, whole = self._columns(count), count // lanes
            loops = whole // columns
            if loops > 1:
                with self.code.loop(loops) as i:
                    first = self.code.let(start + i * (columns * lanes))
                    parts: list[tuple[Any, int]] = [(first + c * lanes, lanes) for c in range(columns)]
                    self._accumulate_columns(source, shrinks, sums, blocks, parts)
            rest = [(at, lanes) for at in range(columns * lanes * (loops if loops > 1 else 0), whole * lanes, lanes)]
            rest += chunks(count, lanes)
            for i in range(0, len(rest), columns):
                part: list[tuple[Any, int]] = [(start + at, size) for at, size in rest[i : i + columns]]
                self._accumulate_columns(source, shrinks, sums, blocks, part)

    def _columns(self, count: int) -> int:
        """Vectors of a row of values side by side."""
        return self._fit(self.tile, 1 << (max(1, count // self.isa.lanes).bit_length() - 1))

    def _phases(self) -> int:
        """Partial sums over keys: the same for all tiles."""
        widest = max(count for _, count in self.values.groups())
        return self._parts(self._fit(self.few, 1 << (max(1, widest // self.isa.lanes).bit_length() - 1)))

    def _scale_weights(self, weights: Memory, group: int, blocks: tuple[Any, Any, Any]) -> Memory:
        """The weights multiplied by the scales of a group of the values."""
        code, lanes, (step, low, high) = self.code, self.isa.lanes, blocks
        scaled = self.scaled
        assert scaled is not None
        with code.loop(high - low) as i:
            block = self.values.block(self.group, self.capacity, step + low + i)
            for lane in range(0, KEY_BLOCK, lanes):
                scale = self.values.scales(block, group, lane)
                column = hold(code, (low + i) * KEY_BLOCK + lane)
                for h in range(self.tile):
                    place = h * STEP + column
                    scaled.store(place, weights.load(place, lanes) * scale, lanes)
        return scaled

    def _accumulate_columns(
        self, weights: Memory, shrinks: Memory, sums: Memory, blocks: tuple[Any, Any, Any],
        columns: list[tuple[Any, int]],
    ) -> None:  # fmt: skip
        """The accumulators of all queries at `columns` (first, lanes)."""
        code, width = self.code, self.values.size
        for phases in self._passes(len(columns), self._phases()):
            registers: dict[tuple[int, int, int], Register] = {}
            for h in range(self.tile):
                shrink = code.let(shrinks.load(h))
                for c, (at, lanes) in enumerate(columns):
                    for phase in phases:
                        first = broadcast(0.0, lanes)
                        if phase == 0:
                            first = sums.load(h * width + at, lanes) * broadcast(shrink, lanes)
                        registers[h, c, phase] = code.register(lanes, start=first)
            self._sum_values(weights, blocks, columns, phases, registers)
            for h in range(self.tile):
                for c, (at, lanes) in enumerate(columns):
                    found = [registers[h, c, phase].value for phase in phases]
                    before = [sums.load(h * width + at, lanes)] if phases[0] else []
                    sums.store(h * width + at, _add(before + found), lanes)

    def _sum_values(
        self, weights: Memory, blocks: tuple[Any, Any, Any], columns: list[tuple[Any, int]], phases: range,
        registers: dict[tuple[int, int, int], Register],
    ) -> None:  # fmt: skip
        """Add the weighted values of every key of the blocks to the register of its phase."""
        code, isa, count, (step, low, high) = self.code, self.isa, self._phases(), blocks
        with code.loop(high - low) as i:
            block = self.values.block(self.group, self.capacity, step + low + i)
            row = hold(code, (low + i) * KEY_BLOCK)
            with code.loop(KEY_BLOCK // count) as j:
                for phase in phases:
                    key = code.let(j * count + phase)

                    def multiply(h: int, c: int, weight: Any, value: Any, phase: int = phase) -> None:
                        lanes, register = columns[c][1], registers[h, c, phase]
                        register.set(multiply_add(isa, lanes, broadcast(weight, lanes), value, register.value))

                    self._outer(
                        len(columns),
                        lambda h, key=key: code.let(weights.load(h * STEP + row + key)),
                        lambda c, key=key: self.values.value(block, key, *columns[c]),
                        multiply,
                    )


def _add(values: list[Any]) -> Any:
    """Their sum, from the first to the last."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
