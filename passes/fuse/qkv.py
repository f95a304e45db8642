"""The pass `fuse-qkv`: linears that read one value become one linear."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from slmopt.ir.graph import Graph, Module, Op, Operand, Value, Weight
from slmopt.ir.types import TensorType
from slmopt.ir.weights import QuantizedTensor, WeightStore
from slmopt.pipeline import Context, Pass

if TYPE_CHECKING:
    import torch

__all__ = ["FuseQKV"]

Keys = tuple[str | None, ...]


@dataclass(frozen=True)
class FuseQKV(Pass):
    """linear(x, w1, b1), linear(x, w2, b2) -> slices of linear(x, [w1; w2], [b1; b2]).

    Queries, keys and values become one linear, gate and up another. The linears must agree in attributes and storage
    type and have no residual; quantized weights are joined code by code, so that the numbers are identical. Weights
    that anything else reads stay apart, since joining them would store them twice.
    """

    name: ClassVar[str] = "fuse-qkv"
    follows: ClassVar[frozenset[str]] = frozenset({"raised"})

    def run(self, module: Module, context: Context) -> dict[str, int]:
        joined: dict[tuple[str, Keys], Weight] = {}
        found = _shareable([(graph, ops) for graph in module.graphs.values() for ops in _groups(graph)], module)
        groups = list(_permitted(found, context))
        for graph, ops in groups:
            _merge(graph, ops, module.weights, joined)
        return {"merged": sum(len(ops) for _, ops in groups), "linear": len(groups)} if groups else {}


def _bias(op: Op) -> Operand:
    return op.operands[2] if len(op.operands) > 2 else None


def _groups(graph: Graph) -> Iterator[list[Op]]:
    """Linears that read one value and agree in everything but weight and bias, in order."""
    found: dict[tuple[object, ...], list[Op]] = {}
    for op in graph.walk():
        if op.name != "linear" or not isinstance(op.operands[1], Weight) or isinstance(_bias(op), Value):
            continue
        if len(op.operands) > 3 and op.operands[3] is not None:
            continue
        attributes = tuple(sorted((name, str(value)) for name, value in op.attributes.items()))
        found.setdefault((id(op.operands[0]), op.operands[1].type.element, attributes), []).append(op)
    return (ops for ops in found.values() if len(ops) > 1)


def _weight_keys(op: Op) -> list[str]:
    return [operand.key for operand in op.operands if isinstance(operand, Weight)]


def _shareable(groups: list[tuple[Graph, list[Op]]], module: Module) -> list[tuple[Graph, list[Op]]]:
    """The groups whose weights only groups of the very same weights read: those of a shared layer, of another graph."""
    users: dict[str, set[int]] = {}
    for graph in module.graphs.values():
        for op in graph.walk():
            for key in _weight_keys(op):
                users.setdefault(key, set()).add(id(op))
    kept = groups
    while True:
        same: dict[tuple[tuple[str, ...], ...], set[int]] = {}
        for _, ops in kept:
            same.setdefault(tuple(tuple(_weight_keys(op)) for op in ops), set()).update(map(id, ops))
        fits = []
        for graph, ops in kept:
            keys = tuple(tuple(_weight_keys(op)) for op in ops)
            named = [key for own in keys for key in own]
            if len(set(named)) == len(named) and all(users[key] <= same[keys] for key in named):
                fits.append((graph, ops))
        if len(fits) == len(kept):
            return fits
        kept = fits


def _permitted(groups: list[tuple[Graph, list[Op]]], context: Context) -> Iterator[tuple[Graph, list[Op]]]:
    """The groups that may be merged: of those that read the same weights all or none."""
    answers: dict[tuple[tuple[str, ...], ...], bool] = {}
    for graph, ops in groups:
        keys = tuple(tuple(_weight_keys(op)) for op in ops)
        if keys not in answers:
            answers[keys] = context.permits("merged", ops[0])
        if answers[keys]:
            yield graph, ops


def _merge(graph: Graph, ops: Sequence[Op], store: WeightStore, joined: dict[tuple[str, Keys], Weight]) -> None:
    weights = [operand for op in ops for operand in op.operands[1:2] if isinstance(operand, Weight)]
    biases = [operand if isinstance(operand, Weight) else None for operand in map(_bias, ops)]
    rows = [int(weight.type.shape[0]) for weight in weights]  # type: ignore[arg-type]
    weight = _join(store, weights, rows, joined)
    bias = _join(store, biases, rows, joined) if any(biases) else None
    names = [op.result.name for op in ops]
    operands = (ops[0].operands[0], weight, bias) if bias is not None else (ops[0].operands[0], weight)
    merged = graph.add(
        "linear", operands, ops[0].attributes, before=ops[0],
        hint=_join_names(names, "_"), location=_join_names([op.location for op in ops], "."),
    )  # fmt: skip
    last, start = merged, 0
    for op, name, count in zip(ops, names, rows, strict=True):
        part = graph.add(
            "slice", (merged.result,), {"axis": -1, "start": start, "stop": start + count}, after=last,
            location=op.location,
        )  # fmt: skip
        graph.replace(op, part.result)
        part.result.name = name
        last, start = part, start + count


def _join(
    store: WeightStore, parts: Sequence[Weight | None], rows: list[int], joined: dict[tuple[str, Keys], Weight]
) -> Weight:
    """One weight with the rows of all parts, zeros for an absent one; the same parts give the same key."""
    present = [part for part in parts if part is not None]
    identity = (str(rows), tuple(part.key if part is not None else None for part in parts))
    if identity not in joined:
        type = TensorType(present[0].type.element, (sum(rows), *present[0].type.shape[1:]))
        key = store.fresh_key(_join_names([part.key for part in present], "."))
        fill = tuple(0 if part is not None else count for part, count in zip(parts, rows, strict=True))
        store.derive(key, tuple(part.key for part in present), type, f"rows of {len(present)} weights", _Join(fill))
        joined[identity] = Weight(key, type)
    return joined[identity]


@dataclass(frozen=True)
class _Join:
    """Concatenates rows; `fill` has, for each part, the rows of zeros that stand for it, or 0 where it is given."""

    fill: tuple[int, ...]

    def __call__(self, *given: torch.Tensor | QuantizedTensor) -> Any:
        import torch

        first = given[0]
        if isinstance(first, QuantizedTensor):
            parts = [part for part in given if isinstance(part, QuantizedTensor)]
            minima = [part.minimum for part in parts if part.minimum is not None]
            return QuantizedTensor(
                first.type, torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts]),
                torch.cat(minima) if minima else None,
            )  # fmt: skip
        rest = iter(part for part in given if not isinstance(part, QuantizedTensor))
        return torch.cat([first.new_zeros(count, *first.shape[1:]) if count else next(rest) for count in self.fill])


def _join_names(names: list[str], separator: str) -> str:
    """Common parts once, the others joined by `_`: a.q.weight and a.k.weight give a.q_k.weight."""
    if len(set(names)) == 1:
        return names[0]
    parts = [name.split(separator) for name in names]
    before = _common(parts)
    after = _common([part[before:][::-1] for part in parts])
    middle = "_".join(separator.join(part[before : len(part) - after]) for part in parts)
    first = parts[0]
    return separator.join([*first[:before], *([middle] if middle else []), *first[len(first) - after :]])


def _common(parts: list[list[str]]) -> int:
    """How many items all lists begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
