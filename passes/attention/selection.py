"""Which attention a pass replaces: that of the chosen layers, where it can."""

from __future__ import annotations

from collections.abc import Callable

from slmopt.errors import UnsupportedError
from slmopt.ir.graph import Module, Op, operand_type
from slmopt.layers import Layers, number_places

__all__ = ["chosen_attention", "common_obstacle"]

_MIXERS = ("attention", "linear_attention")  # layers keep their numbers where some of them were replaced already


def chosen_attention(
    module: Module, layers: Layers, name: str, obstacle: Callable[[Op], str | None]
) -> list[Op]:  # fmt: skip
    """The attention of the chosen layers of @forward for which `obstacle` gives no reason against replacing it.

    A layer has the number in the path of its attention, or else attention ops are counted. Of `all` layers those with
    an obstacle are left out; in a layer that is chosen by number it is an UnsupportedError, as is a @step beside
    @forward, which would keep the old attention. InputError where a layer does not exist.
    """
    sequence = str(module.metadata.get("sequence", "s"))
    mixers = [
        op for op in module.graph("forward").walk()
        if op.name in _MIXERS and op.spec.mixes is not None and op.spec.mixes(op, sequence)
    ]  # fmt: skip
    numbers = number_places([op.location for op in mixers])
    layers.check(numbers)
    found = []
    for number, op in zip(numbers, mixers, strict=True):
        if number not in layers or op.name != "attention":
            continue
        reason = obstacle(op)
        if reason is None:
            found.append(op)
        elif layers != Layers():
            raise UnsupportedError(f"{name}: layer {number}: {op.describe()} {reason}")
    if found and "step" in module.graphs:
        raise UnsupportedError(f"{name}: the module has a @step, which keeps the attention it was derived with: put "
                               f"{name} before incrementalize")  # fmt: skip
    return found


def common_obstacle(op: Op) -> str | None:
    """Why attention is not that of each position over all before it; None where it is."""
    query, key = (operand_type(operand) for operand in op.operands[:2])
    if op.attributes["mask"] != "causal":
        return "is not causal"
    if key.shape[2] != query.shape[2] or _given(op, 4):
        return "does not look at the positions of its own queries"
    if op.attributes["chunk"] is not None:
        return "sees chunks of the sequence"
    return None


def _given(op: Op, index: int) -> bool:
    return len(op.operands) > index and op.operands[index] is not None
