"""A graph as one SVG file: every op, repeated blocks drawn once."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from slmopt.ir.drawing.levels import Crossing, Level, arrange_levels
from slmopt.ir.drawing.scene import Box, build_scene
from slmopt.ir.graph import Graph

__all__ = ["draw_svg"]

_CHARACTER, _LINE, _PAD = 6.7, 15, 8  # pixels: of 11 px monospace, of a line, inside a box
_GAP, _ROW_GAP, _TITLE, _WAYPOINT = 16, 26, 24, 6
_SWEEPS = 16
_STRAIGHT = 16.0  # how much harder than a box a waypoint pulls a waypoint
_STYLE = """
text { font: 11px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2937 }
.head { font-weight: bold } .faint { fill: #6b7280 }
rect { stroke: #9ca3af; fill: #ffffff } .weights rect { fill: #dbeafe; stroke: #3b82f6 }
.mixing rect { fill: #ffedd5; stroke: #f97316 } .input rect, .output rect { fill: #dcfce7; stroke: #22c55e }
.group > rect { fill: #f8fafc; stroke: #64748b; stroke-dasharray: 5 3 } .port rect { fill: #f1f5f9; stroke: none }
path { fill: none; stroke: #94a3b8; stroke-width: 1.2 } #tip { fill: #94a3b8; stroke: none }
"""


@dataclass
class _Drawn:
    """A box of a size, drawn with its upper left corner at 0, 0. `ports`: where values cross its border, from left."""

    width: float
    height: float
    body: str
    ports: dict[Crossing, float] = field(default_factory=dict)

    def port(self, value: Crossing | None) -> float:
        """Where an arrow of a value begins or ends, from the left edge on."""
        return self.ports.get(value, self.width / 2) if value is not None else self.width / 2


def draw_svg(graph: Graph) -> str:
    """The text of an SVG file: boxes are ops with their weights and types, arrows values; deterministic."""
    scene = build_scene(graph)
    drawn = _draw_level(arrange_levels(scene), 0)
    width, height = drawn.width + 2 * _GAP, drawn.height + 2 * _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">\n<title>@{escape(graph.name)}</title>\n<style>{_STYLE}</style>\n'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path id="tip" d="M0 0L8 4L0 8z"/></marker></defs>\n'
        f'<rect width="{width:.0f}" height="{height:.0f}" style="fill: #ffffff; stroke: none"/>\n'
        f'<g transform="translate({_GAP} {_GAP})">\n{drawn.body}</g>\n</svg>\n'
    )


def _draw_level(levels: dict[int, Level], number: int) -> _Drawn:
    level = levels[number]
    drawn = {box.number: _draw_box(levels, box) for box in level.boxes}
    drawn.update({port.number: _draw_leaf("port", (port.name,)) for port in (*level.inputs, *level.outputs)})
    rows, routes = level.arrangement.rows, level.arrangement.routes
    for node in (node for row in rows for node in row if node < 0):
        drawn[node] = _Drawn(_WAYPOINT, 0, "")
    left = _place(rows, {node: item.width for node, item in drawn.items()}, list(routes.values()))
    upper: dict[int, float] = {}
    lower: dict[int, float] = {}  # the lower edge of the node's row
    y = 0.0
    for row in rows:
        tall = max(drawn[node].height for node in row)
        upper.update(dict.fromkeys(row, y))
        lower.update(dict.fromkeys(row, y + tall))
        y += tall + _ROW_GAP
    paths: dict[str, str] = {}
    for ends, route in routes.items():
        for value in level.values[ends]:
            stops = [(left[stop] + drawn[stop].port(value.crossing), upper[stop], lower[stop]) for stop in route]
            path = _path(stops, upper[route[0]] + drawn[route[0]].height)
            tip = f"{value.crossing[1]} : {value.type}"
            paths[path] = f"{paths[path]}\n{tip}" if path in paths else tip
    body = "".join(
        f'<path d="{path}" marker-end="url(#arrow)"><title>{escape(tip)}</title></path>\n'
        for path, tip in paths.items()
    )
    for node, item in drawn.items():
        if node > 0:
            body += f'<g transform="translate({left[node]:.1f} {upper[node]:.1f})">{item.body}</g>\n'
    ports = {
        port.crossing: left[port.number] + drawn[port.number].width / 2 for port in (*level.inputs, *level.outputs)
    }
    width = max((left[node] + drawn[node].width for node in left), default=0.0)
    return _Drawn(width, max(y - _ROW_GAP, 0.0), body, ports)


def _draw_box(levels: dict[int, Level], box: Box) -> _Drawn:
    if not box.children:
        return _draw_leaf(
            box.kind, (*box.lines, *([f"× {box.count}"] if box.count > 1 else [])), "\n".join(box.details)
        )
    inner = _draw_level(levels, box.number)
    title = box.lines[0]
    width = max(inner.width, len(title) * _CHARACTER) + 2 * _GAP
    height = inner.height + _TITLE + 2 * _GAP
    shift = (width - inner.width) / 2
    body = (
        f'<g class="group"><rect width="{width:.1f}" height="{height:.1f}" rx="8"/>'
        f'<text class="head" x="{_GAP}" y="18">{escape(title)}</text>'
        f'<g transform="translate({shift:.1f} {_TITLE + _GAP})">\n{inner.body}</g></g>\n'
    )
    return _Drawn(width, height, body, {value: x + shift for value, x in inner.ports.items()})


def _draw_leaf(kind: str, lines: tuple[str, ...], tip: str = "") -> _Drawn:
    width = max(map(len, lines)) * _CHARACTER + 2 * _PAD
    height = len(lines) * _LINE + _PAD
    texts = "".join(
        f'<text class="{"head" if not index else "faint"}" x="{_PAD}" y="{_LINE * (index + 1)}">{escape(line)}</text>'
        for index, line in enumerate(lines)
    )
    title = f"<title>{escape(tip)}</title>" if tip else ""
    rect = f'<rect width="{width:.1f}" height="{height:.1f}" rx="4"/>'
    return _Drawn(width, height, f'<g class="{kind}">{title}{rect}{texts}</g>')


def _path(stops: list[tuple[float, float, float]], first: float) -> str:
    """A curve from `first`, the lower edge of the first stop, to the upper edge of the last.

    A stop is (x, upper edge of its row, lower edge of its row); between rows the curve bends, along them it does not.
    """
    x, _, y = stops[0]
    path = f"M{x:.1f} {first:.1f}V{y:.1f}"
    for next_x, upper, lower in stops[1:]:
        middle = (y + upper) / 2
        path += f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {upper:.1f}"
        x, y = next_x, lower
        if (next_x, upper, lower) != stops[-1]:
            path += f"V{y:.1f}"
    return path


def _place(rows: list[list[int]], widths: dict[int, float], routes: list[list[int]]) -> dict[int, float]:
    """The left edge of every node: near the middle of its neighbours, in the order of its row, without overlap.

    Between two waypoints an arrow pulls hardest: long arrows shall be straight.
    """
    near: dict[int, list[tuple[int, float, bool]]] = {node: [] for row in rows for node in row}
    for route in routes:
        for source, target in pairwise(route):
            pull = _STRAIGHT if source < 0 and target < 0 else 1.0
            near[source].append((target, pull, False))
            near[target].append((source, pull, True))
    center: dict[int, float] = {}
    for row in rows:
        x = -sum(widths[node] + _GAP for node in row) / 2
        for node in row:
            center[node] = x + widths[node] / 2
            x += widths[node] + _GAP
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            # What was placed in this sweep pulls waypoints most: a bend does not creep along a row a sweep.
            found = [
                [
                    (center[other], pull if node > 0 or above == down else min(pull, 1.0))
                    for other, pull, above in near[node]
                ]
                for node in row
            ]
            pulls = [sum(pull for _, pull in pairs) for pairs in found]
            wish = [
                sum(x * pull for x, pull in pairs) / total if total else center[node]
                for node, pairs, total in zip(row, found, pulls, strict=True)
            ]
            _spread(row, wish, pulls, widths, center)
    first = min((center[node] - widths[node] / 2 for node in center), default=0.0)
    return {node: x - widths[node] / 2 - first for node, x in center.items()}


def _spread(
    row: list[int], wish: list[float], pulls: list[float], widths: dict[int, float], center: dict[int, float]
) -> None:
    """Place a row as near its wishes as order and widths allow: least squares, by pooling neighbours in conflict."""
    shifts = [0.0]
    for left, right in pairwise(row):
        shifts.append(shifts[-1] + (widths[left] + widths[right]) / 2 + _GAP)
    pools: list[tuple[float, float, int]] = []  # mean, pull, size
    for want, pull, shift in zip(wish, pulls, shifts, strict=True):
        mean, total, size = want - shift, pull or 0.1, 1
        while pools and pools[-1][0] > mean:
            other, weight, count = pools.pop()
            mean, total, size = (mean * total + other * weight) / (total + weight), total + weight, size + count
        pools.append((mean, total, size))
    places = [mean for mean, _, size in pools for _ in range(size)]
    for node, place, shift in zip(row, places, shifts, strict=True):
        center[node] = place + shift
