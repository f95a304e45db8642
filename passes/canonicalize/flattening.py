"""Rules that move a reshape which merges leading axes (`[b, s, k] -> [b*s, k]`) behind the ops that do not care."""

from __future__ import annotations

from slmopt.ir.dims import Dim
from slmopt.ir.graph import Attribute, Op, Operand, Value, Weight
from slmopt.passes.canonicalize.broadcasting import ELEMENTWISE
from slmopt.rewrite import Match, Rewriter, Rule, constant_value, op, rule

__all__ = ["FLATTENING"]

# The first axis is one of many that these work on alike; all else they do is along the axes after it.
_ALONG_LAST = ("linear", "rms_norm", "layer_norm", "glu", "matmul")
_ALONG_AXIS = ("softmax", "mean", "sum", "amax", "cumsum", "slice", "concat")


def _merged(operand: Operand) -> tuple[Dim, ...] | None:
    """The leading axes that a reshape merged to make this operand's first axis."""
    made_by = operand.op if isinstance(operand, Value) else None
    if made_by is None or made_by.name != "reshape" or made_by.result.type.rank < 2:
        return None
    before, rest = made_by.value(0).shape if isinstance(made_by.operands[0], Value) else (), made_by.result.shape[1:]
    count = len(before) - len(rest)
    return before[:count] if count >= 2 and before[count:] == rest else None


def _shifted(root: Op, rank: int, extra: int) -> dict[str, Attribute] | None:
    """The op's attributes where the operand's first axis is 1 + extra axes; None where it works along that axis."""
    attributes = dict(root.attributes)
    if root.name == "permute":
        axes = [int(axis) for axis in attributes["axes"]]  # type: ignore[union-attr, arg-type]
        attributes["axes"] = (*range(extra + 1), *(axis + extra for axis in axes[1:]))
        return attributes if axes[0] == 0 else None
    if root.name in _ALONG_AXIS:
        axis = int(attributes["axis"]) % rank  # type: ignore[arg-type]
        attributes["axis"] = axis + extra
        return attributes if axis else None
    return attributes


@rule("flatten", op((*ELEMENTWISE, *_ALONG_LAST, *_ALONG_AXIS, "permute"), ...))
def _flatten_afterwards(at: Rewriter, m: Match) -> Value | Weight | None:
    """f(reshape(x)) -> reshape(f(x)) where the reshape only merges leading axes."""
    root = m.root
    merged = {id(operand): axes for operand in root.operands if (axes := _merged(operand)) is not None}
    if len(set(merged.values())) != 1 or not _fits(root, set(merged)):
        return None
    (lead,) = set(merged.values())
    rank = next(o.type.rank for o in root.operands if o is not None and id(o) in merged)
    attributes = _shifted(root, rank, len(lead) - 1)
    if attributes is None:
        return None
    found = at.add(root.name, *(_unmerged(o) if id(o) in merged else o for o in root.operands), **attributes)
    return at.add("reshape", found, shape=root.result.shape)


def _unmerged(operand: Operand) -> Operand:
    return operand.op.operands[0] if isinstance(operand, Value) and operand.op is not None else operand


def _fits(root: Op, merged: set[int]) -> bool:
    """All merged operands have one rank, and the others broadcast along the merged axis by not having it."""
    ranks = {o.type.rank for o in root.operands if o is not None and id(o) in merged}
    others = [o for o in root.operands if o is not None and id(o) not in merged]
    if len(ranks) != 1:
        return False
    if root.name in ELEMENTWISE:
        return all(o.type.rank < min(ranks) for o in others)
    if id(root.operands[0]) not in merged:
        return False
    if root.name == "matmul":
        return others[0].type.rank == 2 if others else min(ranks) >= 3
    if root.name == "linear":  # a residual has the shape of the result
        residual = root.operands[3] if len(root.operands) > 3 else None
        return residual is None or id(residual) in merged
    return all(o.type.rank < min(ranks) for o in others)


_TOKEN_WISE = (*ELEMENTWISE, "linear", "rms_norm", "layer_norm")


def _only_value(made_by: Op) -> int | None:
    """The index of an op's one operand that is neither a weight nor a single number."""
    found = [i for i, o in enumerate(made_by.operands) if isinstance(o, Value) and constant_value(o) is None]
    return found[0] if len(found) == 1 else None


def _follows_reshape(value: Value) -> bool:
    """Whether token-wise ops that nobody else reads lead from a reshape to `value`."""
    made_by = value.op
    while made_by is not None and made_by.name in _TOKEN_WISE and len(made_by.result.uses) == 1:
        index = _only_value(made_by)
        if index is None or made_by.value(index).shape[:1] != value.shape[:1]:
            return False
        made_by = made_by.value(index).op
    return made_by is not None and made_by is not value.op and made_by.name == "reshape"


@rule("flatten", op("reshape", op(_TOKEN_WISE, ..., bind="y", once=True)))
def _split_before(at: Rewriter, m: Match) -> Value | Weight | None:
    """reshape(f(reshape(x))) -> f(reshape(x)) where the last reshape only splits the first axis."""
    inner, shape = m.op("y"), m.root.result.shape
    index, rank = _only_value(inner), m["y"].type.rank
    lead = len(shape) - rank + 1
    if index is None or rank < 2 or lead < 2 or shape[lead:] != m["y"].type.shape[1:]:
        return None
    x = inner.value(index)
    weights = [o for o in inner.operands if o is not None and o is not x]
    if x.type.rank != rank or not _follows_reshape(m.value("y")) or any(_long(inner, o, rank) for o in weights):
        return None
    split = at.add("reshape", x, shape=(*shape[:lead], *x.shape[1:]))
    return at.again(inner, *(split if i == index else o for i, o in enumerate(inner.operands)))


def _long(inner: Op, operand: Value | Weight, rank: int) -> bool:
    """Whether an operand has the axis that is split."""
    return operand.type.rank >= rank and not (inner.name == "linear" and operand is inner.operands[1])


FLATTENING: tuple[Rule, ...] = (_flatten_afterwards, _split_before)
