"""Graphs as one HTML page: modules and repeated blocks unfold at a click, ops tell what they are, a box searches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from slmopt.ir.drawing.levels import Level, arrange_levels
from slmopt.ir.drawing.scene import Box, build_scene
from slmopt.ir.graph import Graph

__all__ = ["draw_html"]


def draw_html(graphs: Sequence[Graph], title: str) -> str:
    """The text of an HTML page with graphs to choose from. It needs no network; deterministic.

    Rows and order of boxes are decided here; the page's script gives boxes their places as they unfold.
    """
    page = (files("slmopt.ir.drawing") / "page.html").read_text(encoding="utf-8")
    data = json.dumps([_describe(graph) for graph in graphs], separators=(",", ":")).replace("</", "<\\/")
    return page.replace("{{title}}", escape(title)).replace("{{data}}", data)


def _describe(graph: Graph) -> dict[str, Any]:
    scene = build_scene(graph, modules=True)
    levels = arrange_levels(scene)
    boxes = {box.number: _box(box) for level in levels.values() for box in level.boxes}
    return {
        "name": graph.name, "boxes": boxes, "levels": {number: _level(level) for number, level in levels.items()},
    }  # fmt: skip


def _box(box: Box) -> dict[str, Any]:
    ops = sum(1 for leaf in box.leaves() if leaf.kind not in ("input", "output"))
    lines = [*box.lines, *([f"{ops} ops"] if box.children else [f"× {box.count}"] if box.count > 1 else [])]
    return {"kind": box.kind, "lines": lines, "details": box.details, "place": box.place, "group": bool(box.children)}


def _level(level: Level) -> dict[str, Any]:
    values = level.values
    return {
        "boxes": [box.number for box in level.boxes],
        "ports": {port.number: port.crossing for port in (*level.inputs, *level.outputs)},
        "rows": level.arrangement.rows,
        "routes": [
            {"stops": route, "values": [[value.crossing, value.type] for value in values[ends]]}
            for ends, route in level.arrangement.routes.items()
        ],
    }
