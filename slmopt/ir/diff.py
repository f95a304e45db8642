"""What differs between two modules, op by op: names of values do not count, structure does."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from slmopt.ir.graph import Graph, Module, Operand, Weight
from slmopt.ir.text import print_op

__all__ = ["Difference", "GraphDifference", "diff", "diff_text"]


_PLACE = "tokenizer"  # metadata that says where a file is, not what the model is; artifacts are written without


@dataclass(frozen=True)
class GraphDifference:
    """How a graph changed. `lines`: ops removed ("- ...") and added ("+ ..."), in order."""

    name: str
    status: str  # "same", "changed", "added" or "removed"
    lines: tuple[str, ...] = ()
    ops: dict[str, tuple[int, int]] = field(default_factory=dict)  # op name: how many before, how many after


@dataclass(frozen=True)
class Difference:
    """How a module changed."""

    graphs: tuple[GraphDifference, ...]
    weights: tuple[str, ...]  # lines: weights removed, added, or of another type
    metadata: tuple[str, ...]  # lines

    @property
    def same(self) -> bool:
        """Whether nothing differs but names of values."""
        return all(graph.status == "same" for graph in self.graphs) and not self.weights and not self.metadata

    def __str__(self) -> str:
        if self.same:
            return "no difference\n"
        lines: list[str] = [*self.metadata, *self.weights]
        for graph in self.graphs:
            if graph.status == "same":
                continue
            counts = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in sorted(graph.ops.items()))
            lines.append(f"graph @{graph.name}: {graph.status}{f' ({counts})' if counts else ''}")
            lines += [f"  {line}" for line in graph.lines]
        return "\n".join(lines) + "\n"


def diff(before: Module, after: Module) -> Difference:
    """Compare two modules. Ops are matched by what they compute and on what, not by the names of their values."""
    names = list(dict.fromkeys([*before.graphs, *after.graphs]))
    graphs = tuple(_diff_graph(name, before.graphs.get(name), after.graphs.get(name)) for name in names)
    return Difference(graphs, tuple(_diff_weights(before, after)), tuple(_diff_metadata(before, after)))


def diff_text(before: Mapping[str, str], after: Mapping[str, str], context: int = 2) -> str:
    """A unified diff of the texts of graphs, by name: what an edit did, where values keep their names; "" for nothing.

    `context`: unchanged lines shown around each change.
    """
    lines: list[str] = []
    for name in dict.fromkeys([*before, *after]):
        old, new = (texts.get(name, "").splitlines() for texts in (before, after))
        if old != new:
            found = list(difflib.unified_diff(old, new, f"@{name}", f"@{name}", n=context, lineterm=""))
            lines += [f"graph @{name}", *found[2:]]
    return "".join(f"{line}\n" for line in lines)


def _diff_graph(name: str, before: Graph | None, after: Graph | None) -> GraphDifference:
    if before is None or after is None:
        status = "added" if before is None else "removed"
        return GraphDifference(name, status, (), _count_changes(before, after))
    old, new = _lines(before), _lines(after)
    if [line.exact for line in old] == [line.exact for line in new]:
        return GraphDifference(name, "same")
    matcher = difflib.SequenceMatcher(None, [line.loose for line in old], [line.loose for line in new], autojunk=False)
    lines: list[str] = []
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "equal":
            lines += [f"- {line.text}" for line in old[i:j]] + [f"+ {line.text}" for line in new[k:m]]
    if not lines:  # the same ops, wired otherwise
        for ours, theirs in zip(old, new, strict=True):
            if ours.exact != theirs.exact:
                lines += [f"- {ours.text}", f"+ {theirs.text}"]
    return GraphDifference(name, "changed", tuple(lines), _count_changes(before, after))


@dataclass(frozen=True)
class _Line:
    """One op. `loose` leaves out which values it reads, so that one changed op does not change all that follow it."""

    text: str
    loose: str
    exact: str


def _lines(graph: Graph) -> list[_Line]:
    numbers = {id(value): index for index, value in enumerate(graph.values())}
    header = f"inputs {', '.join(str(value.type) for value in graph.inputs)}; {graph.states} states"
    lines = [_Line(header, header, header)]
    for op in graph.walk():
        attributes = sorted(op.attributes.items(), key=lambda item: item[0])
        types = [str(value.type) for value in op.results]
        weights = [f"@{o.key}: {o.type}" for o in op.operands if isinstance(o, Weight)]
        loose = f"{op.name} {attributes} {types} {weights}"
        lines.append(_Line(print_op(op), loose, f"{loose} {[_read(operand, numbers) for operand in op.operands]}"))
    outputs = f"return {', '.join(f'%{value.name}' for value in graph.outputs)}"
    lines.append(_Line(outputs, "return", f"return {[numbers[id(value)] for value in graph.outputs]}"))
    return lines


def _read(operand: Operand, numbers: dict[int, int]) -> str:
    if operand is None:
        return "_"
    return f"@{operand.key}" if isinstance(operand, Weight) else str(numbers[id(operand)])


def _count_changes(before: Graph | None, after: Graph | None) -> dict[str, tuple[int, int]]:
    old = Counter(op.name for op in before.walk()) if before is not None else Counter[str]()
    new = Counter(op.name for op in after.walk()) if after is not None else Counter[str]()
    return {name: (old[name], new[name]) for name in {**old, **new} if old[name] != new[name]}


def _diff_weights(before: Module, after: Module) -> list[str]:
    old, new = before.weight_types(), after.weight_types()
    lines = [f"- weight @{key} : {type}" for key, type in old.items() if key not in new]
    lines += [f"+ weight @{key} : {type}" for key, type in new.items() if key not in old]
    both = [key for key in old if key in new and old[key] != new[key]]
    return lines + [f"~ weight @{key} : {old[key]} -> {new[key]}" for key in both]


def _diff_metadata(before: Module, after: Module) -> list[str]:
    old, new = before.metadata, after.metadata
    keys = sorted({*old, *new} - {_PLACE})
    return [f"~ metadata {key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]
