"""Repeated blocks: layers are found by structure alone, whatever modules are called and whatever the layers share."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

import slmopt
from slmopt.ir.blocks import Repetition, find_blocks
from slmopt.ir.graph import Attribute, Graph, Op, Operand, Value, Weight
from slmopt.ir.types import tensor
from slmopt.ir.verify import verify_graph
from tests.stories import MODEL, needs_stories


@dataclass(frozen=True)
class Layer:
    """What tells one layer of the toy model from another."""

    window: int | None = None
    inner: int = 12
    rotary: bool = True
    weights: str = ""
    primitive: bool = False


def model(layers: Sequence[Layer], *, named: bool = True, tapped: int | None = None) -> Graph:
    """A model of layers: attention and gated unit, one cosine table for all; `tapped`: that layer is returned too."""
    graph = Graph("forward")
    x = graph.add("embedding", [graph.add_input("ids", tensor("i64", "b", "s")), _weight("e", 20, 8)]).result
    positions = graph.add("cast", [graph.add("arange", [], {"stop": x.shape[1], "element": "i64"}).result],
                          {"element": "f32"}).result  # fmt: skip
    angles = graph.add("reshape", [positions], {"shape": (1, 1, x.shape[1], 1)}).result
    angles = graph.add("mul", [angles, Weight("frequencies", tensor("f32", 8))]).result
    tables = [graph.add(name, [angles]).result for name in ("cos", "sin")]
    outputs = []
    for index, layer in enumerate(layers):
        place = f"model.layers.{index}" if named else ""
        x = _layer(graph, x, tables, layer, layer.weights or f"layers.{index}", place)
        if index == tapped:
            outputs.append(x)
    x = graph.add("rms_norm", [x, Weight("norm", tensor("f32", 8))], {"eps": 1e-5}).result
    graph.set_outputs([graph.add("linear", [x, _weight("head", 20, 8)]).result, *outputs])
    graph.erase_dead()
    return graph


def _weight(key: str, rows: int, columns: int) -> Weight:
    return Weight(key, tensor("f32", rows, columns))


def _layer(graph: Graph, x: Value, tables: list[Value], layer: Layer, key: str, place: str) -> Value:
    def add(name: str, *operands: Operand, part: str = "", **attributes: Attribute) -> Value:
        location = f"{place}.{part}" if place and part else place
        return graph.add(name, operands, attributes, location=location).result

    def norm(x: Value, part: str) -> Value:
        if not layer.primitive:
            return add("rms_norm", x, Weight(f"{key}.{part}", tensor("f32", 8)), part=part, eps=1e-5)
        square = add("mean", add("mul", x, x, part=part), part=part, axis=2)
        scale = add("rsqrt", add("add", square, add("constant", value=1e-5, element="f32", part=part)), part=part)
        return add("mul", Weight(f"{key}.{part}", tensor("f32", 8)), add("mul", x, scale, part=part), part=part)

    b, s, _ = x.shape
    normed = norm(x, "norm1")
    heads = [
        add("reshape", add("linear", normed, _weight(f"{key}.{name}", 8, 8), part="attention"), shape=(b, 1, s, 8))
        for name in "qkv"
    ]
    if layer.rotary:
        heads[:2] = [add("rope", head, *tables, part="attention") for head in heads[:2]]
    mixed = add("attention", *heads, scale=0.35, window=layer.window, part="attention")
    mixed = add("reshape", mixed, shape=(b, s, 8))
    x = add("add", x, add("linear", mixed, _weight(f"{key}.o", 8, 8), part="attention"))
    normed = norm(x, "norm2")
    gate, up = (add("linear", normed, _weight(f"{key}.{n}", layer.inner, 8), part="mlp") for n in ("gate", "up"))
    down = add("linear", add("glu", gate, up, part="mlp"), _weight(f"{key}.down", 8, layer.inner), part="mlp")
    return add("add", x, down)


def names(repetitions: Sequence[Repetition]) -> list[list[str]]:
    return [[block.name.removeprefix("model.layers.") for block in found.instances] for found in repetitions]


def check_instances(graph: Graph, repetition: Repetition) -> None:
    """Instances correspond op by op, operand by operand; no op is in two of them; their borders are as said."""
    first = repetition.instances[0]
    seen: set[int] = set()
    for block in repetition.instances:
        assert not seen & set(map(id, block.ops))
        seen |= set(map(id, block.ops))
        mapping = dict(zip(_values(first.ops, first.inputs), _values(block.ops, block.inputs), strict=True))
        for op, other in zip(first.ops, block.ops, strict=True):
            assert op.name == other.name
            for left, right in zip(op.operands, other.operands, strict=True):
                assert type(left) is type(right)
                assert not isinstance(left, Value) or mapping[left] is right
        assert [mapping[value] for value in first.outputs] == list(block.outputs)
        inside = set(map(id, block.ops))
        assert all(value.op is None or id(value.op) not in inside for value in block.inputs)
        for value in (value for op in block.ops for value in op.results):
            outside = value in graph.outputs or any(id(use.op) not in inside for use in value.uses)
            assert outside == (value in block.outputs)
        assert {o.key for op in block.ops for o in op.operands if isinstance(o, Weight)} == set(block.weights)
        assert len(block.weights) == len(first.weights)


def _values(ops: Sequence[Op], inputs: Sequence[Value]) -> list[Value]:
    return [*inputs, *(value for op in ops for value in op.results)]


FULL, WINDOW, NARROW = Layer(), Layer(window=4), Layer(inner=10)


@pytest.mark.parametrize("primitive", [False, True])
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([FULL] * 2, [["0", "1"]]),
        ([FULL] * 5, [["0", "1", "2", "3", "4"]]),
        ([FULL], []),
        ([], []),
        ([FULL, WINDOW] * 2, [["0", "2"], ["1", "3"]]),
        ([WINDOW, WINDOW, FULL] * 2, [["0", "1", "3", "4"], ["2", "5"]]),
        ([FULL, NARROW], []),
        ([FULL, NARROW, FULL], [["0", "2"]]),
        ([Layer(), Layer(), Layer(rotary=False)] * 2, [["0", "1", "3", "4"], ["2", "5"]]),
        ([Layer(weights="shared")] * 3, [["0", "1", "2"]]),
    ],
)
def test_layers_are_found(layers: list[Layer], expected: list[list[str]], primitive: bool) -> None:
    graph = model([replace(layer, primitive=primitive) for layer in layers])
    found = find_blocks(graph)
    assert names(found) == expected
    for repetition in found:
        check_instances(graph, repetition)


def test_blocks_of_unequal_width_are_one_repetition_up_to_sizes() -> None:
    graph = model([FULL, NARROW, Layer(inner=7), WINDOW])
    assert find_blocks(graph) == ()
    (found,) = find_blocks(graph, sizes=False)
    assert names([found]) == [["0", "1", "2"]]  # whether there is a window is no size
    check_instances(graph, found)


def test_names_do_not_matter() -> None:
    graph = model([FULL] * 3, named=False)
    (found,) = find_blocks(graph)
    assert [block.name for block in found.instances] == ["block#0", "block#1", "block#2"]
    assert [len(block.ops) for block in found.instances] == [19] * 3


def test_shared_weights_stay_shared() -> None:
    (found,) = find_blocks(model([Layer(weights="shared")] * 3))
    assert len({block.weights for block in found.instances}) == 1


def test_tables_that_all_layers_read_are_inputs_of_each() -> None:
    (found,) = find_blocks(model([FULL] * 3))
    last_two = [[value.name for value in block.inputs[1:]] for block in found.instances]
    assert last_two == [["cos", "sin"]] * 3
    assert all(len(block.outputs) == 1 for block in found.instances)


def test_a_layer_whose_inside_is_returned_is_another_block() -> None:
    graph = model([FULL] * 4, tapped=1)
    for repetition in find_blocks(graph):
        check_instances(graph, repetition)


def test_the_result_does_not_depend_on_the_order_of_independent_ops() -> None:
    graph = model([FULL, WINDOW] * 2)
    for seed in range(5):
        shuffled = _shuffle(graph, random.Random(seed))
        verify_graph(shuffled)
        found = find_blocks(shuffled)
        assert names(found) == [["0", "2"], ["1", "3"]]
        assert [[op.describe() for op in r.instances[0].ops] for r in found] == [
            [op.describe() for op in r.instances[0].ops] for r in find_blocks(graph)
        ]


def _shuffle(graph: Graph, generator: random.Random) -> Graph:
    """A copy whose ops stand in another order that is allowed as well."""
    shuffled = graph.copy()
    waiting, done = list(shuffled.walk()), set(map(id, shuffled.inputs))
    anchor = shuffled.add("constant", [], {"value": 0.0, "element": "f32"})
    while waiting:
        ready = [op for op in waiting if all(not isinstance(o, Value) or id(o) in done for o in op.operands)]
        op = generator.choice(ready)
        waiting.remove(op)
        done |= set(map(id, op.results))
        shuffled.move(op, before=anchor)
    shuffled.erase(anchor)
    return shuffled


def test_two_hundred_layers_of_primitives_take_seconds() -> None:
    graph = model([Layer(primitive=True)] * 200)
    start = time.monotonic()
    (found,) = find_blocks(graph)
    assert len(found.instances) == 200
    assert time.monotonic() - start < 10


@needs_stories
def test_the_layers_of_a_real_model() -> None:
    traced = slmopt.load(MODEL)
    for module in (traced, slmopt.optimize(traced, "f32", verify=False), slmopt.optimize(traced, "w4", verify=False)):
        for graph in module.graphs.values():
            (found,) = find_blocks(graph)
            assert names([found]) == [["0", "1", "2", "3", "4"]]
            check_instances(graph, found)
