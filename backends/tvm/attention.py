"""Attention over the caches (layouts: cache.py), online softmax over steps of 64 keys, queries in tiles.

    void k(float *out, const float *q, const T *keys, const T *values[, const float *slopes][, const float *sinks],
           int32_t first, int32_t tokens, int32_t position, int32_t lo, int32_t hi, int32_t out_s0, int32_t out_s1,
           int32_t q_s0, int32_t q_s1, int32_t capacity)

Queries of tokens first .. tokens are computed; the one at absolute position p = position + token sees keys
max(0, p - window + 1) .. p, and the keys below `sink`. Caches may be rings: blocks of keys are visited in the order of
their positions all the same, only their places in memory are others. Queries that read the keys of one head (a group)
are rows, token by token, and go in tiles of neighbours (attention_tile.py), so that keys and values are loaded once for
a tile:

    row = (token - first) * together + head      together = heads / kv_heads

Work units lo .. hi count from first * heads to tokens * heads: group by group, the tiles of a group in the order

    0, n - 1, 1, n - 2, ...      n tiles; the one in the middle, which comes last, may be short

since late tokens see more keys: wherever threads cut this order, they get like amounts of work. Tiles that they cut are
computed as smaller ones, with the same arithmetic.
"""

from __future__ import annotations

from typing import Any

from slmopt.backends.tvm.attention_memory import hold
from slmopt.backends.tvm.attention_tile import AttentionShape, Operands, attend
from slmopt.backends.tvm.cache import C_TYPES, STORED
from slmopt.backends.tvm.code import Code
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel
from slmopt.ir.types import DType, Element

__all__ = ["attention"]

_NUMBERS = "first tokens position lo hi out_s0 out_s1 q_s0 q_s1 capacity"


def attention(
    isa: Isa, *, heads: int, kv_heads: int, head_dim: int, value_dim: int, scale: float, window: int | None = None,
    softcap: float | None = None, slopes: bool = False, sinks: bool = False, element: Element = DType.f32,
    sink: int = 0, kept: int | None = None,
) -> Kernel:  # fmt: skip
    """The kernel for grouped-query attention over caches of f32, f16 or q8g32.

    `softcap`: scores become c tanh(s / c); `slopes`: ALiBi; `sinks`: a logit per head that has no value. `sink`: first
    positions seen besides the window; `kept`: caches are rings of which so many blocks stay.
    """
    shape = AttentionShape(heads, kv_heads, head_dim, value_dim, scale, window, softcap, element, sink, kept)
    labels = (("s", scale), ("w", window), ("first", sink or None), ("c", softcap), ("ring", kept))
    numbers = [f"{label}{_plain(value)}" for label, value in labels if value is not None]
    options = [label for label, on in (("slopes", slopes), ("sinks", sinks)) if on]
    name = "_".join(["attention", str(element), f"{heads}x{kv_heads}x{head_dim}x{value_dim}", *numbers, *options])
    c_type = C_TYPES[str(element)]
    parameters = ["float *out", "const float *q", f"const {c_type} *keys", f"const {c_type} *values"]
    parameters += [f"const float *{label}" for label in options] + [f"int32_t {number}" for number in _NUMBERS.split()]
    return Kernel(name, tuple(parameters), lambda: _build(name, isa, shape, slopes, sinks))


def _plain(value: float) -> str:
    text = float(value).hex() if isinstance(value, float) else str(value)
    return text.replace(".", "_").replace("-", "m").replace("+", "p")


def _build(name: str, isa: Isa, shape: AttentionShape, slopes: bool, sinks: bool) -> Any:
    code = Code(name)
    out, q = code.pointer("out", "float32"), code.pointer("q", "float32")
    keys, values = code.pointer("keys", STORED[str(shape.element)]), code.pointer("values", STORED[str(shape.element)])
    slope_table = code.pointer("slopes", "float32") if slopes else None
    sink_table = code.pointer("sinks", "float32") if sinks else None
    first, tokens, position, lo, hi, out_s0, out_s1, q_s0, q_s1, capacity = code.numbers(_NUMBERS)
    operands = Operands(
        out, q, keys, values, slope_table, sink_table, position, first, (out_s0, out_s1), (q_s0, q_s1), capacity
    )
    _walk(code, isa, shape, operands, tokens, lo, hi)
    return code.finish()


def _walk(code: Code, isa: Isa, shape: AttentionShape, operands: Operands, tokens: Any, lo: Any, hi: Any) -> None:
    """Units lo..hi, cut into tiles."""
    from tvm import tirx

    tiles = shape.tiles(isa)
    rows = hold(code, tirx.max((tokens - operands.first) * shape.together, 1))  # of a group
    start, end = hold(code, lo - operands.first * shape.heads), hold(code, hi - operands.first * shape.heads)
    first = hold(code, tirx.floordiv(start, rows))
    with code.loop(tirx.floordiv(end - 1, rows) + 1 - first) as i:
        group = hold(code, first + i)
        begin, stop = hold(code, tirx.max(start - group * rows, 0)), hold(code, tirx.min(end - group * rows, rows))
        place = hold(code, tirx.floordiv(begin, tiles[0]))
        with code.loop(tirx.max(tirx.floordiv(stop + (tiles[0] - 1), tiles[0]) - place, 0)) as j:
            _attend_segment(code, isa, shape, operands, group, (place + j, begin, stop, rows))


def _attend_segment(
    code: Code, isa: Isa, shape: AttentionShape, operands: Operands, group: Any, segment: tuple[Any, Any, Any, Any]
) -> None:  # fmt: skip
    """The rows of the tile at a place of the folded order, of those from begin to stop in that order."""
    from tvm import tirx

    tiles = shape.tiles(isa)
    place, begin, stop, rows = segment
    count = hold(code, tirx.floordiv(rows + (tiles[0] - 1), tiles[0]))
    tile = hold(code, tirx.Select(tirx.floormod(place, 2).equal(0), 0, count - 1) +
                    tirx.Select(tirx.floormod(place, 2).equal(0), 1, -1) * tirx.floordiv(place, 2))  # fmt: skip
    before = tirx.Select(tile <= tirx.floordiv(count, 2), tile * tiles[0], rows - (count - tile) * tiles[0])
    offset = hold(code, before - place * tiles[0])  # from the folded order to rows
    row = hold(code, tirx.max(begin, place * tiles[0]) + offset)
    last = hold(code, tirx.min(stop, (place + 1) * tiles[0]) + offset)
    for size in tiles:
        whole = hold(code, tirx.floordiv(last - row, size))
        with code.loop(whole) as i:
            attend(code, isa, shape, operands, group, hold(code, row + i * size), size)
        row = hold(code, row + whole * size)
