"""Ties: ops that read one stored weight go on reading one, unless the pass says that it unties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmopt.errors import ContractError
from slmopt.ir.graph import Graph, Module, Op, Weight
from slmopt.ir.weights import WeightStore

if TYPE_CHECKING:
    from slmopt.pipeline import Pass

__all__ = ["check_ties"]


@dataclass(frozen=True)
class _Reader:
    """Operand `index` of an op, which is a weight."""

    op: Op
    index: int
    key: str

    @property
    def place(self) -> tuple[str, str, int]:
        """What stays the same when a pass edits the op, or makes the same op anew under its name."""
        return self.op.name, self.op.results[0].name if self.op.results else "", self.index

    def __str__(self) -> str:
        return f"{self.op.describe()} reads @{self.key}"


def check_ties(item: Pass, before: Module, after: Module, changed: frozenset[str]) -> None:
    """ContractError where ops of a graph read one weight before the pass and read several after it.

    Weights that are tied are stored once, and change together. So they still do where the ops that are left all read
    one weight that is derived from it, or one that it was joined with others to; they do not where some read another.
    A pass that declares `unties` may do so, but for storing the same twice.
    """
    for name in sorted(changed & before.graphs.keys()):
        tied = {key: found for key, found in _readers(before.graphs[name]).items() if len(found) > 1}
        if tied:
            _check_graph(item, tied, after.graphs[name], after.weights)


def _readers(graph: Graph) -> dict[str, list[_Reader]]:
    found: dict[str, list[_Reader]] = {}
    for op in graph.walk():
        for index, operand in enumerate(op.operands):
            if isinstance(operand, Weight):
                found.setdefault(operand.key, []).append(_Reader(op, index, operand.key))
    return found


def _check_graph(item: Pass, tied: Mapping[str, list[_Reader]], graph: Graph, store: WeightStore) -> None:
    readers = _readers(graph)
    places = {reader.place: reader for found in readers.values() for reader in found}
    for key, was in tied.items():
        left = [places[reader.place] for reader in was if reader.place in places]
        pair = _differing(left)
        if pair is None and not item.unties:
            pair = _apart(key, len(was), readers, store)
        if pair is not None and (not item.unties or _derived_alike(pair, store)):
            _raise_untied(item, key, pair, store)


def _differing(readers: list[_Reader]) -> tuple[_Reader, _Reader] | None:
    return next(((readers[0], other) for other in readers[1:] if other.key != readers[0].key), None)


def _apart(
    key: str, count: int, readers: Mapping[str, list[_Reader]], store: WeightStore
) -> tuple[_Reader, _Reader] | None:
    """Two readers of different weights that stand for `key`, where none of these is read as often as it was."""
    found = [readers[name] for name in readers if name == key or _stands_for(name, key, store)]
    if len(found) < 2 or max(map(len, found)) >= count:
        return None
    return found[0][0], found[1][0]


def _stands_for(name: str, key: str, store: WeightStore) -> bool:
    """Whether a weight holds all that `key` holds, as it was or changed: derived from it, and no smaller."""
    if name not in store or key not in store or key not in _ancestors(name, store):
        return False
    size, whole = store.type(name).elements, store.type(key).elements
    return not isinstance(size, int) or not isinstance(whole, int) or size >= whole


def _ancestors(name: str, store: WeightStore) -> set[str]:
    """The weights that one is derived from, directly or not."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        last = waiting.pop()
        new = [source for source in (store.source(last).inputs if last in store else ()) if source not in found]
        found.update(new)
        waiting += new
    return found


def _derived_alike(pair: tuple[_Reader, _Reader], store: WeightStore) -> bool:
    if any(reader.key not in store for reader in pair):
        return False
    first, second = (store.source(reader.key) for reader in pair)
    same = (first.inputs, first.type, first.description) == (second.inputs, second.type, second.description)
    return bool(first.inputs) and same


def _raise_untied(item: Pass, key: str, pair: tuple[_Reader, _Reader], store: WeightStore) -> None:
    if _derived_alike(pair, store):
        how = store.source(pair[0].key).description
        advice = f"both are {how!r}: derive it once and let both read that"
    else:
        advice = "let all of them read one weight, or declare `unties = True`"
    raise ContractError(f"pass {item.name} unties the weight @{key}: {pair[0]}, {pair[1]}; {advice}")
