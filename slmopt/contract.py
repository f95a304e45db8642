"""What a pass must say and must leave alone, checked after it has run: its report, signatures, weights, @step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slmopt.errors import ContractError
from slmopt.ir.diff import diff_text
from slmopt.ir.dims import SymbolicDim
from slmopt.ir.graph import Attribute, Graph, Module, Op, Weight
from slmopt.ir.text import print_graph
from slmopt.ir.weights import WeightSource, WeightStore, counted_parts, write_count

if TYPE_CHECKING:
    from slmopt.pipeline import Pass

__all__ = ["Loads", "Snapshot", "changed_graphs", "check_kept", "check_report", "check_step", "print_graphs"]

_SHOWN = 60
FACTS = "facts"  # the metadata that the pipeline writes


def print_graphs(module: Module) -> dict[str, str]:
    """The text of each graph."""
    return {name: print_graph(graph) for name, graph in module.graphs.items()}


def changed_graphs(before: Mapping[str, str], after: Mapping[str, str]) -> frozenset[str]:
    """The graphs whose texts differ, those that are new included."""
    return frozenset(name for name in {**before, **after} if before.get(name) != after.get(name))


class Snapshot:
    """A module as it was before a pass, to compare with and to go back to.

    `earlier`: the snapshot before the pass before, after which weights in memory were found to be as they were.
    """

    def __init__(self, module: Module, texts: Mapping[str, str], earlier: Snapshot | None = None) -> None:
        self.module, self.texts, self.store = module.copy(), texts, module.weights
        self.sources: dict[str, WeightSource] = {key: module.weights.source(key) for key in module.weights}
        self._own, known = module.weights.snapshot(), earlier.held if earlier is not None else {}
        new = {key: source for key, source in self.sources.items() if key not in known}
        self.held: dict[str, object] = {**known, **_fingerprints(new)}

    def restore(self, module: Module) -> None:
        """Make `module` what it was. Its graphs are copies of those it had."""
        self.store.restore(self._own)
        was = self.module
        module.name, module.weights, module.ledger = was.name, self.store, was.ledger
        module.graphs, module.metadata = dict(was.graphs), was.metadata

    def describe_changes(self, module: Module) -> str:
        """What was done to the graphs since, as a diff of at most so many lines; "" where nothing was."""
        with suppress(Exception):  # a graph may be broken in any way: it is shown where it can be shown
            lines = diff_text(self.texts, print_graphs(module)).splitlines()
            more = f"... and {len(lines) - _SHOWN} lines more" if len(lines) > _SHOWN else ""
            return "\n".join([*lines[:_SHOWN], *([more] if more else [])])
        return ""

    def written(self) -> list[str]:
        """The weights held in memory that were written to since."""
        return [key for key, found in _fingerprints(self.sources).items() if found != self.held[key]]


def _fingerprints(sources: Mapping[str, WeightSource]) -> dict[str, object]:
    """Of each weight that is held in memory the writes that torch counted, and a sum that shows others (numpy's)."""
    held = {key: source.held() for key, source in sources.items() if source.held is not None and not source.inputs}
    return {key: (write_count(value), _sum_bits(value)) for key, value in held.items() if value is not None}


def _sum_bits(value: Any) -> int:
    import torch

    total = 0
    for part in counted_parts(value):
        flat = part.reshape(-1).view(torch.uint8)
        words = flat.numel() // 8 * 8
        if flat.storage_offset() % 8 == 0:  # 25 times as fast as bytes
            total += int(flat[:words].view(torch.int64).sum()) + int(flat[words:].sum())
        else:
            total += int(flat.sum())
    return total


@dataclass
class Loads:
    """The tensors that a pass loaded, to see whether it wrote into them: what is mapped from a file, or computed, is
    gone afterwards, and writing into it changes nothing.

    Of a tensor its counter of writes is kept, not its numbers.
    """

    _seen: list[tuple[str, Any, int]] = field(default_factory=list)

    def __call__(self, key: str, value: Any) -> None:
        for part in counted_parts(value):
            shadow = part.detach()  # shares the counter of writes, and goes on sharing it without the numbers
            shadow.data = part.new_empty(0)
            self._seen.append((key, shadow, shadow._version))

    def written(self) -> list[str]:
        """The weights whose tensors were written to."""
        return list(dict.fromkeys(key for key, shadow, version in self._seen if shadow._version != version))


# --- the report --------------------------------------------------------------------------------------------------
def check_report(item: Pass, report: Any, before: Snapshot, after: Module, texts: Mapping[str, str]) -> None:
    """A pass returns what it changed, counted by kind, and tells the truth about whether it changed anything."""
    if not isinstance(report, Mapping):
        raise ContractError(f"pass {item.name} returned {report!r}: run returns what changed, counted by kind, such as "
                            "{'linear': 3}, or {} where nothing did")  # fmt: skip
    for kind, count in report.items():
        if not isinstance(kind, str) or isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ContractError(f"pass {item.name} returned {report!r}: {kind!r}: {count!r} is no kind of change with "
                                "the number of times it was made, 1 or more; leave out what did not occur")  # fmt: skip
    change = _find_change(before, after, texts)
    if change and not report:
        raise ContractError(f"pass {item.name} returned {{}}, nothing changed, but it changed {change}: "
                            "return what changed, counted by kind")  # fmt: skip
    if report and not change:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.items())
        raise ContractError(f"pass {item.name} reports {kinds}, but the module is as it was: return {{}} where nothing "
                            "changed, and to change a weight, derive another and let the ops read it")  # fmt: skip


def _find_change(before: Snapshot, after: Module, texts: Mapping[str, str]) -> str | None:
    """One thing that differs, for a message."""
    for name in sorted(changed_graphs(before.texts, texts)):
        if name not in before.texts:
            return f"the module: it added @{name}"
        old, new = before.texts[name].splitlines(), texts[name].splitlines()
        pairs = ((a, b) for a, b in zip(old, new, strict=False) if a != b)
        first, second = next(pairs, (f"{len(old)} lines", f"{len(new)} lines"))
        return f"@{name}: {first.strip()!r} became {second.strip()!r}"
    if after.metadata != before.module.metadata:
        return "the metadata"
    return None


# --- what stays --------------------------------------------------------------------------------------------------
def check_kept(item: Pass, before: Snapshot, after: Module, loads: Loads) -> None:
    """A pass keeps weights as they are, what callers of graphs see, and what the runtime reads of the metadata."""
    _check_weights(item, before, after.weights)
    for key in dict.fromkeys([*before.written(), *loads.written()]):
        raise ContractError(f"pass {item.name} wrote into the tensor of weight @{key}: derive another one instead "
                            "(module.weights.derive) and let the ops read that")  # fmt: skip
    was = before.module
    if after.name != was.name:
        raise ContractError(f"pass {item.name} renamed the module @{was.name} to @{after.name}: leave its name")
    if after.ledger is not was.ledger:
        raise ContractError(f"pass {item.name} set the module's ledger: the pipeline alone writes it")
    for name, graph in was.graphs.items():
        if name not in after.graphs:
            raise ContractError(f"pass {item.name} removed the graph @{name}: graphs stay, under their names")
        _check_signature(item, graph, after.graphs[name])
    _check_metadata(item, was.metadata, after.metadata)


def _check_weights(item: Pass, before: Snapshot, store: WeightStore) -> None:
    if store is not before.store:
        raise ContractError(f"pass {item.name} replaced the module's weight store: add weights to the one it has")
    for key, source in before.sources.items():
        if key not in store or store.source(key) is not source:
            raise ContractError(f"pass {item.name} changed the stored weight @{key}: "
                                "keys are never redefined; add a key and point the op at it")  # fmt: skip


def _check_signature(item: Pass, before: Graph, after: Graph) -> None:
    """Names, types and order of inputs, types of outputs. States are the graph's own affair."""
    for side in ("inputs", "outputs"):
        old, new = _signature(before, side), _signature(after, side)
        if old != new:
            raise ContractError(f"pass {item.name} changed the {side} of @{before.name}: ({', '.join(old)}) became "
                                f"({', '.join(new)})")  # fmt: skip


def _signature(graph: Graph, side: str) -> list[str]:
    values = graph.inputs if side == "inputs" else graph.outputs
    plain = values[: len(values) - graph.states]
    return [repr(value) if side == "inputs" else str(value.type) for value in plain]


def _check_metadata(item: Pass, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """What is there stays: frontends, tokenizers, backends and runtimes rely on it. A pass may add keys of its own."""
    for key in dict.fromkeys([*before, FACTS]):
        if before.get(key) == after.get(key) and (key in before) == (key in after):
            continue
        if key == FACTS:
            raise ContractError(f"pass {item.name} edited the facts: declare `ensures` and `breaks` instead")
        new = repr(after[key]) if key in after else "nothing"
        raise ContractError(f"pass {item.name} changed the metadata {key!r} from {before[key]!r} to {new}: the runtime "
                            "and other passes rely on it; add a key of your own instead")  # fmt: skip


# --- @step -------------------------------------------------------------------------------------------------------
def check_step(
    item: Pass, before: Module, after: Module, changed: frozenset[str], maker: str, *, lossy: bool
) -> None:  # fmt: skip
    """What a pass rewrites in @forward it rewrites in @step too, once there is one: backends compile @step.

    `maker`: the pass that derived @step. `lossy`: the pass changes the numbers.
    """
    if "forward" not in changed or not {"forward", "step"} <= before.graphs.keys():
        return
    # What is dead in @forward may be gone from @step, or live there as part of a state.
    was, now = _live(before.graphs["forward"]), _live(after.graphs["forward"])
    if was == now:
        return
    old = _signatures(was), _signatures(before.graphs["step"])
    new = _signatures(now), _signatures(after.graphs["step"])
    for signature, ops in old[0].items():
        gone = len(new[0].get(signature, ())) < len(ops)
        if gone and len(new[1].get(signature, ())) >= len(old[1].get(signature, ())) > 0:
            left = new[1][signature][0]
            _raise_stale(item, maker, f"{left.describe()} is there still")
    if lossy and "step" not in changed:
        _raise_stale(item, maker, "the numbers of one are no longer those of the other")


def _live(graph: Graph) -> Graph:
    """A graph without its dead ops."""
    copied = graph.copy()
    copied.erase_dead()
    return copied


def _raise_stale(item: Pass, maker: str, detail: str) -> None:
    raise ContractError(
        f"pass {item.name} changed @forward and not @step, which {maker} derived from it: {detail}; put {item.name} "
        f"before {maker}, or let it edit every graph of the module (module.graphs.values())"
    )


def _signatures(graph: Graph) -> dict[str, list[Op]]:
    """The ops that read weights, by what they are but for the values they read and sizes."""
    found: dict[str, list[Op]] = {}
    for op in graph.walk():
        if any(isinstance(operand, Weight) for operand in op.operands):
            operands = [operand if isinstance(operand, Weight) else operand is None for operand in op.operands]
            attributes = {name: value for name, value in op.attributes.items() if not _is_symbolic(value)}
            found.setdefault(f"{op.name} {operands} {sorted(attributes.items())}", []).append(op)
    return found


def _is_symbolic(value: Attribute) -> bool:
    return any(map(_is_symbolic, value)) if isinstance(value, tuple) else isinstance(value, SymbolicDim)
