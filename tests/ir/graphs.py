"""Hypothesis strategies: random modules that keep every rule of the IR."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from slmopt.ir.dims import Dim
from slmopt.ir.graph import Attribute, Graph, Module, Operand, Value, Weight
from slmopt.ir.types import tensor

__all__ = ["modules"]

_NAMES = st.text("abcxyz_019", min_size=1, max_size=6)
_KEYS = st.one_of(
    st.from_regex(r"[A-Za-z_][A-Za-z_0-9.]{0,8}\Z"),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
)
_LOCATIONS = st.one_of(st.just(""), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
_ELEMENTS = st.sampled_from(["f32", "f16", "bf16", "q4g32", "q8c", "q4g32a", "q8g64"])
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False),
              st.text(st.characters(exclude_categories=["Cs"]), max_size=6)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def modules(draw: st.DrawFn) -> Module:
    """A module of one or two graphs over f32[b, s, k] values: token-wise ops, scalars, lists, states, any names."""
    weights: dict[str, Weight] = {}
    graphs = {draw(_KEYS): None for _ in range(draw(st.integers(1, 2)))}
    metadata = draw(st.dictionaries(st.text("abc", min_size=1, max_size=4), _JSON, max_size=3))
    return Module(draw(_KEYS), [_graph(draw, name, weights) for name in graphs], metadata=metadata)


def _graph(draw: st.DrawFn, name: str, weights: dict[str, Weight]) -> Graph:
    graph = Graph(name)
    widths = st.sampled_from([2, 4, 8])
    values = [graph.add_input(draw(_NAMES), tensor("f32", "b", "s", draw(widths)))]
    states = [graph.add_input(draw(_NAMES), tensor("f32", "b", draw(widths))) for _ in range(draw(st.integers(0, 2)))]
    graph.states = len(states)
    for _ in range(draw(st.integers(0, 8))):
        values.append(_add_op(draw, graph, draw(st.sampled_from(values)), weights))
    outputs = draw(st.lists(st.sampled_from(values), min_size=0 if states else 1, max_size=2))
    graph.set_outputs([*outputs, *states])
    return graph


def _add_op(draw: st.DrawFn, graph: Graph, x: Value, weights: dict[str, Weight]) -> Value:
    kind = draw(st.sampled_from(["silu", "gelu", "linear", "rms_norm", "add", "constant", "reshape", "permute"]))
    hint, location = draw(_NAMES), draw(_LOCATIONS)

    def add(name: str, operands: Sequence[Operand], **attributes: Attribute) -> Value:
        return graph.add(name, operands, attributes, hint=hint, location=location).result

    if kind == "gelu":
        return add(kind, [x], approximate=draw(st.booleans()))
    if kind == "linear":
        weight = _weight(draw, weights, (draw(st.sampled_from([2, 4, 8])), x.shape[-1]))
        return add(kind, [x, weight, None], act=draw(st.sampled_from([None, "q8"])), activation="silu")
    if kind == "rms_norm":
        absent: list[Operand] = [None] if draw(st.booleans()) else []
        return add(kind, [x, *absent], eps=draw(st.floats(allow_nan=False)))
    if kind == "add":
        return add(kind, [x, x])
    if kind == "constant":
        numbers = st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False))
        return add("mul", [x, add(kind, [], value=draw(numbers), element="f32")])
    if kind == "reshape":
        return add(kind, [add(kind, [x], shape=(x.shape[0] * x.shape[1], x.shape[2]))], shape=x.shape)
    if kind == "permute":
        return add(kind, [add(kind, [x], axes=(2, 0, 1))], axes=(1, 2, 0))
    return add(kind, [x])


def _weight(draw: st.DrawFn, weights: dict[str, Weight], shape: tuple[Dim, ...]) -> Weight:
    """A new weight, or one that has the shape already: aliasing."""
    same = [weight for weight in weights.values() if weight.type.shape == shape]
    reused: Weight | None = draw(st.sampled_from([None, *same]))
    if reused is not None:
        return reused
    key = draw(_KEYS.filter(lambda key: key not in weights))
    weights[key] = Weight(key, tensor(draw(_ELEMENTS), *shape))
    return weights[key]
