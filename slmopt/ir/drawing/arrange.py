"""Layered layout (Sugiyama, Tagawa and Toda 1981): every arrow points down, long ones pass through waypoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Arrangement", "arrange"]

_SWEEPS = 6
_LONGEST = 60  # rows; an arrow that spans more has no waypoints


@dataclass
class Arrangement:
    """`rows` of numbers, top to bottom, left to right; waypoints are negative. `routes`: of each arrow, all stops."""

    rows: list[list[int]]
    routes: dict[tuple[int, int], list[int]]


def arrange(
    nodes: Sequence[int], arrows: Iterable[tuple[int, int]], top: Sequence[int] = (), bottom: Sequence[int] = ()
) -> Arrangement:
    """Arrange nodes so that arrows point down; `top` nodes make the first row, `bottom` nodes the last.

    Arrows that would close a circle are left out: they lead from one instance of a repeated block to the next.
    """
    forward = _acyclic([*top, *nodes, *bottom], dict.fromkeys(arrows))
    rank = _ranks(nodes, forward, top, bottom)
    rows: list[list[int]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for node in (*top, *nodes, *bottom):
        rows[rank[node]].append(node)
    routes: dict[tuple[int, int], list[int]] = {}
    waypoint = 0
    for source, target in forward:
        route = [source]
        if rank[target] - rank[source] <= _LONGEST:
            for row in range(rank[source] + 1, rank[target]):
                waypoint -= 1
                rows[row].append(waypoint)
                route.append(waypoint)
        routes[source, target] = [*route, target]
    _order(rows, routes)
    return Arrangement(rows, routes)


def _acyclic(nodes: Sequence[int], arrows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The arrows without those that lead back to where a walk over them came from."""
    after: dict[int, list[int]] = {node: [] for node in nodes}
    for source, target in arrows:
        if source != target:
            after[source].append(target)
    state: dict[int, int] = {}  # 1: on the way, 2: done
    kept: list[tuple[int, int]] = []
    for start in nodes:
        stack = [(start, 0)] if start not in state else []
        state.setdefault(start, 1)
        while stack:
            node, index = stack.pop()
            if index == len(after[node]):
                state[node] = 2
                continue
            stack.append((node, index + 1))
            target = after[node][index]
            if state.get(target) != 1:
                kept.append((node, target))
            if target not in state:
                state[target] = 1
                stack.append((target, 0))
    return kept


def _ranks(
    nodes: Sequence[int], arrows: Sequence[tuple[int, int]], top: Sequence[int], bottom: Sequence[int]
) -> dict[int, int]:
    """Rows by the longest way from above; then what nothing leads to moves down to right above its readers."""
    before: dict[int, list[int]] = {}
    after: dict[int, list[int]] = {}
    for source, target in arrows:
        before.setdefault(target, []).append(source)
        after.setdefault(source, []).append(target)
    rank: dict[int, int] = dict.fromkeys(top, 0)
    waiting = {node: len(before.get(node, ())) for node in (*top, *nodes, *bottom)}
    ready = [node for node, count in waiting.items() if not count]
    while ready:
        node = ready.pop()
        above = [rank[source] + 1 for source in before.get(node, ())]
        rank.setdefault(node, max([1 if top else 0, *above]))
        for target in after.get(node, ()):
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    pinned = set(top)
    for node in sorted(rank, key=lambda node: -rank[node]):
        if node not in pinned and after.get(node) and not before.get(node):
            rank[node] = min(rank[target] for target in after[node]) - 1
    if bottom:
        last = max([rank[node] for node in (*top, *nodes)], default=-1) + 1
        rank.update(dict.fromkeys(bottom, last))
    used = {row: index for index, row in enumerate(sorted(set(rank.values())))}
    return {node: used[row] for node, row in rank.items()}


def _order(rows: list[list[int]], routes: dict[tuple[int, int], list[int]]) -> None:
    """Sort each row by the mean place of its neighbours in the row above, then below, some times over."""
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for route in routes.values():
        for source, target in pairwise(route):
            above.setdefault(target, []).append(source)
            below.setdefault(source, []).append(target)
    place = {node: float(index) for row in rows for index, node in enumerate(row)}
    for sweep in range(_SWEEPS):
        neighbours = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wish = {}
            for node in row:
                near = neighbours.get(node, ())
                wish[node] = sum(place[other] for other in near) / len(near) if near else place[node]
            row.sort(key=wish.__getitem__)
            place.update({node: float(index) for index, node in enumerate(row)})
