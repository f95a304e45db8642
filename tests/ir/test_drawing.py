"""Pictures: every op is in them, repeated blocks once, arrows point down, files need nothing else."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmopt.ir.blocks import Block
from slmopt.ir.drawing import draw_html, draw_svg
from slmopt.ir.drawing.arrange import arrange
from slmopt.ir.drawing.folding import Fold, fold_runs
from slmopt.ir.drawing.levels import arrange_levels
from slmopt.ir.drawing.scene import Box, build_scene
from slmopt.ir.graph import Graph, Value
from slmopt.ir.types import tensor
from tests.ir.test_blocks import FULL, NARROW, WINDOW, Layer, model

SVG = "{http://www.w3.org/2000/svg}"
MODELS = {
    "one": [FULL], "five": [FULL] * 5, "alternating": [FULL, WINDOW] * 3, "pattern": [WINDOW, WINDOW, FULL] * 2,
    "unequal": [FULL, NARROW, Layer(inner=7)], "primitive": [Layer(primitive=True)] * 3, "mixed": [FULL, WINDOW, FULL],
}  # fmt: skip


def boxes(box: Box) -> Iterator[Box]:
    yield box
    for child in box.children:
        yield from boxes(child)


@pytest.mark.parametrize("modules", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_op_is_drawn_once_and_reads_what_it_reads(name: str, modules: bool) -> None:
    graph = model(MODELS[name])
    scene = build_scene(graph, modules=modules)
    leaves = [leaf for box in scene.boxes for leaf in box.leaves()]
    texts = [line for leaf in leaves for line in leaf.details]
    for op in graph.walk():
        written = [line for line in texts if line.startswith(f"%{op.results[0].name} = ")]
        assert len(written) == (0 if op.name == "constant" else 1), op
    assert sum(line.startswith("input ") for line in texts) == len(graph.inputs)
    found = {leaf.number: leaf for leaf in leaves}
    assert all(arrow.source in found and arrow.target in found for arrow in scene.arrows)
    for arrow in scene.arrows:  # some instance of the source is an operand of some instance of the target
        source = {re.findall(r"%\w+", line)[0] for line in found[arrow.source].details}
        assert any(re.search(rf"{name}\b", line) for name in source for line in found[arrow.target].details)


def test_repeated_blocks_are_folded() -> None:
    titles = {
        name: [box.lines[0] for top in build_scene(model(layers)).boxes for box in boxes(top) if box.children]
        for name, layers in MODELS.items()
    }
    assert titles == {
        "one": [], "five": ["model.layers.0 … 4 × 5"], "primitive": ["model.layers.0 … 2 × 3"],
        "alternating": ["model.layers.0 … model.layers.1 × 3", "model.layers.0", "model.layers.1"],
        "pattern": ["model.layers.0 … model.layers.2 × 2", "model.layers.0 … 1 × 2", "model.layers.2"],
        "unequal": ["model.layers.0 … 2 × 3, of other sizes"], "mixed": ["model.layers.0", "model.layers.2"],
    }  # fmt: skip


def test_modules_are_groups_inside_blocks() -> None:
    (block,) = [box for box in build_scene(model([FULL] * 5), modules=True).boxes if box.count == 5]
    assert [box.lines[0] for box in block.children if box.children] == ["attention", "mlp"]


@given(st.lists(st.integers(0, 2), max_size=12))
def test_folds_unfold_to_the_blocks(kinds: list[int]) -> None:
    values = [Value(f"v{index}", tensor("f32", 4)) for index in range(len(kinds) + 1)]
    blocks = [
        (Block(f"layers.{index}", (), (values[index],), (values[index + 1],), ()), kind)
        for index, kind in enumerate(kinds)
    ]

    def unfold(folds: list[Fold]) -> list[int]:
        found: list[int] = []
        for fold in folds:
            inside = unfold(fold.children) if fold.block is None else [dict(blocks)[fold.block]]
            outer = fold.count if fold.block is None else 1
            found += inside * outer
        return found

    folds = fold_runs(blocks)
    held = [block for fold in _leaves(folds) for block in (fold.block, *fold.same)]
    assert sorted(block.name for block in held if block) == sorted(block.name for block, _ in blocks)
    for fold in _leaves(folds):
        assert len({dict(blocks)[block] for block in (fold.block, *fold.same) if block}) == 1
    assert set(unfold(folds)) == set(kinds)


def _leaves(folds: list[Fold]) -> list[Fold]:
    return [leaf for fold in folds for leaf in (_leaves(fold.children) if fold.children else [fold])]


@given(st.integers(1, 12), st.data())
def test_arrows_point_down_through_every_row(size: int, data: st.DataObject) -> None:
    nodes = list(range(1, size + 1))
    pairs = st.tuples(st.sampled_from(nodes), st.sampled_from(nodes))
    arrows = data.draw(st.lists(pairs, max_size=30))
    found = arrange(nodes, arrows)
    place = {node: index for index, row in enumerate(found.rows) for node in row}
    assert sorted(node for node in place if node > 0) == nodes
    assert len(place) == sum(map(len, found.rows))
    for (source, target), route in found.routes.items():
        assert (route[0], route[-1]) == (source, target)
        assert [place[stop] for stop in route] == list(range(place[source], place[target] + 1))
    if all(source < target for source, target in arrows):
        assert set(found.routes) == set(arrows)


@pytest.mark.parametrize("name", MODELS)
def test_an_svg_file_is_whole_and_boxes_do_not_overlap(name: str) -> None:
    graph = model(MODELS[name])
    text = draw_svg(graph)
    root = ElementTree.fromstring(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    placed: list[tuple[float, float, float, float]] = []
    _collect(root, 0.0, 0.0, placed)
    assert len(placed) > 8
    for index, (x, y, w, h) in enumerate(placed):
        assert x >= 0 and x + w <= width + 1 and y >= 0 and y + h <= height + 1
        for other_x, other_y, other_w, other_h in placed[:index]:
            assert x >= other_x + other_w or other_x >= x + w or y >= other_y + other_h or other_y >= y + h
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text == draw_svg(model(MODELS[name]))


def _collect(element: ElementTree.Element, x: float, y: float, placed: list[tuple[float, float, float, float]]) -> None:
    """The absolute rectangles of leaves."""
    if element.tag == f"{SVG}g" and "transform" in element.attrib:
        dx, dy = re.findall(r"-?[\d.]+", element.attrib["transform"])
        x, y = x + float(dx), y + float(dy)
    if element.tag == f"{SVG}g" and element.attrib.get("class") not in (None, "group"):
        for rect in element.findall(f"{SVG}rect"):
            placed.append((x, y, float(rect.attrib["width"]), float(rect.attrib["height"])))
    for child in element:
        _collect(child, x, y, placed)


def test_names_that_mean_something_in_xml_are_escaped() -> None:
    graph = Graph('<&"')
    x = graph.add_input("x", tensor("f32", "b"))
    graph.set_outputs([graph.add("silu", [x], location='</script><b>&"').result])
    ElementTree.fromstring(draw_svg(graph))
    page = draw_html([graph], "<title>")
    assert page.count("</script>") == 1
    assert "<title>&lt;title&gt;</title>" in page


def _page_data(page: str) -> list[dict[str, object]]:
    found = re.search(r"^const GRAPHS = (.*);$", page, re.MULTILINE)
    assert found is not None
    data: list[dict[str, object]] = json.loads(found[1])
    return data


def test_a_page_holds_every_graph_and_needs_no_network() -> None:
    graphs = [model([FULL] * 5), model([FULL, WINDOW] * 2)]
    page = draw_html(graphs, "toy")
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(\s*[^#\s]|fetch\(|https?://(?!www\.w3\.org/2000/svg)", page)
    assert len(_page_data(page)) == 2
    for graph, data in zip(graphs, _page_data(page), strict=True):
        written = json.dumps(data["boxes"])
        assert all(f"%{op.results[0].name} = " in written for op in graph.walk() if op.name != "constant")
    assert page == draw_html(graphs, "toy")


_DOM = """
const elements = {};
function make() { return {innerHTML: "", value: "", handlers: {}, addEventListener(n, f) { this.handlers[n] = f },
  querySelectorAll() { return [] }, querySelector() { return null }} }
globalThis.document = {getElementById: id => elements[id] ??= make()};
const script = require("fs").readFileSync(0, "utf8").match(/<script>([\\s\\S]*)<\\/script>/)[1];
eval(script);
const picture = elements.picture, folded = picture.innerHTML;
const at = number => ({dataset: {number}, getBoundingClientRect: () => ({})});
const click = number => picture.handlers.click({target: {closest: () => at(number)}});
elements.unfold.handlers.click();
const unfolded = picture.innerHTML;
elements.fold.handlers.click();
const again = picture.innerHTML;
const group = folded.match(/class="group [^"]*" data-number="(\\d+)"/)[1];
click(group);
const opened = picture.innerHTML;
click(group);
elements.search.handlers.input({target: {value: "ROPE"}});
const list = elements.panel.innerHTML, hit = list.match(/data-hit="(\\d+)"/)[1];
elements.panel.handlers.click({target: {closest: () => ({dataset: {hit}})}});
console.log(JSON.stringify({folded, unfolded, again, opened, list, revealed: picture.innerHTML}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node, which runs the page's script, is not installed")
def test_the_page_unfolds_and_searches(tmp_path: Path) -> None:
    (tmp_path / "dom.js").write_text(_DOM)
    page = draw_html([model([FULL] * 5)], "toy")
    done = subprocess.run(["node", str(tmp_path / "dom.js")], input=page, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    for name in ("folded", "unfolded", "opened", "revealed"):
        ElementTree.fromstring(found[name])
        assert "NaN" not in found[name] and "undefined" not in found[name]
    assert found["again"] == found["folded"]
    assert "rope" not in found["folded"] and found["unfolded"].count(">rope") == 2
    assert "rms_norm" in found["opened"] and "3 found" in found["list"]
    assert found["revealed"].count("chosen") == 1 and ">rope" in found["revealed"]


def test_thousands_of_ops_take_seconds() -> None:
    generator = random.Random(3)
    graph = Graph("forward")
    values = [graph.add_input("x", tensor("f32", 4))]
    for _ in range(3000):
        operands = [values[-1], generator.choice(values[-50:])]
        values.append(graph.add(generator.choice(["add", "mul", "sub"]), operands).result)
    graph.set_outputs(values[-1:])
    start = time.monotonic()
    assert len(arrange_levels(build_scene(graph))) == 1
    draw_svg(graph)
    draw_html([graph], "random")
    assert time.monotonic() - start < 30
