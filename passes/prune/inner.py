"""Inner dimensions of a model, by what couples their positions: those of feed-forwards, and heads of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from slmopt.errors import UnsupportedError
from slmopt.ir.coupling import Coupling, Group
from slmopt.ir.graph import Module, Op, Value, Weight
from slmopt.layers import Layers, find_layers
from slmopt.passes.prune.live import without_dead_ops

__all__ = ["Inner", "channels_of", "find_inner", "heads_of"]

_MIXING = ("attention", "linear_attention")
_MOVING = ("linear", "add", "reshape", "permute", "slice", "concat", "expand", "cast")  # an inner dimension does more


@dataclass(frozen=True, eq=False)
class Inner:
    """A dimension inside of a layer: how many units it has, and the linears of @forward that sum over it, in order.

    layers: the numbers of the layers that these are in; several where layers share weights.
    """

    units: int
    readers: tuple[Op, ...]
    layers: frozenset[int]

    def weights(self) -> Iterator[tuple[Weight, list[Op]]]:
        """Each weight that is multiplied with the dimension, with the linears of @forward that read it."""
        found: dict[str, list[Op]] = {}
        for op in self.readers:
            weight = op.operands[1]
            if isinstance(weight, Weight):
                found.setdefault(weight.key, []).append(op)
        for ops in found.values():
            weight = ops[0].operands[1]
            assert isinstance(weight, Weight)
            yield weight, ops


Kind = Callable[[Group, tuple[Op, ...]], bool]


def channels_of(group: Group, readers: tuple[Op, ...]) -> bool:
    """Whether a group is the inner dimension of a feed-forward.

    Linears make it and linears sum over it, something that acts on each channel alone lies between them, and what is
    summed does not come back to where it began, as a stream does that many layers add to.
    """
    ops = set(group.ops)
    names = {op.name for op in ops}
    if not names.isdisjoint((*_MIXING, "embedding", "rms_norm", "layer_norm")):
        return False
    active = any(op.name not in _MOVING or op.attributes.get("activation") for op in ops)
    return active and bool(_makers(group)) and not _comes_back(group, readers)


def heads_of(group: Group, readers: tuple[Op, ...] = ()) -> bool:
    """Whether the units of a group are heads of attention: of all that are summed, whole heads go together."""
    mixing = [op for op in group.ops if op.name in _MIXING]
    whole = all(group.of(op.operands[0], 1) is not None and group.of(op.operands[0], 3) is None for op in mixing)
    return bool(mixing) and whole and not any(op.name == "embedding" for op in group.ops)


def _makers(group: Group) -> set[Op]:
    """The linears whose outputs the units are."""
    return {op for op in group.ops if op.name == "linear" and group.of(op.result, -1) is not None}


def _comes_back(group: Group, readers: tuple[Op, ...]) -> bool:
    """Whether a linear that makes the dimension follows from one that sums over the same values of it."""
    makers = _makers(group)
    for value in {op.value(0) for op in readers}:
        own = _origins(value, group)
        seen: set[Op] = set()
        waiting = [op for op in value.users if op in readers]
        while waiting:
            op = waiting.pop()
            if op in seen:
                continue
            seen.add(op)
            if op in makers and op in own:
                return True
            waiting += [user for result in op.results for user in result.users]
    return False


def _origins(value: Value, group: Group) -> set[Op]:
    """The linears that make a value of the group, through values of the group alone, and those of all that join it."""
    places = {axis.tensor for axis in group.places if isinstance(axis.tensor, Value)}
    found: set[Op] = set()
    seen: set[Value] = set()
    waiting = [value]
    while waiting:
        last = waiting.pop()
        if last in seen or last not in places:
            continue
        seen.add(last)
        made_by = last.op
        if made_by is not None:
            if made_by.name == "linear":
                found.add(made_by)
            waiting += [operand for operand in made_by.operands if isinstance(operand, Value)]
        waiting += [result for user in last.users for result in user.results]
    return found


def find_inner(module: Module, kind: Kind, layers: Layers, what: str) -> list[Inner]:
    """The inner dimensions of a kind in the selected layers of @forward, in order.

    UnsupportedError, with the reason, where one of a layer that was named cannot be cut, or where none at all can be,
    and where layers were named and none of them has one;
    InputError where there is no such layer. `what` they are called in messages.
    """
    live = without_dead_ops(module)
    graph, own_ops = live.graph(), {op.results[0].name: op for op in module.graph().walk()}
    known = find_layers(graph)
    layers.check(known)
    numbers = {op: number for number, block in known.items() for op in block.ops}
    found, reasons = [], []
    for group, readers in Coupling(live).linear_inputs(graph):
        own = frozenset(numbers[op] for op in readers if op in numbers)
        everywhere = layers == Layers()
        if not kind(group, tuple(readers)) or not (everywhere or any(number in layers for number in own)):
            continue
        reason = group.reason or _half_selected(own, layers)
        if reason is not None:
            reasons.append(f"{what} that {readers[0].describe()} sums over cannot be cut: {reason}")
            if not everywhere:
                raise UnsupportedError(reasons[-1])
        else:
            found.append(Inner(group.units, tuple(own_ops[op.result.name] for op in readers), own))
    if reasons and not found:
        raise UnsupportedError(reasons[0])
    if not found and layers != Layers():
        raise UnsupportedError(f"{what} of layers {layers} is not found by what couples its units: choose other layers")
    return found


def _half_selected(own: frozenset[int], layers: Layers) -> str | None:
    lacking = sorted(number for number in own if number not in layers)
    if not lacking:
        return None
    return f"layers {', '.join(map(str, sorted(own)))} share it: select layer {lacking[0]} too, or none of them"
